"""How alike a picture and a caption are: globally or token by token (section 4.3)."""

from typing import NamedTuple

import torch
from torch import Tensor

_BLOCK_ELEMENTS = 2**24


class Scores(NamedTuple):
    """Similarities of every picture with every caption, seen from either side.

    Attributes:
        image_to_text: s^I, [images, texts].
        text_to_image: s^T, [images, texts] too: the same for the global similarity, not for the token-wise one.
    """

    image_to_text: Tensor
    text_to_image: Tensor


def global_similarity(image: Tensor, text: Tensor) -> Scores:
    """Dot products of global features: s^I = s^T.

    Args:
        image: [images, d], of unit length.
        text: [texts, d], of unit length.
    """
    scores = image @ text.T
    return Scores(scores, scores)


def token_similarity(image: Tensor, text: Tensor, counted: Tensor) -> Scores:
    """Late interaction: each token takes its best match on the other side, and a side's matches are averaged.

    The block of products between image tokens and text tokens is computed once and reduced in both directions, for as
    many texts at a time as fit a bound on memory.

    Args:
        image: [images, n1, d], patches without [CLS], of unit length.
        text: [texts, n2, d], of unit length.
        counted: bool [texts, n2], True where a token takes part: neither padding nor [CLS]. Every text has one.
    """
    images, patches, _ = image.shape
    texts, tokens, _ = text.shape
    step = max(1, _BLOCK_ELEMENTS // max(1, images * patches * tokens))
    blocks = [_token_block(image, text[i : i + step], counted[i : i + step]) for i in range(0, texts, step)]
    return Scores(torch.cat([block[0] for block in blocks], 1), torch.cat([block[1] for block in blocks], 1))


def _token_block(image: Tensor, text: Tensor, counted: Tensor) -> Scores:
    products = torch.einsum("ipd,jtd->ijpt", image, text)
    best_text = products.masked_fill(~counted[None, :, None, :], -torch.inf).amax(3)
    best_image = products.amax(2).masked_fill(~counted[None], 0.0)
    return Scores(best_text.mean(2), best_image.sum(2) / counted.sum(1))
