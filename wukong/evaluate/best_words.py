"""The token-wise similarity of images to texts, s^I, on a processor: the mean over patches of the best token's product.

Texts of equal length lie behind one another, so that one product of matrices serves many texts and patches without any
padding, and the maximum over tokens runs along whole rows. The other direction, s^T, is not computed.

``exact`` computes in float32. ``rough`` computes in integers of 8 bits, of which a processor with VNNI multiplies four
times as many in the same time; ``wukong.evaluate.classification`` finds with it which scores it must compute exactly.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from wukong.model.dual import Texts

_BLOCK_TOKENS, _BLOCK_PATCHES = 4096, 980
"""Text tokens, and patches (of 20 images with 49), in a block: 16 MB of products, which are large matrices."""
_ROUGH_TOKENS = 1024
_LARGEST = 127


def half_is_quicker(device: torch.device) -> bool:
    """Whether a device has units for products of 16-bit numbers: a GPU, on which they do ten times as many."""
    return device.type == "cuda"


def rough_is_quicker() -> bool:
    """Whether this processor has instructions for products of 8-bit integers (VNNI)."""
    return torch.cpu._is_vnni_supported()


def exact(image: Tensor, text: Texts, with_first: bool = False) -> Tensor:
    """Compute s^I in float32.

    Args:
        image: unit vectors, [images, patches, d].
        text: unit vectors, [texts, tokens, d], and the tokens that count, which are one piece of each row.
        with_first: whether [CLS], the first token, may be the best one.

    Returns:
        float32 [images, texts].
    """
    images, patches, _ = image.shape
    columns = image.float().flatten(0, 1).T
    scores = torch.empty(images, len(text.vectors))
    # One buffer for all blocks: a fresh one of this size comes from the system page by page each time.
    longest = max(_BLOCK_TOKENS, text.counted.shape[1])
    some = min(images, max(1, _BLOCK_PATCHES // patches))
    buffer = torch.empty(longest * some * patches)
    for rows, places in _alike(text, with_first, _BLOCK_TOKENS):
        tokens = text.vectors[rows[:, None], places].float().flatten(0, 1)
        for begin in range(0, images, some):
            part = slice(begin, min(begin + some, images))
            block = columns[:, part.start * patches : part.stop * patches]
            products = buffer[: len(tokens) * block.shape[1]].view(len(tokens), -1)
            best = torch.mm(tokens, block, out=products).view(*places.shape, -1).amax(1)
            scores[part, rows] = best.view(len(rows), -1, patches).mean(2).T
    return scores


def rough(image: Tensor, text: Texts, with_first: bool = False) -> Tensor:
    """Compute s^I from vectors that are rounded to 8 bits.

    The numbers of an image, and those of a text, are whole multiples of a step: their largest one's 127th part. All
    sums are of integers, so the result does not depend on the order.

    Args:
        image: vectors as in ``exact``; finite.
        text: vectors and tokens as in ``exact``; finite.
        with_first: whether [CLS] may be the best one, as in ``exact``.

    Returns:
        float32 [images, texts], off by at most half a step of the image times the sum of the sizes of a token's
        numbers, and the same the other way round; in the mean over many patches and prompts by far less.
    """
    images, patches, width = image.shape
    whole = torch.int32 if patches * width * _LARGEST**2 < torch.iinfo(torch.int32).max else torch.int64
    image_steps, some = _steps(image), min(images, max(1, _BLOCK_PATCHES // patches))
    columns = [
        _rounded(part, steps).flatten(0, 1).T.contiguous()
        for part, steps in zip(image.split(some), image_steps.split(some), strict=True)
    ]
    scores = torch.empty(images, len(text.vectors))
    longest = max(_ROUGH_TOKENS, text.counted.shape[1])
    buffer = torch.empty(longest * some * patches, dtype=torch.int32)
    for rows, places in _alike(text, with_first, _ROUGH_TOKENS):
        vectors = text.vectors[rows[:, None], places]
        steps = _steps(vectors)
        tokens = _rounded(vectors, steps).flatten(0, 1)
        for begin, block in zip(range(0, images, some), columns, strict=True):
            part = slice(begin, min(begin + some, images))
            products = buffer[: len(tokens) * block.shape[1]].view(len(tokens), -1)
            best = torch._int_mm(tokens, block, out=products).view(*places.shape, -1).amax(1)
            total = best.view(len(rows), -1, patches).sum(2, dtype=whole)
            scores[part, rows] = total.T * steps * (image_steps[part, None] / patches)
    return scores


def _alike(text: Texts, with_first: bool, most: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Iterate over texts of equal length, in blocks of at most so many tokens.

    So few texts that they are one block stay together: the last token of a shorter one stands for its padding, which
    changes no maximum.

    Returns:
        The texts' rows, [texts], and the places of their tokens that may match, [texts, tokens].
    """
    start = torch.zeros_like(text.counted[:, 0], dtype=torch.int64) if with_first else text.counted.int().argmax(1)
    end = (text.counted * torch.arange(1, text.counted.shape[1] + 1)).amax(1)
    length = end - start
    longest = int(length.max())
    if longest * len(length) <= most:
        places = start[:, None] + torch.arange(longest)
        yield torch.arange(len(length)), torch.minimum(places, end[:, None] - 1)
        return
    for size in length.unique().tolist():
        for rows in (length == size).nonzero().squeeze(1).split(max(1, most // size)):
            yield rows, start[rows, None] + torch.arange(size)


def _steps(vectors: Tensor) -> Tensor:
    """Return the step of each item, [items]."""
    return vectors.abs().amax((1, 2)).clamp_min(torch.finfo(torch.float32).tiny) / _LARGEST


def _rounded(vectors: Tensor, steps: Tensor) -> Tensor:
    return (vectors / steps[:, None, None]).round().to(torch.int8)
