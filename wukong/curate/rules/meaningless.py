"""Captions that say nothing of their picture are dropped (section 3.2): ``000.jpg``, camera names, URLs, numbers.

This rule comes before the language check, so that ``000.jpg`` is counted as meaningless and not as foreign.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from wukong.config.section import Strict
from wukong.curate.rule import Batch, Rule

if TYPE_CHECKING:
    import polars as pl


def _compute(batch: Batch, _settings: Strict) -> dict[str, pl.Expr]:
    import polars as pl

    from wukong.curate.text.meaningless import is_meaningless

    return {"meaningless": is_meaningless(pl.lit(batch.normal))}


def _drops(_settings: Strict) -> pl.Expr:
    import polars as pl

    return pl.col("meaningless")


RULE = Rule(
    name="meaningless",
    place=30,
    title="caption says something",
    version=1,
    settings=Strict,
    compute=_compute,
    drops=_drops,
)
