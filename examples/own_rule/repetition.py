"""Captions in which one character is repeated too often are dropped: ``哈哈哈哈哈哈``.

This is a whole rule. Copied into ``wukong/curate/rules/`` it adds the key ``filter.max_repetition`` to experiments, a
row to the funnel of each report, and the drop reason ``repetition``.
"""

from pydantic import Field

from wukong.config.section import Fraction, Strict
from wukong.curate.rule import Batch, Columns, Dropped, Pairs, Rule


class Repetition(Rule):
    """Off unless ``max_repetition`` is set."""

    place = 65
    title = "caption does not repeat itself"

    class Settings(Strict):
        """Keys of ``filter``."""

        max_repetition: Fraction = Field(1.0, description="share of a caption that its most frequent character may be")

    def enabled(self, settings: Settings) -> bool:
        """Whether some captions may go."""
        return settings.max_repetition < 1

    def compute(self, batch: Batch, settings: Settings) -> Columns:
        """The share of the most frequent character of each caption."""
        import polars as pl

        shares = [max(map(text.count, set(text))) / len(text) if text else 0.0 for text in batch.captions]
        return {"repetition": pl.Series(shares, dtype=pl.Float32)}

    def drops(self, pairs: Pairs, settings: Settings) -> Dropped:
        """Captions that repeat one character too often."""
        return pairs["repetition"] > settings.max_repetition


RULE = Repetition()
