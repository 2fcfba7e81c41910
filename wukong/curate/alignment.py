"""How well a caption fits its picture, by a model of ours: the similarity that the model was trained to make high."""

from collections.abc import Sequence

import polars as pl
import torch

from wukong.data import images
from wukong.model.saved_model import SavedModel


def similarities(
    model: SavedModel, pictures: Sequence[bytes], captions: Sequence[str], names: Sequence[str]
) -> pl.Series:
    """The model's similarity of each picture to its caption, Float32 in [-1, 1].

    Args:
        model: of the project, ``wukong.model.saved_model.load``.
        pictures: encoded; one batch.
        captions: as many.
        names: what error messages call the pictures.

    Raises:
        DataError: a picture cannot be decoded.
    """
    decoded = [images.decode(data, name) for data, name in zip(pictures, names, strict=True)]
    with torch.inference_mode():
        scores = model.similarity(model.encode_image(decoded), model.encode_text(captions))
    return pl.Series(scores.diagonal().float().numpy(), dtype=pl.Float32)
