"""Long and narrow pictures are dropped (section 3.1: the ratio of the sides is at most 3)."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING

from pydantic import Field

from wukong.config.section import Strict
from wukong.curate.rule import Check, Column, Rule

if TYPE_CHECKING:
    import polars as pl


class AspectRatioSettings(Strict):
    """Keys of ``filter``."""

    max_aspect_ratio: float = Field(3.0, ge=1.0, description="longer side over shorter side, as in the paper")


def aspect_ratio() -> pl.Expr:
    """Long side over short side of the original picture, at least 1; infinite where a side is 0 or unknown."""
    import polars as pl

    sides = pl.col("width", "height").fill_null(0)
    long, short = pl.max_horizontal(sides).cast(pl.Float32), pl.min_horizontal(sides).cast(pl.Float32)
    return pl.when(short > 0).then(long / short).otherwise(float("inf")).cast(pl.Float32)


def _drops(settings: AspectRatioSettings) -> pl.Expr:
    import polars as pl

    return pl.col("aspect_ratio") > settings.max_aspect_ratio


def _audited_ratio() -> pl.Expr:
    import polars as pl

    return pl.max_horizontal("width", "height") / pl.min_horizontal("width", "height")


RULE = Rule(
    name="aspect_ratio",
    place=20,
    title="aspect ratio within the limit",
    version=1,
    settings=AspectRatioSettings,
    compute=lambda batch, settings: {"aspect_ratio": aspect_ratio()},
    stored=(Column("aspect_ratio", "float32", place=20),),
    drops=_drops,
    check=Check(
        name="aspect_ratio",
        place=20,
        column="ratio",
        expectation="ExpectColumnValuesToBeBetween",
        arguments=lambda settings, gate: {"max_value": settings.max_aspect_ratio},
        audit=lambda pairs, loaded: _audited_ratio(),
    ),
    crawl_limits={"max_aspect_ratio": operator.gt},
)
