"""The token-wise similarity of ``wukong.model.similarity`` as Triton kernels, for CUDA.

All kernels take a group of captions at a time: its rows are the tokens of ``rows // N2`` captions, each padded to
``N2`` tokens, a power of two. So one product of matrices serves several short captions.

Forward pass: a program keeps the tokens of its group on the chip and reads one image after the other, some patches at a
time. It reduces the products in both directions in registers and stores the index of each token's best match. Programs
with neighbouring numbers have other captions and the same images, so the images come from the GPU's L2 cache.

Backward pass: the best matches of an image and a caption define a sparse matrix of weights, [patches, words], with one
weight for each patch and one for each word. The gradient of one side is the sum, over the other side, of these matrices
times the tokens. A program builds each weight once if it accumulates whole rows of the gradient; the block sizes say
whether it does. No addition is atomic, so equal inputs give equal gradients.

Products of float32 tokens are exact (IEEE) unless torch's matrix products may use TF32
(``torch.set_float32_matmul_precision``). Those of bfloat16 and float16 are summed in float32.

The block sizes (``wukong.model.token_blocks``) are the fastest of the first few of a list, by a measurement at the
first call; with ``torch.use_deterministic_algorithms`` they are the first that fit, so that every process computes the
same bits. Torch knows both passes as operators, whose fake forms give the shapes of their results: ``torch.compile``
takes them, and a step can be rehearsed without a GPU.

Tests compare the kernels with the other implementation, in Triton's interpreter if there is no GPU, and compile them
for several GPUs, with limits on registers, spills and shared memory. Their speed is not measured.
"""

from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.runtime.errors import OutOfResources

from wukong.model.token_blocks import Blocks, Kernel, Precision, blocks, does_not_fit, padded

_INTERPRETED = 100 * 2**10
"""Shared memory in bytes to assume if there is no GPU: that of consumer GPUs."""

_PROGRAMS = 2**11
"""Programs of the forward pass that fill a GPU; if there were more, each takes several images."""


def problem(image: Tensor, text: Tensor) -> str:
    """Explain why the kernels cannot be launched for these tokens on their GPU; an empty string if they can."""
    words, width = text.shape[1:]
    return does_not_fit(words, width, precision_of(image), shared_memory(image.device))


def shared_memory(device: torch.device) -> int:
    """Return the bytes of shared memory that a program on this GPU may use."""
    if device.type != "cuda":
        return _INTERPRETED
    return int(torch.cuda.get_device_properties(device).shared_memory_per_block_optin)


def precision_of(tokens: Tensor) -> Precision:
    """Return how tokens of this type are multiplied, as torch's matrix products would be."""
    if tokens.dtype != torch.float32:
        return "half"
    return "ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32"


def token_similarity(image: Tensor, text: Tensor, counted: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the token-wise similarity on a GPU; see ``wukong.model.similarity.token_similarity``.

    Args:
        image: [images, n1, d].
        text: [texts, n2, d], of the same type.
        counted: bool [2, texts, n2]: the tokens that a patch may match, and the tokens that count in s^T.

    Returns:
        s^I and s^T, float32 [images, texts] each.

    Raises:
        ValueError: the kernels cannot be launched for these shapes, see ``problem``.
    """
    kept = torch.is_grad_enabled() and (image.requires_grad or text.requires_grad)
    to_text, to_image = _similarity(image.contiguous(), text.contiguous(), counted.contiguous(), kept)[0].unbind()
    return to_text.T, to_image.T


_Found = tuple[Tensor, Tensor, Tensor]
"""s^I and s^T, [2, texts, images]; the numbers of the best word of each patch, and of the best patch of each word."""


@torch.library.custom_op("wukong::token_similarity", mutates_args=())
def _similarity(image: Tensor, text: Tensor, counted: Tensor, kept: bool) -> _Found:
    if reason := problem(image, text):
        raise ValueError(reason)
    (images, patches, width), (texts, words, _), precision = image.shape, text.shape, precision_of(image)
    scores, word, patch = _not_computed(image, text, counted, kept)

    def launch(cut: Blocks) -> None:
        groups = triton.cdiv(texts, cut.rows // padded(words))
        span = images_of_a_program(images, groups)
        _scores[(groups * triton.cdiv(images, span),)](
            image,
            text,
            *counted,
            *scores,
            word,
            patch,
            images,
            texts,
            patches,
            words,
            span,
            WIDTH=width,
            N2=padded(words),
            G=cut.rows // padded(words),
            P=cut.patches,
            K=cut.depth,
            KEEP=kept,
            PRECISION="tf32" if precision == "tf32" else "ieee",
            num_warps=cut.warps,
            num_stages=cut.stages,
        )

    launch(_chosen("scores", image, text, precision, launch))
    return scores, word, patch


@_similarity.register_fake
def _not_computed(image: Tensor, text: Tensor, counted: Tensor, kept: bool) -> _Found:
    """Return memory for what is computed, all of it that a fake has."""
    (images, patches, _), (texts, words, _) = image.shape, text.shape
    pairs = (texts, images) if kept else (0, 0)
    return (
        image.new_empty(2, texts, images, dtype=torch.float32),
        image.new_empty(*pairs, patches, dtype=_index_type(words)),
        image.new_empty(*pairs, words, dtype=_index_type(patches)),
    )


def _keep(ctx: Any, inputs: tuple[Any, ...], output: _Found) -> None:
    ctx.save_for_backward(*inputs[:3], *output[1:])
    ctx.set_materialize_grads(False)  # those of the numbers would be as large as the numbers


def _backward(ctx: Any, scores: Tensor, *_: object) -> tuple[Tensor | None, ...]:
    image, text, (_matched, counted), word, patch = ctx.saved_tensors
    to_text, to_image = scores.contiguous()
    # The weight of each patch and of each word that counts.
    of_patch, of_word = to_text / image.shape[1], to_image / counted.sum(1, keepdim=True)
    return (*_gradients(image, text, counted, of_patch, of_word, word, patch), None, None)


@torch.library.custom_op("wukong::token_similarity_gradients", mutates_args=())
def _gradients(
    image: Tensor, text: Tensor, counted: Tensor, of_patch: Tensor, of_word: Tensor, word: Tensor, patch: Tensor
) -> tuple[Tensor, Tensor]:
    (images, patches, width), (texts, words, _), precision = image.shape, text.shape, precision_of(image)
    image_gradient, text_gradient = torch.empty_like(image), torch.empty_like(text)

    def launch(kernel: Any, tokens: Tensor, gradient: Tensor, cut: Blocks, programs: int) -> None:
        kernel[(programs * triton.cdiv(width, cut.depth),)](
            tokens,
            counted,
            of_patch,
            of_word,
            word,
            patch,
            gradient,
            images,
            texts,
            patches,
            words,
            WIDTH=width,
            N2=padded(words),
            G=cut.rows // padded(words),
            P=cut.patches,
            D=cut.depth,
            PRECISION="tf32" if precision == "tf32" else "ieee",
            num_warps=cut.warps,
            num_stages=cut.stages,
        )

    def launch_image(cut: Blocks) -> None:
        launch(_image_gradient, text, image_gradient, cut, images * triton.cdiv(patches, cut.patches))

    def launch_text(cut: Blocks) -> None:
        launch(_text_gradient, image, text_gradient, cut, triton.cdiv(texts, cut.rows // padded(words)))

    launch_image(_chosen("image_gradient", image, text, precision, launch_image))
    launch_text(_chosen("text_gradient", image, text, precision, launch_text))
    return image_gradient, text_gradient


@_gradients.register_fake
def _no_gradients(image: Tensor, text: Tensor, *_: object) -> tuple[Tensor, Tensor]:
    return torch.empty_like(image), torch.empty_like(text)


_similarity.register_autograd(_backward, setup_context=_keep)


def images_of_a_program(images: int, groups: int) -> int:
    """Return how many images a program of the forward pass takes, one after the other.

    A grid has at most 2^31 - 1 programs, so their number is limited too.

    Args:
        images: number of images.
        groups: number of groups of captions; there is a program for each group and each span of images.
    """
    return max(1, min(images, images * groups // _PROGRAMS))


_fastest: dict[tuple[object, ...], Blocks] = {}


def _chosen(
    kernel: Kernel, image: Tensor, text: Tensor, precision: Precision, launch: Callable[[Blocks], None]
) -> Blocks:
    """Return the block sizes of a kernel: the fastest measured, or the first if the choice must not vary."""
    (images, patches, width), (texts, words, _) = image.shape, text.shape
    cuts = blocks(kernel, words, width, precision, shared_memory(image.device))
    if not image.is_cuda or torch.are_deterministic_algorithms_enabled():
        return cuts[0]
    # Batches of about the same size share a measurement.
    about = (images.bit_length(), texts.bit_length(), patches, padded(words), width)
    key = (kernel, image.device, image.dtype, precision, *about)
    if key not in _fastest:

        def milliseconds(cut: Blocks) -> float:
            try:
                return float(triton.testing.do_bench(lambda: launch(cut), warmup=5, rep=20))
            except OutOfResources:
                return float("inf")  # this version of the compiler needs more than computed

        _fastest[key] = min(cuts, key=milliseconds)
    return _fastest[key]


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
    texts: tl.tensor,
    patches: tl.tensor,
    words: tl.tensor,
    span: tl.tensor,
    WIDTH: tl.constexpr,
    N2: tl.constexpr,
    G: tl.constexpr,
    P: tl.constexpr,
    K: tl.constexpr,
    KEEP: tl.constexpr,
    PRECISION: tl.constexpr,
) -> None:
    groups = tl.cdiv(texts, G)
    program = tl.program_id(0)
    group = program % groups
    first = program // groups * span
    tiles = tl.cdiv(patches, P)

    n = tl.arange(0, G * N2)
    j = (group * G + n // N2).to(tl.int64)
    t = n % N2
    real = (j < texts) & (t < words)
    allowed = tl.load(matched + j * words + t, mask=real, other=0) != 0
    taken = tl.load(counted + j * words + t, mask=real, other=0) != 0
    count = tl.maximum(tl.sum(tl.reshape(taken.to(tl.float32), (G, N2)), 1), 1.0)  # padded texts have no word
    texts_of_group = group * G + tl.arange(0, G)
    of_group = texts_of_group.to(tl.int64) * images
    k = tl.arange(0, K)
    rows = text + (j * words + t)[:, None] * WIDTH
    if K >= WIDTH:
        kept = tl.load(rows + k[None, :], mask=real[:, None] & (k < WIDTH)[None, :], other=0.0)

    total = tl.zeros((G,), tl.float32)
    best = tl.full((G * N2,), float("-inf"), tl.float32)
    place = tl.zeros((G * N2,), tl.int32)
    # One loop over the images and their patches, so that the next image is loaded while this one is multiplied.
    for step in range(0, (tl.minimum(first + span, images) - first) * tiles):
        i = (first + step // tiles).to(tl.int64)
        tile = step % tiles
        p = tile * P + tl.arange(0, P)
        inside = p < patches
        columns = image + (i * patches + p)[None, :] * WIDTH
        if K >= WIDTH:
            part = tl.load(columns + k[:, None], mask=inside[None, :] & (k < WIDTH)[:, None], other=0.0)
            products = tl.dot(kept, part, input_precision=PRECISION)
        else:
            products = tl.zeros((G * N2, P), tl.float32)
            for start in range(0, WIDTH, K):
                d = start + k
                left = tl.load(rows + d[None, :], mask=real[:, None] & (d < WIDTH)[None, :], other=0.0)
                part = tl.load(columns + d[:, None], mask=inside[None, :] & (d < WIDTH)[:, None], other=0.0)
                products = tl.dot(left, part, products, input_precision=PRECISION)

        by_patch = tl.reshape(tl.where(allowed[:, None], products, float("-inf")), (G, N2, P))
        if KEEP:
            nearest_word, which = tl.max(by_patch, 1, return_indices=True)
            at = word + (of_group + i)[:, None] * patches + p[None, :]
            tl.store(at, which, mask=(texts_of_group < texts)[:, None] & inside[None, :])
        else:
            nearest_word = tl.max(by_patch, 1)
        total = tl.where(tile == 0, 0.0, total) + tl.sum(tl.where(inside[None, :], nearest_word, 0.0), 1)

        by_word = tl.where(inside[None, :], products, float("-inf"))
        best = tl.where(tile == 0, float("-inf"), best)
        if KEEP:
            nearest, where = tl.max(by_word, 1, return_indices=True)
            place = tl.where(nearest > best, where + tile * P, place)
        else:
            nearest = tl.max(by_word, 1)
        best = tl.maximum(best, nearest)

        ended = tl.where(tile == tiles - 1, texts, 0)  # captions whose scores with this image are complete
        tl.store(to_text + of_group + i, total / patches, mask=texts_of_group < ended)
        mean = tl.sum(tl.reshape(tl.where(taken, best, 0.0), (G, N2)), 1) / count
        tl.store(to_image + of_group + i, mean, mask=texts_of_group < ended)
        if KEEP:
            tl.store(patch + (j * images + i) * words + t, place, mask=(j < ended) & (t < words))


@triton.jit
def _image_gradient(
    text: tl.tensor,
    counted: tl.tensor,
    of_patch: tl.tensor,
    of_word: tl.tensor,
    word: tl.tensor,
    patch: tl.tensor,
    gradient: tl.tensor,
    images: tl.tensor,
    texts: tl.tensor,
    patches: tl.tensor,
    words: tl.tensor,
    WIDTH: tl.constexpr,
    N2: tl.constexpr,
    G: tl.constexpr,
    P: tl.constexpr,
    D: tl.constexpr,
    PRECISION: tl.constexpr,
) -> None:
    tiles = tl.cdiv(patches, P)
    column, program = tl.program_id(0) % tl.cdiv(WIDTH, D), tl.program_id(0) // tl.cdiv(WIDTH, D)
    i, p = (program // tiles).to(tl.int64), program % tiles * P + tl.arange(0, P)
    d = column * D + tl.arange(0, D)
    g, t, n = tl.arange(0, G), tl.arange(0, N2), tl.arange(0, G * N2)
    total = tl.zeros((P, D), tl.float32)
    for first in range(0, texts, G):
        j = (first + g).to(tl.int64)
        inside, pair = j < texts, j * images + i
        real = inside[:, None] & (t < words)[None, :]
        for_patch = tl.load(of_patch + pair, mask=inside, other=0.0)
        for_word = tl.load(of_word + pair, mask=inside, other=0.0)
        taken = tl.load(counted + j[:, None] * words + t[None, :], mask=real, other=0) != 0
        for_word = tl.where(taken, for_word[:, None], 0.0)
        best_word = tl.load(
            word + pair[None, :] * patches + p[:, None], mask=inside[None, :] & (p < patches)[:, None], other=0
        ).to(tl.int32)
        best_patch = tl.load(patch + pair[:, None] * words + t[None, :], mask=real, other=0).to(tl.int32)
        weights = tl.where(best_word[:, :, None] == t[None, None, :], for_patch[None, :, None], 0.0)
        weights += tl.where(best_patch[None, :, :] == p[:, None, None], for_word[None, :, :], 0.0)

        jn, tn = (first + n // N2).to(tl.int64), n % N2
        rows = tl.load(
            text + (jn * words + tn)[:, None] * WIDTH + d[None, :],
            mask=((jn < texts) & (tn < words))[:, None] & (d < WIDTH)[None, :],
            other=0.0,
        )
        total = tl.dot(tl.reshape(weights, (P, G * N2)).to(rows.dtype), rows, total, input_precision=PRECISION)
    at = gradient + (i * patches + p)[:, None] * WIDTH + d[None, :]
    tl.store(at, total, mask=(p < patches)[:, None] & (d < WIDTH)[None, :])


@triton.jit
def _text_gradient(
    image: tl.tensor,
    counted: tl.tensor,
    of_patch: tl.tensor,
    of_word: tl.tensor,
    word: tl.tensor,
    patch: tl.tensor,
    gradient: tl.tensor,
    images: tl.tensor,
    texts: tl.tensor,
    patches: tl.tensor,
    words: tl.tensor,
    WIDTH: tl.constexpr,
    N2: tl.constexpr,
    G: tl.constexpr,
    P: tl.constexpr,
    D: tl.constexpr,
    PRECISION: tl.constexpr,
) -> None:
    tiles = tl.cdiv(patches, P)
    column, group = tl.program_id(0) % tl.cdiv(WIDTH, D), tl.program_id(0) // tl.cdiv(WIDTH, D)
    d = column * D + tl.arange(0, D)
    j, t, n = (group * G + tl.arange(0, G)).to(tl.int64), tl.arange(0, N2), tl.arange(0, G * N2)
    inside = j < texts
    real = inside[:, None] & (t < words)[None, :]
    taken = tl.load(counted + j[:, None] * words + t[None, :], mask=real, other=0) != 0
    total = tl.zeros((G * N2, D), tl.float32)
    for step in range(0, images * tiles):
        i, p = (step // tiles).to(tl.int64), step % tiles * P + tl.arange(0, P)
        pair = j * images + i
        for_patch = tl.load(of_patch + pair, mask=inside, other=0.0)
        for_word = tl.load(of_word + pair, mask=inside, other=0.0)
        for_word = tl.where(taken, for_word[:, None], 0.0)
        best_word = tl.load(
            word + pair[:, None] * patches + p[None, :], mask=inside[:, None] & (p < patches)[None, :], other=0
        ).to(tl.int32)
        best_patch = tl.load(patch + pair[:, None] * words + t[None, :], mask=real, other=0).to(tl.int32)
        weights = tl.where(best_word[:, None, :] == t[None, :, None], for_patch[:, None, None], 0.0)
        weights += tl.where(best_patch[:, :, None] == p[None, None, :], for_word[:, :, None], 0.0)

        rows = tl.load(
            image + (i * patches + p)[:, None] * WIDTH + d[None, :],
            mask=(p < patches)[:, None] & (d < WIDTH)[None, :],
            other=0.0,
        )
        total = tl.dot(tl.reshape(weights, (G * N2, P)).to(rows.dtype), rows, total, input_precision=PRECISION)
    jn, tn = (group * G + n // N2).to(tl.int64), n % N2
    at = gradient + (jn * words + tn)[:, None] * WIDTH + d[None, :]
    tl.store(at, total, mask=((jn < texts) & (tn < words))[:, None] & (d < WIDTH)[None, :])
