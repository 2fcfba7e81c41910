"""Captions that occur too often are dropped (section 3.2: more than 10 times in the whole corpus)."""

from pydantic import Field

from wukong.config.section import Positive, Strict
from wukong.curate.rule import Batch, Check, Column, Columns, Dropped, Pairs, Rule


class FrequencyRule(Rule):
    place = 60
    title = "caption not too frequent"
    stored = (Column("caption_count", "int64", of_caption=True),)

    class Settings(Strict):
        max_caption_count: Positive = Field(
            10, description="pairs whose caption occurs more often than this are left out"
        )

    class GateSettings(Strict):
        max_caption_count: Positive = Field(10, description="pairs that may have the same caption")

    def compute(self, batch: Batch, settings: Settings) -> Columns:
        import polars as pl

        from wukong.curate.caption_counts import hashes_of_normal

        return {"caption_count": pl.Series(batch.counts.of(hashes_of_normal(batch.normal)), dtype=pl.Int64)}

    def drops(self, pairs: Pairs, settings: Settings) -> Dropped:
        return pairs["caption_count"] > settings.max_caption_count

    def check(self, settings: Settings, gate: GateSettings) -> Check:
        return Check("caption_frequency", "caption_count", {"min_value": 1, "max_value": gate.max_caption_count})


RULE = FrequencyRule()
