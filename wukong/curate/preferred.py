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
    """How much detail each picture shows: the squares of its Laplacian in gray, summed over its pixels.

    A picture that was made smaller has fewer pixels, one that was made larger or blurred has less in each.
    """
    import numpy as np
    import polars as pl

    sums = []
    for image in batch.decoded:
        gray = np.asarray(image.convert("L"), np.int64)
        across = gray[1:-1, :-2] + gray[1:-1, 2:]
        down = gray[:-2, 1:-1] + gray[2:, 1:-1]
        sums.append(float(((across + down - 4 * gray[1:-1, 1:-1]) ** 2).sum()))
    return pl.Series(sums, dtype=pl.Float64)
