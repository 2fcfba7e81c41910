"""Which of several pairs with much the same picture is kept."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import polars as pl

    from wukong.curate.rule import PictureBatch

Keep = Literal["first", "sharpest", "best-caption"]
"""The first by key; the one whose picture shows the most detail; or the one whose caption fits its picture best, by
``filter.similarity_model``, and without that the one with the longest caption: all have passed the limits of length."""


def scores(pairs: pl.DataFrame, keep: Keep) -> pl.Series:
    """The score of each pair: the highest is kept, and of equal ones the first by key.

    Args:
        pairs: with ``similarity`` and ``length``, and with ``sharpness`` where the sharpest is kept.
        keep: which is kept.
    """
    import polars as pl

    score = {
        "first": pl.lit(0),
        "sharpest": pl.col("sharpness"),
        "best-caption": pl.coalesce("similarity", "length"),
    }[keep]
    return pairs.with_columns(score=score.cast(pl.Float64))["score"]


def sharpness(batch: PictureBatch, _settings: Any) -> pl.Series:
    """How much detail each picture shows: the squares of the differences of neighbouring pixels in gray, summed.

    The sum is that of the slopes over the picture's area, which a change of size alone does not change. So a picture
    that was made smaller has less, by what it lost, and gains nothing when it is made larger again.
    """
    import numpy as np
    import polars as pl

    sums = []
    for image in batch.decoded:
        gray = np.asarray(image.convert("L"), np.int64)
        sums.append(float(sum((np.diff(gray, axis=axis) ** 2).sum() for axis in (0, 1))))
    return pl.Series(sums, dtype=pl.Float64)
