"""Captions that are not Chinese are dropped (section 3.2)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from wukong.config.section import Fraction, Strict
from wukong.curate.rule import Check, Rule
from wukong.curate.rules.length import LengthSettings

if TYPE_CHECKING:
    import polars as pl


class LanguageGate(Strict):
    """Keys of ``validation``."""

    min_chinese_share: Fraction = Field(0.9, description="share of captions that must hold a Chinese character")


def _drops(settings: LengthSettings) -> pl.Expr:
    import polars as pl

    # Whoever keeps captions without a Chinese character (``min_length: 0``) keeps those in other languages.
    return ~pl.col("chinese") & (settings.min_length > 0)


def _chinese_characters() -> pl.Expr:
    import polars as pl

    from wukong.curate.text.characters import han_characters

    return han_characters(pl.col("caption"))


RULE = Rule(
    name="language",
    place=40,
    title="caption is Chinese",
    version=1,
    settings=LengthSettings,
    gate_settings=LanguageGate,
    compute=lambda batch, settings: {"chinese": batch.scripts[1]},
    drops=_drops,
    check=Check(
        name="chinese",
        place=50,
        column="han",
        expectation="ExpectColumnValuesToBeBetween",
        arguments=lambda settings, gate: {"min_value": 1, "mostly": gate.min_chinese_share},
        audit=lambda pairs, loaded: _chinese_characters(),
    ),
)
