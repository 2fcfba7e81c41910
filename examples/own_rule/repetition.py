"""Captions in which one character is repeated too often are dropped: ``哈哈哈哈哈哈``.

This is a whole rule. Copied into ``wukong/curate/rules/`` it adds the key ``filter.max_repetition`` to experiments, a
row to the funnel of each report, and the drop reason ``repetition``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from wukong.config.section import Fraction, Strict
from wukong.curate.rule import Batch, Rule

if TYPE_CHECKING:
    import polars as pl


class RepetitionSettings(Strict):
    """Keys of ``filter``."""

    max_repetition: Fraction = Field(1.0, description="share of a caption that its most frequent character may be")


def _compute(batch: Batch, _settings: RepetitionSettings) -> dict[str, pl.Series]:
    import polars as pl

    shares = [max(map(text.count, set(text))) / len(text) if text else 0.0 for text in batch.captions]
    return {"repetition": pl.Series(shares, dtype=pl.Float32)}


def _drops(settings: RepetitionSettings) -> pl.Expr:
    import polars as pl

    return pl.col("repetition") > settings.max_repetition


RULE = Rule(
    name="repetition",
    place=65,
    title="caption does not repeat itself",
    version=1,
    settings=RepetitionSettings,
    enabled=lambda settings: settings.max_repetition < 1,
    compute=_compute,
    drops=_drops,
)
