"""Long and narrow pictures are dropped (section 3.1: the ratio of the sides is at most 3)."""

from pydantic import Field

from wukong.config.section import Strict
from wukong.curate.rule import Batch, Check, Column, Columns, Dropped, Pairs, Rule


class AspectRatioRule(Rule):
    place = 20
    title = "aspect ratio within the limit"
    stored = (Column("aspect_ratio", "float32"),)
    crawl_limits = ("max_aspect_ratio",)

    class Settings(Strict):
        max_aspect_ratio: float = Field(3.0, ge=1.0, description="longer side over shorter side, as in the paper")

    def compute(self, batch: Batch, settings: Settings) -> Columns:
        import polars as pl

        sides = pl.col("width", "height").fill_null(0)
        long, short = pl.max_horizontal(sides).cast(pl.Float32), pl.min_horizontal(sides).cast(pl.Float32)
        # Over every limit where a side is 0 or unknown.
        return {"aspect_ratio": pl.when(short > 0).then(long / short).otherwise(float("inf")).cast(pl.Float32)}

    def drops(self, pairs: Pairs, settings: Settings) -> Dropped:
        return pairs["aspect_ratio"] > settings.max_aspect_ratio

    def check(self, settings: Settings, gate: Strict) -> Check:
        return Check("aspect_ratio", "ratio", {"max_value": settings.max_aspect_ratio})

    def audit(self, pairs: Pairs, loaded: None) -> Columns:
        sides = pairs.select("width", "height")
        return {"ratio": sides.max_horizontal() / sides.min_horizontal()}


RULE = AspectRatioRule()
