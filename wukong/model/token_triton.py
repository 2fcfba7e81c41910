"""The token-wise similarity of ``wukong.model.similarity`` as Triton kernels, for CUDA.

A program holds the products of one picture's tokens with one caption's in registers, reduces them in both directions
and keeps which token won, as the blocks on the processor do. Going back, the winners of a picture and a caption make a
matrix of weights, patches x words, that is zero but for one weight a patch and one a word; a side's gradient is the sum
over the other side of such matrices times tokens. Nothing is added atomically: equal inputs give equal gradients.

Checked against the other implementation, by Triton's interpreter where there is no GPU; its speed is not measured.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

_PATCHES = 64
_WIDTH = 128
"""Patches and columns that one program of the backward pass accumulates; tensor cores need 16 at least."""


def token_similarity(image: Tensor, text: Tensor, counted: Tensor) -> tuple[Tensor, Tensor]:
    """s^I and s^T of ``wukong.model.similarity.token_similarity``, float32 [images, texts] each."""
    scores: tuple[Tensor, Tensor] = _TokenSimilarity.apply(image, text, counted)
    return scores


class _TokenSimilarity(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, image: Tensor, text: Tensor, counted: Tensor) -> tuple[Tensor, Tensor]:
        image, text, counted = image.contiguous(), text.contiguous(), counted.contiguous()
        (images, patches, width), (texts, words, _) = image.shape, text.shape
        to_text, to_image = (image.new_empty(texts, images, dtype=torch.float32) for _ in range(2))
        kept = (texts, images) if any(ctx.needs_input_grad) else (0, 0)
        word = image.new_empty(*kept, patches, dtype=_index_type(words))
        patch = image.new_empty(*kept, words, dtype=_index_type(patches))
        _scores[(images, texts)](
            image,
            text,
            counted,
            to_text,
            to_image,
            word,
            patch,
            images,
            patches,
            words,
            width,
            N1=_size(patches),
            N2=_size(words),
            K=32 if image.dtype == torch.float32 else 64,
            KEEP=kept != (0, 0),
            num_warps=min(16, max(4, _size(patches) * _size(words) // 1024)),  # 32 products a thread: registers suffice
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
        block, columns = min(_PATCHES, _size(patches)), min(_WIDTH, _size(width))
        sizes = (images, texts, patches, words, width)
        blocks = {"M": block, "N2": _size(words), "D": columns}
        _image_gradient[(images, triton.cdiv(patches, block), triton.cdiv(width, columns))](
            text, counted, *flowing, word, patch, image_gradient, *sizes, **blocks
        )
        _text_gradient[(texts, triton.cdiv(width, columns))](
            image, counted, *flowing, word, patch, text_gradient, *sizes, **blocks
        )
        return image_gradient, text_gradient, None


def _size(count: int) -> int:
    return max(16, int(triton.next_power_of_2(count)))


def _index_type(size: int) -> torch.dtype:
    return torch.uint8 if size <= 256 else torch.int16


@triton.jit
def _scores(
    image: tl.tensor,
    text: tl.tensor,
    counted: tl.tensor,
    to_text: tl.tensor,
    to_image: tl.tensor,
    word: tl.tensor,
    patch: tl.tensor,
    images: tl.tensor,
    patches: tl.tensor,
    words: tl.tensor,
    width: tl.tensor,
    N1: tl.constexpr,
    N2: tl.constexpr,
    K: tl.constexpr,
    KEEP: tl.constexpr,
) -> None:
    i, j = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    p, t = tl.arange(0, N1), tl.arange(0, N2)
    products = tl.zeros((N1, N2), tl.float32)
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
    taken = tl.load(counted + j * words + t, mask=t < words, other=0) != 0
    here = j * images + i

    by_patch = tl.where(taken[None, :], products, float("-inf"))
    tl.store(to_text + here, tl.sum(tl.where(p < patches, tl.max(by_patch, 1), 0.0), 0) / patches)
    if KEEP:
        tl.store(word + here * patches + p, tl.argmax(by_patch, 1), mask=p < patches)

    by_word = tl.where(p[:, None] < patches, products, float("-inf"))
    count = tl.sum(taken.to(tl.float32), 0)
    tl.store(to_image + here, tl.sum(tl.where(taken, tl.max(by_word, 0), 0.0), 0) / count)
    if KEEP:
        tl.store(patch + here * words + t, tl.argmax(by_word, 0), mask=t < words)


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
    """How much the product of patch p and word t of picture i and caption j weighs in the loss: [patches, words]."""
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
