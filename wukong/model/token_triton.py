"""The token-wise similarity of ``wukong.model.similarity`` as Triton kernels, for CUDA.

Forward pass: one program computes the similarity of one image and one caption. It computes the products of some image
tokens with all caption tokens in registers, reduces them in both directions, and stores the index of each token's best
match, like the blocks on the CPU. It repeats this for the next image tokens, as many at a time as fit into the GPU's
shared memory and registers.

Backward pass: the best matches of an image and a caption define a sparse matrix of weights, [patches, words], with one
weight for each patch and one for each word. The gradient of one side is the sum, over the other side, of these matrices
times the tokens. No addition is atomic, so equal inputs give equal gradients.

Tests compare the kernels with the other implementation, in Triton's interpreter if there is no GPU, and their shared
memory with the size that Triton's compiler reports. Their speed is not measured.
"""

from functools import cache
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

_MOST_WORDS = 512
_MOST_TEXTS = 2**16 - 1
"""The most words of a caption, so that its products fit into registers; and the most captions, CUDA's limit on the
second axis of a grid."""

_INTERPRETED = 100 * 2**10
"""Shared memory in bytes to assume if there is no GPU: that of consumer GPUs."""


class Blocks(NamedTuple):
    """The block sizes of the kernels.

    Attributes:
        rows: image tokens that a program of the forward pass multiplies with a caption's tokens at a time.
        depth: columns of the tokens that are multiplied at a time; tensor cores need at least 16.
        stages: loads in flight in the forward pass; each takes its own shared memory.
        warps: warps (of 32 threads) of a program of the forward pass.
        gradient_rows: image tokens that a program of the backward pass accumulates or reads at a time.
        gradient_columns: columns that a program of the backward pass accumulates.
        gradient_stages: loads in flight in the backward pass.
    """

    rows: int
    depth: int
    stages: int
    warps: int
    gradient_rows: int
    gradient_columns: int
    gradient_stages: int


@cache
def blocks(patches: int, words: int, width: int, item: int, shared: int) -> Blocks | None:
    """Choose block sizes that fit a GPU.

    Shared memory limits how much is loaded at a time. Registers limit how much is accumulated: 64 numbers a thread.

    Args:
        patches: number of tokens of an image.
        words: number of tokens of a caption.
        width: width of a token.
        item: bytes of a number, 2 or 4.
        shared: bytes of shared memory that a program may use.

    Returns:
        The block sizes; None if no sizes fit.
    """
    if words > _MOST_WORDS:
        return None
    n = _size(words)
    whole = _size(patches)
    rows = min(whole if whole <= 256 else 128, 2**15 // n)
    forward = (
        (m, k, stages)
        for m in _halves(rows)
        for stages in (3, 2, 1)
        for k in _halves(32 if item == 4 else 64)
        if forward_shared(m, n, k, stages, item) <= shared
    )
    backward = (
        (m, d, stages)
        for m in _halves(min(64, whole, 2**13 // n))
        for d in _halves(min(128, _size(width), max(16, 2**13 // n)))
        for stages in (3, 2, 1)
        if backward_shared(m, n, d, stages, item) <= shared
    )
    scores, gradients = next(forward, None), next(backward, None)
    if scores is None or gradients is None:
        return None
    return Blocks(*scores, min(16, max(4, scores[0] * n // 1024)), *gradients)


def forward_shared(rows: int, words: int, depth: int, stages: int, item: int) -> int:
    """Return the most shared memory, in bytes, that a program of the forward pass uses: loads and reductions."""
    return stages * (rows + words) * depth * item + _SCRATCH


def backward_shared(rows: int, words: int, columns: int, stages: int, item: int) -> int:
    """Return the most shared memory, in bytes, that a program of the backward pass uses: loads, weights, results."""
    loads = stages * max(rows, words) * columns * item
    return max(loads + rows * words * item, max(rows, words) * columns * 4) + _SCRATCH


_SCRATCH = 4 * 2**10


def does_not_fit(patches: int, texts: int, words: int, width: int, item: int, shared: int) -> str:
    """Explain why the kernels cannot be launched for these shapes; an empty string if they can.

    Args:
        patches: number of tokens of an image.
        texts: number of captions.
        words: number of tokens of a caption.
        width: width of a token.
        item: bytes of a number.
        shared: bytes of shared memory that a program may use, see ``shared_memory``.
    """
    if texts > _MOST_TEXTS:
        return f"{texts} captions at a time are more than the kernels take, {_MOST_TEXTS}"
    if blocks(patches, words, width, item, shared) is None:
        return (
            f"{patches} image tokens and up to {_size(words)} text tokens of {width} numbers in {8 * item} bits need "
            f"more than the {shared} bytes of shared memory that this GPU has, or are more than {_MOST_WORDS} of a text"
        )
    return ""


def shared_memory(device: torch.device) -> int:
    """Return the bytes of shared memory that a program on this GPU may use."""
    if device.type != "cuda":
        return _INTERPRETED
    return int(torch.cuda.get_device_properties(device).shared_memory_per_block_optin)


def _halves(size: int) -> list[int]:
    """Return a power of two, its half, and so on down to 16."""
    return [size >> shift for shift in range(size.bit_length()) if size >> shift >= 16]


def token_similarity(image: Tensor, text: Tensor, counted: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the token-wise similarity on a GPU; see ``wukong.model.similarity.token_similarity``.

    Args:
        image: [images, n1, d].
        text: [texts, n2, d].
        counted: bool [2, texts, n2]: the tokens that a patch may match, and the tokens that count in s^T.

    Returns:
        s^I and s^T, float32 [images, texts] each.
    """
    scores: tuple[Tensor, Tensor] = _TokenSimilarity.apply(image, text, counted)
    return scores


class _TokenSimilarity(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, image: Tensor, text: Tensor, counted: Tensor) -> tuple[Tensor, Tensor]:
        image, text = image.contiguous(), text.contiguous()
        matched, counted = counted.contiguous()
        (images, patches, width), (texts, words, _) = image.shape, text.shape
        to_text, to_image = (image.new_empty(texts, images, dtype=torch.float32) for _ in range(2))
        kept = (texts, images) if any(ctx.needs_input_grad) else (0, 0)
        word = image.new_empty(*kept, patches, dtype=_index_type(words))
        patch = image.new_empty(*kept, words, dtype=_index_type(patches))
        cut = _blocks_for(image, text)
        _scores[(images, texts)](
            image,
            text,
            matched,
            counted,
            to_text,
            to_image,
            word,
            patch,
            images,
            patches,
            words,
            width,
            M=cut.rows,
            N2=_size(words),
            K=cut.depth,
            KEEP=kept != (0, 0),
            num_warps=cut.warps,
            num_stages=cut.stages,
        )
        ctx.save_for_backward(image, text, counted, word, patch)
        return to_text.T, to_image.T

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, to_text: Tensor, to_image: Tensor) -> tuple[Tensor, Tensor, None]:
        image, text, counted, word, patch = ctx.saved_tensors
        (images, patches, width), (texts, words, _) = image.shape, text.shape
        flowing = (to_text.T.float().contiguous(), to_image.T.float().contiguous())
        image_gradient, text_gradient = torch.empty_like(image), torch.empty_like(text)
        cut = _blocks_for(image, text)
        block, columns = cut.gradient_rows, cut.gradient_columns
        sizes = (images, texts, patches, words, width)
        blocks = {"M": block, "N2": _size(words), "D": columns, "num_stages": cut.gradient_stages}
        _image_gradient[(images, triton.cdiv(patches, block), triton.cdiv(width, columns))](
            text, counted, *flowing, word, patch, image_gradient, *sizes, **blocks
        )
        _text_gradient[(texts, triton.cdiv(width, columns))](
            image, counted, *flowing, word, patch, text_gradient, *sizes, **blocks
        )
        return image_gradient, text_gradient, None


def problem(image: Tensor, text: Tensor) -> str:
    """Return ``does_not_fit`` for the shapes and the GPU of these tensors."""
    (_, patches, width), (texts, words, _) = image.shape, text.shape
    return does_not_fit(patches, texts, words, width, image.element_size(), shared_memory(image.device))


def _blocks_for(image: Tensor, text: Tensor) -> Blocks:
    (_, patches, width), words = image.shape, text.shape[1]
    cut = blocks(patches, words, width, image.element_size(), shared_memory(image.device))
    if cut is None:
        raise ValueError(problem(image, text))
    return cut


def _size(count: int) -> int:
    return max(16, int(triton.next_power_of_2(count)))


def _index_type(size: int) -> torch.dtype:
    return torch.uint8 if size <= 256 else torch.int16


@triton.jit
def _scores(
    image: tl.tensor,
    text: tl.tensor,
    matched: tl.tensor,
    counted: tl.tensor,
    to_text: tl.tensor,
    to_image: tl.tensor,
    word: tl.tensor,
    patch: tl.tensor,
    images: tl.tensor,
    patches: tl.tensor,
    words: tl.tensor,
    width: tl.tensor,
    M: tl.constexpr,
    N2: tl.constexpr,
    K: tl.constexpr,
    KEEP: tl.constexpr,
) -> None:
    i, j = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    t = tl.arange(0, N2)
    allowed = tl.load(matched + j * words + t, mask=t < words, other=0) != 0
    taken = tl.load(counted + j * words + t, mask=t < words, other=0) != 0
    here = j * images + i
    total = 0.0
    best = tl.full((N2,), float("-inf"), tl.float32)
    place = tl.zeros((N2,), tl.int32)
    for first in range(0, patches, M):
        p = first + tl.arange(0, M)
        products = tl.zeros((M, N2), tl.float32)
        for start in range(0, width, K):
            k = start + tl.arange(0, K)
            rows = tl.load(
                image + (i * patches + p[:, None]) * width + k[None, :],
                mask=(p[:, None] < patches) & (k[None, :] < width),
                other=0.0,
            )
            columns = tl.load(
                text + (j * words + t[None, :]) * width + k[:, None],
                mask=(t[None, :] < words) & (k[:, None] < width),
                other=0.0,
            )
            products = tl.dot(rows, columns, products, input_precision="ieee")

        by_patch = tl.where(allowed[None, :], products, float("-inf"))
        total += tl.sum(tl.where(p < patches, tl.max(by_patch, 1), 0.0), 0)
        if KEEP:
            tl.store(word + here * patches + p, tl.argmax(by_patch, 1), mask=p < patches)

        by_word = tl.where(p[:, None] < patches, products, float("-inf"))
        nearest = tl.max(by_word, 0)
        if KEEP:
            place = tl.where(nearest > best, tl.argmax(by_word, 0) + first, place)
        best = tl.maximum(best, nearest)
    tl.store(to_text + here, total / patches)
    count = tl.sum(taken.to(tl.float32), 0)
    tl.store(to_image + here, tl.sum(tl.where(taken, best, 0.0), 0) / count)
    if KEEP:
        tl.store(patch + here * words + t, place, mask=t < words)


@triton.jit
def _weights(
    counted: tl.tensor,
    to_text: tl.tensor,
    to_image: tl.tensor,
    word: tl.tensor,
    patch: tl.tensor,
    i: tl.tensor,
    j: tl.tensor,
    p: tl.tensor,
    t: tl.tensor,
    images: tl.tensor,
    patches: tl.tensor,
    words: tl.tensor,
) -> tl.tensor:
    """Return the weights, [patches, words], of the products of patches p and words t of image i and caption j."""
    here = j * images + i
    taken = tl.load(counted + j * words + t, mask=t < words, other=0) != 0
    for_patch = tl.load(to_text + here) / patches
    for_word = tl.load(to_image + here) / tl.sum(taken.to(tl.float32), 0)
    chosen_word = tl.load(word + here * patches + p, mask=p < patches, other=0).to(tl.int32)
    chosen_patch = tl.load(patch + here * words + t, mask=t < words, other=0).to(tl.int32)
    of_patch = (chosen_word[:, None] == t[None, :]) & (p[:, None] < patches)
    of_word = (chosen_patch[None, :] == p[:, None]) & taken[None, :]
    return tl.where(of_patch, for_patch, 0.0) + tl.where(of_word, for_word, 0.0)


@triton.jit
def _image_gradient(
    text: tl.tensor,
    counted: tl.tensor,
    to_text: tl.tensor,
    to_image: tl.tensor,
    word: tl.tensor,
    patch: tl.tensor,
    gradient: tl.tensor,
    images: tl.tensor,
    texts: tl.tensor,
    patches: tl.tensor,
    words: tl.tensor,
    width: tl.tensor,
    M: tl.constexpr,
    N2: tl.constexpr,
    D: tl.constexpr,
) -> None:
    i = tl.program_id(0).to(tl.int64)
    p, t = tl.program_id(1) * M + tl.arange(0, M), tl.arange(0, N2).to(tl.int64)
    d = tl.program_id(2) * D + tl.arange(0, D)
    total = tl.zeros((M, D), tl.float32)
    for j in range(texts):
        weights = _weights(counted, to_text, to_image, word, patch, i, j, p, t, images, patches, words)
        rows = tl.load(
            text + (j * words + t[:, None]) * width + d[None, :],
            mask=(t[:, None] < words) & (d[None, :] < width),
            other=0.0,
        )
        total = tl.dot(weights.to(rows.dtype), rows, total, input_precision="ieee")
    where = gradient + (i * patches + p[:, None]) * width + d[None, :]
    tl.store(where, total, mask=(p[:, None] < patches) & (d[None, :] < width))


@triton.jit
def _text_gradient(
    image: tl.tensor,
    counted: tl.tensor,
    to_text: tl.tensor,
    to_image: tl.tensor,
    word: tl.tensor,
    patch: tl.tensor,
    gradient: tl.tensor,
    images: tl.tensor,
    texts: tl.tensor,
    patches: tl.tensor,
    words: tl.tensor,
    width: tl.tensor,
    M: tl.constexpr,
    N2: tl.constexpr,
    D: tl.constexpr,
) -> None:
    j = tl.program_id(0).to(tl.int64)
    t, d = tl.arange(0, N2), tl.program_id(1) * D + tl.arange(0, D)
    total = tl.zeros((N2, D), tl.float32)
    for i in range(images):
        for start in range(0, patches, M):
            p = start + tl.arange(0, M).to(tl.int64)
            weights = _weights(counted, to_text, to_image, word, patch, i, j, p, t, images, patches, words)
            rows = tl.load(
                image + (i * patches + p[:, None]) * width + d[None, :],
                mask=(p[:, None] < patches) & (d[None, :] < width),
                other=0.0,
            )
            total = tl.dot(tl.trans(weights).to(rows.dtype), rows, total, input_precision="ieee")
    where = gradient + (j * words + t[:, None]) * width + d[None, :]
    tl.store(where, total, mask=(t[:, None] < words) & (d[None, :] < width))
