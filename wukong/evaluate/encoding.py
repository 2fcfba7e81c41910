"""Encode the images and the texts of an evaluation set, a batch at a time."""

import logging
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from wukong.evaluate.data_set import Data
from wukong.evaluate.model import Model
from wukong.evaluate.protocol import Protocol
from wukong.evaluate.vectors import Rows, StoredTexts, Tokens
from wukong.model.dual import Texts

log = logging.getLogger(__name__)

_BATCH_IMAGES, _BATCH_TEXTS, _LOGGED_IMAGES = 64, 4096, 5000


def images(model: Model, data: Data, protocol: Protocol, cache: Path) -> Rows:
    """Encode all images of a set; a batch of them is decoded at a time. Vectors of tokens go to a file in the cache."""
    parts: list[Tensor] = []
    stored = Tokens(cache) if model.token_wise else None
    for start in range(0, len(data), _BATCH_IMAGES):
        pictures = [data.image(i) for i in range(start, min(start + _BATCH_IMAGES, len(data)))]
        vectors = model.encode_images(pictures, protocol)
        if stored is None:
            parts.append(vectors)
        else:
            stored.append(vectors)
        if start // _LOGGED_IMAGES != (start + len(pictures)) // _LOGGED_IMAGES:
            log.info("%s: %d of %d images encoded", data.name, start + len(pictures), len(data))
    return torch.cat(parts) if stored is None else stored


def texts(model: Model, texts: Sequence[str], protocol: Protocol, cache: Path) -> Texts | StoredTexts:
    """Encode texts. Vectors of tokens go to a file in the cache, some thousand texts at a time."""
    if not model.token_wise:
        return model.encode_texts(texts, protocol)
    stored, counted = Tokens(cache), []
    # Parts of one size: a model refuses texts of which it knows few words, and a part of few texts may be of such.
    for rows in np.array_split(np.arange(len(texts)), math.ceil(len(texts) / _BATCH_TEXTS)):
        encoded = model.encode_texts([texts[row] for row in rows], protocol)
        ends = (encoded.counted * torch.arange(1, encoded.counted.shape[1] + 1)).amax(1)
        stored.append(encoded.vectors, ends)
        counted.append(encoded.counted)
    longest = max(each.shape[1] for each in counted)
    padded = [F.pad(each, (0, longest - each.shape[1])) for each in counted]
    return StoredTexts(stored, torch.cat(padded))
