"""Pictures with a short side are dropped (section 3.1: both sides are greater than 200 pixels)."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING

from pydantic import Field

from wukong.config.section import Strict
from wukong.curate.rule import Check, Rule

if TYPE_CHECKING:
    import polars as pl


class SizeSettings(Strict):
    """Keys of ``filter``."""

    min_side: int = Field(201, ge=0, description="the paper keeps images with both sides greater than 200 pixels")


def shorter_side() -> pl.Expr:
    """Pixels of the shorter side of the original picture; 0 where the size is unknown."""
    import polars as pl

    return pl.min_horizontal(pl.col("width", "height").fill_null(0)).cast(pl.Int32)


def _drops(settings: SizeSettings) -> pl.Expr:
    import polars as pl

    return pl.col("shorter_side") < settings.min_side


def _audited_side() -> pl.Expr:
    import polars as pl

    return pl.min_horizontal("width", "height")


RULE = Rule(
    name="size",
    place=10,
    title="sides over the minimum",
    version=1,
    settings=SizeSettings,
    compute=lambda batch, settings: {"shorter_side": shorter_side()},
    drops=_drops,
    check=Check(
        name="sides",
        place=10,
        column="shorter_side",
        expectation="ExpectColumnValuesToBeBetween",
        arguments=lambda settings, gate: {"min_value": settings.min_side},
        audit=lambda pairs, loaded: _audited_side(),
    ),
    crawl_limits={"min_side": operator.lt},
)
