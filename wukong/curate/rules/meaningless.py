"""Captions that say nothing of their picture are dropped (section 3.2): ``000.jpg``, camera names, URLs, numbers.

This rule comes before the language check, so that ``000.jpg`` is counted as meaningless and not as foreign.
"""

from wukong.config.section import Strict
from wukong.curate.rule import Batch, Columns, Dropped, Pairs, Rule


class MeaninglessRule(Rule):
    place = 30
    title = "caption says something"

    def compute(self, batch: Batch, settings: Strict) -> Columns:
        import polars as pl

        from wukong.curate.text.meaningless import is_meaningless

        return {"meaningless": is_meaningless(pl.lit(batch.normal))}

    def drops(self, pairs: Pairs, settings: Strict) -> Dropped:
        return pairs["meaningless"]


RULE = MeaninglessRule()
