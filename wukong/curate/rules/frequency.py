"""Captions that occur too often are dropped (section 3.2: more than 10 times in the whole corpus)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from wukong.config.section import Positive, Strict
from wukong.curate.rule import Batch, Check, Column, Rule

if TYPE_CHECKING:
    import polars as pl


class FrequencySettings(Strict):
    """Keys of ``filter``."""

    max_caption_count: Positive = Field(10, description="pairs whose caption occurs more often than this are left out")


class FrequencyGate(Strict):
    """Keys of ``validation``."""

    max_caption_count: Positive = Field(10, description="pairs that may have the same caption")


def _compute(batch: Batch, _settings: FrequencySettings) -> dict[str, pl.Series]:
    import polars as pl

    from wukong.curate.caption_counts import hashes_of_normal

    return {"caption_count": pl.Series(batch.counts.of(hashes_of_normal(batch.normal)), dtype=pl.Int64)}


def _drops(settings: FrequencySettings) -> pl.Expr:
    import polars as pl

    return pl.col("caption_count") > settings.max_caption_count


RULE = Rule(
    name="frequency",
    place=60,
    title="caption not too frequent",
    version=1,
    settings=FrequencySettings,
    gate_settings=FrequencyGate,
    compute=_compute,
    stored=(Column("caption_count", "int64", place=30, of_caption=True),),
    drops=_drops,
    check=Check(
        name="caption_frequency",
        place=40,
        column="caption_count",
        expectation="ExpectColumnValuesToBeBetween",
        arguments=lambda settings, gate: {"min_value": 1, "max_value": gate.max_caption_count},
    ),
)
