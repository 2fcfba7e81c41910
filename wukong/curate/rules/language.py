"""Captions that are not Chinese are dropped (section 3.2)."""

from pydantic import Field

from wukong.config.section import Fraction, Strict
from wukong.curate.rule import Batch, Check, Columns, Dropped, Pairs, Rule
from wukong.curate.rules.length import LengthRule


class LanguageRule(Rule):
    place = 40
    title = "caption is Chinese"
    Settings = LengthRule.Settings

    class GateSettings(Strict):
        min_chinese_share: Fraction = Field(0.9, description="share of captions that must hold a Chinese character")

    def compute(self, batch: Batch, settings: LengthRule.Settings) -> Columns:
        return {"chinese": batch.scripts[1]}

    def drops(self, pairs: Pairs, settings: LengthRule.Settings) -> Dropped:
        # Whoever keeps captions without a Chinese character (``min_length: 0``) keeps those in other languages.
        return settings.min_length > 0 and ~pairs["chinese"]

    def check(self, settings: LengthRule.Settings, gate: GateSettings) -> Check:
        return Check("chinese", "han", {"min_value": 1, "mostly": gate.min_chinese_share}, place=65)

    def audit(self, pairs: Pairs, loaded: None) -> Columns:
        import polars as pl

        from wukong.curate.text.characters import han_characters

        return {"han": han_characters(pl.col("caption"))}


RULE = LanguageRule()
