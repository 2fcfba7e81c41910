"""The block sizes of the kernels of ``wukong.model.token_triton``: arithmetic of registers and shared memory."""

from collections.abc import Iterator
from functools import cache
from itertools import islice
from typing import Literal, NamedTuple

_MOST_WORDS = 512
"""The most words of a caption, so that its products fit into registers."""

_TRIED = 4
"""Number of block sizes that are measured at the first call."""

Kernel = Literal["scores", "image_gradient", "text_gradient"]
Precision = Literal["half", "tf32", "ieee"]
"""How tokens are multiplied: float16 or bfloat16, or float32 rounded to TF32, or exact float32."""


class Blocks(NamedTuple):
    """The block sizes of one kernel.

    Attributes:
        rows: text tokens at a time, those of ``rows // N2`` captions.
        patches: image tokens at a time.
        depth: columns at a time: in the forward pass of the tokens that are multiplied, in the backward pass of the
            gradient that is accumulated. If they are all columns, the forward pass keeps the text tokens on the chip,
            and the backward pass builds each weight once.
        warps: warps (of 32 threads) of a program.
        stages: loads in flight; each takes its own shared memory.
    """

    rows: int
    patches: int
    depth: int
    warps: int
    stages: int


# Tensor cores. The first entries are for captions of 32 tokens and a width of 256 on an A100 or H100, the last ones for
# long captions and for GPUs with little shared memory.
_FORWARD = ((128, 64, 8), (64, 64, 4), (64, 32, 4), (32, 32, 4), (32, 16, 4), (16, 16, 4), (256, 32, 8), (512, 16, 8))
_BACKWARD = ((64, 64, 8), (32, 64, 8), (64, 32, 8), (32, 32, 4), (128, 32, 8), (16, 16, 4), (256, 16, 8), (512, 16, 8))
# Exact products of float32 run on the ordinary cores and take their operands from registers.
_FORWARD_EXACT = ((64, 64, 8), (32, 64, 4), (32, 32, 4), (16, 16, 4), (128, 32, 8), (256, 16, 8), (512, 16, 16))
_BACKWARD_EXACT = ((32, 32, 4), (16, 16, 4), (64, 16, 4), (128, 16, 8), (256, 16, 8), (512, 16, 16))
"""Rows, patches and warps of the blocks, the best guess first. With the first of the backward pass the images'
gradient in TF32 spills registers on an A100."""


@cache
def blocks(kernel: Kernel, words: int, width: int, precision: Precision, shared: int) -> tuple[Blocks, ...]:
    """Return block sizes that fit a GPU, the best guess first; empty if none fit.

    Args:
        kernel: which of the three kernels.
        words: number of tokens of a caption, padding included.
        width: width of a token.
        precision: precision of the products.
        shared: bytes of shared memory that a program may use.
    """
    if words > _MOST_WORDS:
        return ()
    n, item = padded(words), 2 if precision == "half" else 4
    choices = _forward_choices if kernel == "scores" else _backward_choices
    sized = (
        Blocks(*choice, stages)
        for choice in choices(kernel, n, width, precision)
        for stages in _most_stages(kernel, choice, width, item, shared)
    )
    return tuple(islice(sized, _TRIED))


_Choice = tuple[int, int, int, int]
"""Rows, patches, depth and warps of ``Blocks``."""


def _forward_choices(_kernel: Kernel, n: int, width: int, precision: Precision) -> Iterator[_Choice]:
    exact, whole = precision == "ieee", padded(width)
    tiles = [tile for tile in (_FORWARD_EXACT if exact else _FORWARD) if tile[0] >= n]
    if not exact:
        for rows, patches, warps in tiles:
            # An A100 keeps the text tokens in registers, which must hold the products too: 144 of a thread's 255.
            if rows * (whole * (2 if precision == "half" else 4) + 4 * patches) <= 4 * 144 * 32 * warps:
                yield rows, patches, whole, warps
    for depth in (32, 16) if exact else (64, 32, 16):
        for rows, patches, warps in tiles:
            yield rows, patches, depth, warps


def _backward_choices(kernel: Kernel, n: int, width: int, precision: Precision) -> Iterator[_Choice]:
    exact, spills = precision == "ieee", precision == "tf32" and kernel == "image_gradient"
    most = 32 if exact else 64  # numbers that a thread accumulates; it has 255 registers, for weights and addresses too
    for halves in range(5):
        for rows, patches, warps in _BACKWARD_EXACT if exact else _BACKWARD[spills:]:
            accumulated = patches if kernel == "image_gradient" else rows
            depth = min(256, padded(width), most * 32 * warps // accumulated) >> halves
            if rows >= n and depth >= 16:
                yield rows, patches, depth, warps


def _most_stages(kernel: Kernel, choice: _Choice, width: int, item: int, shared: int) -> Iterator[int]:
    """Yield the most loads in flight that fit, at most three; nothing if none fit."""
    # Text tokens that stay on the chip are no gain if the images are then loaded and multiplied in turn.
    allowed = (3, 2) if kernel == "scores" and choice[2] >= width else (3, 2, 1)
    fitting = (stages for stages in allowed if shared_bytes(kernel, Blocks(*choice, stages), width, item) <= shared)
    return islice(fitting, 1)


def shared_bytes(kernel: Kernel, cut: Blocks, width: int, item: int) -> int:
    """Return the most shared memory, in bytes, that a program uses with these block sizes.

    Args:
        kernel: which of the three kernels.
        cut: the block sizes.
        width: width of a token.
        item: bytes of a number of a token, 2 or 4.
    """
    if kernel == "scores":
        kept = cut.rows * cut.depth * item
        streamed = cut.patches * cut.depth * item
        loads = kept + cut.stages * streamed if cut.depth >= width else cut.stages * (kept + streamed)
        return loads + _SCRATCH
    streamed, accumulated = (cut.rows, cut.patches) if kernel == "image_gradient" else (cut.patches, cut.rows)
    loads = cut.stages * streamed * cut.depth * item
    return max(loads + cut.rows * cut.patches * 4, accumulated * cut.depth * 4) + _SCRATCH


_SCRATCH = 8 * 2**10


def padded(count: int) -> int:
    """Return the power of two to which words or columns are padded, at least 16."""
    return max(16, 1 << (count - 1).bit_length())


def does_not_fit(words: int, width: int, precision: Precision, shared: int) -> str:
    """Explain why the kernels cannot be launched; an empty string if they can.

    Args:
        words: number of tokens of a caption, padding included.
        width: width of a token.
        precision: precision of the products.
        shared: bytes of shared memory that a program may use, see ``shared_memory``.
    """
    kernels: tuple[Kernel, ...] = ("scores", "image_gradient", "text_gradient")
    if all(blocks(kernel, words, width, precision, shared) for kernel in kernels):
        return ""
    return (
        f"captions of {words} tokens of {width} numbers ({precision}) need more than the {shared} bytes of shared "
        f"memory that this GPU has, or are more than {_MOST_WORDS} tokens"
    )
