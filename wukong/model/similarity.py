"""The similarity of images and captions: global (CLIP) or token-wise (FILIP), section 4.3.

The token-wise similarity has its own backward pass. Automatic differentiation would store the product of every image
token with every text token. Here the products are computed in blocks; each block is reduced in both directions and
freed, and only the index of the best match of each token is stored. The gradient of a maximum flows only to the best
match, so the backward pass needs no products: it is four weighted sums of rows.
"""

import logging
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

log = logging.getLogger(__name__)

_HAS_TRITON = find_spec("triton") is not None
_BLOCK_PRODUCTS = 2**22
_BLOCK_ROWS = 2**13
"""The most products, and the most image tokens, in a block: 16 MiB in float32, so that it stays in the CPU's cache."""


class Scores(NamedTuple):
    """The similarities of every image with every caption, in both directions.

    Attributes:
        image_to_text: s^I, [images, texts].
        text_to_image: s^T, also [images, texts]. It equals s^I for the global similarity, not for the token-wise one.
    """

    image_to_text: Tensor
    text_to_image: Tensor


def global_similarity(image: Tensor, text: Tensor) -> Scores:
    """Compute the global similarity: dot products of global features, s^I = s^T.

    Args:
        image: [images, d], unit vectors.
        text: [texts, d], unit vectors.
    """
    scores = image @ text.T
    return Scores(scores, scores)


def token_similarity(image: Tensor, text: Tensor, counted: Tensor, with_first: bool = False) -> Scores:
    """Compute the token-wise similarity (late interaction).

    Each token finds its best match on the other side; the similarity is the mean over the tokens of one side. On a GPU
    with Triton, ``wukong.model.token_triton`` computes it if its kernels fit; otherwise this module does, in blocks.

    The scores and gradients are exact up to rounding. If several tokens match equally well, one of them gets the
    gradient. Scores of bfloat16 tokens are float32. Beside inputs and outputs, the memory is one byte for each image,
    text and token of either side (two bytes with more than 256 tokens); none if no gradient is needed.

    Args:
        image: [images, n1, d], unit vectors of the patches without [CLS].
        text: [texts, n2, d], unit vectors.
        counted: bool [texts, n2], True for tokens that count: not padding and not [CLS]. Every text has at least one.
        with_first: whether the best match of a patch (s^I) may also be a text's first token, [CLS]. [CLS] never counts
            in s^T.
    """
    matched = counted
    if with_first:
        matched = counted.clone()
        matched[:, 0] = True
    counted = torch.stack([matched, counted])
    if _kernels_run(image) and _kernels_fit(image, text):
        from wukong.model import token_triton

        return Scores(*token_triton.token_similarity(image, text, counted))
    return Scores(*_TokenSimilarity.apply(image, text, counted))


def _kernels_run(image: Tensor) -> bool:
    return image.is_cuda and image.dtype != torch.float64 and _HAS_TRITON


def _kernels_fit(image: Tensor, text: Tensor) -> bool:
    """Whether the kernels can be launched for these shapes on this GPU; if not, log the reason once."""
    from wukong.model import token_triton

    problem = token_triton.problem(image, text)
    if problem:
        _warn_once(problem)
    return not problem


@cache
def _warn_once(problem: str) -> None:
    log.warning("the token-wise similarity runs without Triton's kernels, slower and with more memory: %s", problem)


def token_similarity_of_pairs(image: Tensor, text: Tensor, counted: Tensor, with_first: bool = False) -> Scores:
    """Compute the token-wise similarity of each image with one caption, [pairs]; arguments as ``token_similarity``."""
    matched = counted.clone()
    matched[:, 0] |= with_first
    products = image @ text.mT
    best = products.masked_fill(~matched[:, None], -torch.inf).amax(2)
    words = products.amax(1).masked_fill(~counted, 0.0)
    return Scores(best.mean(1), words.sum(1) / counted.sum(1))


class _TokenSimilarity(torch.autograd.Function):
    """``token_similarity`` in blocks; ``counted`` is bool [2, texts, n2]: what a patch may match, and what counts."""

    @staticmethod
    def forward(ctx: Any, image: Tensor, text: Tensor, counted: Tensor) -> tuple[Tensor, Tensor]:
        matched, counted = counted
        patches = image.shape[1]
        exact = torch.promote_types(image.dtype, torch.float32)
        to_text, to_image = (image.new_empty(len(text), len(image), dtype=exact) for _ in range(2))
        blocks = list(_blocks(len(image), patches, matched))
        winners: list[Tensor] = []
        trained = any(ctx.needs_input_grad)
        for images, texts, length in blocks:
            part, taken, allowed = text[texts, :length], counted[texts, :length], matched[texts, :length]
            products = (part.flatten(0, 1) @ image[images].flatten(0, 1).T).view(len(texts), length, -1, patches)
            if not allowed.all():
                products.masked_fill_(~allowed[:, :, None, None], -torch.inf)
            best, word = products.max(1)
            to_text[texts, images] = best.mean(2, dtype=exact)
            best, patch = products.max(3)
            best.masked_fill_(~taken[:, :, None], 0.0)
            to_image[texts, images] = best.sum(1, dtype=exact) / taken.sum(1, keepdim=True)
            if trained:
                winners += [word.to(_index_type(length)), patch.to(_index_type(patches))]
        ctx.save_for_backward(image, text, counted, *winners)
        ctx.blocks = blocks
        return to_text.T, to_image.T

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, to_text: Tensor, to_image: Tensor) -> tuple[Tensor, Tensor, None]:
        image, text, counted, *winners = ctx.saved_tensors
        patches = image.shape[1]
        # A sum of many small terms is not exact in half precision.
        exact = torch.promote_types(image.dtype, torch.float32)
        image_gradient, text_gradient = torch.zeros_like(image, dtype=exact), torch.zeros_like(text, dtype=exact)
        for number, (images, texts, length) in enumerate(ctx.blocks):
            rows, words = image[images].flatten(0, 1), text[texts, :length].flatten(0, 1)
            taken = counted[texts, :length]
            # The best word of each patch, [texts, rows], as a row number in words; and its weight.
            word = winners[2 * number].flatten(1).int() + length * _count(len(texts), image)[:, None]
            weight = (to_text.T[texts, images] / patches).repeat_interleave(patches, 1)
            for_image = _sums(word.T, words, weight.T)
            for_text = _scattered_sums(word, rows, weight, len(words))
            # The best patch of each word, [texts * length, images], as a row number in rows; and its weight.
            patch = winners[2 * number + 1].flatten(0, 1).int() + patches * _count(len(rows) // patches, image)
            weight = ((to_image.T[texts, images] / taken.sum(1, keepdim=True))[:, None] * taken[:, :, None]).flatten(
                0, 1
            )
            for_image += _scattered_sums(patch.T, words, weight.T, len(rows))
            for_text += _sums(patch, rows, weight)
            image_gradient[images] += for_image.view(-1, *image.shape[1:])
            text_gradient[texts, :length] += for_text.view(len(texts), length, -1)
        return image_gradient.to(image.dtype), text_gradient.to(text.dtype), None


def _blocks(images: int, patches: int, matched: Tensor) -> Iterator[tuple[slice, Tensor, int]]:
    """Divide the work into blocks: a slice of images, texts of similar length, and the length of the longest."""
    positions = torch.arange(1, matched.shape[1] + 1, device=matched.device)
    lengths = (matched * positions).amax(1).cpu()
    order = lengths.argsort(stable=True)
    step = max(1, _BLOCK_ROWS // patches)
    for first in range(0, images, step):
        last = min(first + step, images)
        start = 0
        while start < len(order):
            end, rows = start + 1, (last - first) * patches
            while end < len(order) and (end + 1 - start) * int(lengths[order[end]]) * rows <= _BLOCK_PRODUCTS:
                end += 1
            yield slice(first, last), order[start:end].to(matched.device), int(lengths[order[end - 1]])
            start = end


def _count(size: int, like: Tensor) -> Tensor:
    return torch.arange(size, device=like.device, dtype=torch.int32)


def _index_type(size: int) -> torch.dtype:
    return torch.uint8 if size <= 256 else torch.int16


def _sums(places: Tensor, values: Tensor, weight: Tensor) -> Tensor:
    """Return [rows, d]; row r is the sum over k of ``weight[r, k] * values[places[r, k]]``."""
    return F.embedding_bag(
        places.contiguous(), values, per_sample_weights=weight.to(values.dtype).contiguous(), mode="sum"
    )


def _scattered_sums(places: Tensor, values: Tensor, weight: Tensor, rows: int) -> Tensor:
    """The transpose of ``_sums``, [rows, d]; row r sums ``weight[k, c] * values[c]`` where ``places[k, c]`` is r."""
    keys, order = places.flatten().sort(stable=True)
    offsets = torch.searchsorted(keys, torch.arange(rows, device=keys.device, dtype=keys.dtype), out_int32=True)
    sources = (order % places.shape[1]).int()
    weights = weight.flatten()[order].to(values.dtype)
    return F.embedding_bag(sources, values, offsets, per_sample_weights=weights, mode="sum")
