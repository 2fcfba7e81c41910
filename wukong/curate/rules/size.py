"""Pictures with a short side are dropped (section 3.1: both sides are greater than 200 pixels)."""

from pydantic import Field

from wukong.config.section import Strict
from wukong.curate.rule import Batch, Check, Columns, Dropped, Pairs, Rule


class SizeRule(Rule):
    place = 10
    title = "sides over the minimum"
    crawl_limits = ("min_side",)

    class Settings(Strict):
        min_side: int = Field(201, ge=0, description="the paper keeps images with both sides greater than 200 pixels")

    def compute(self, batch: Batch, settings: Settings) -> Columns:
        return {"shorter_side": batch.pairs.select("width", "height").fill_null(0).min_horizontal()}

    def drops(self, pairs: Pairs, settings: Settings) -> Dropped:
        return pairs["shorter_side"] < settings.min_side

    def check(self, settings: Settings, gate: Strict) -> Check:
        return Check("sides", "shorter_side", {"min_value": settings.min_side})

    def audit(self, pairs: Pairs, loaded: None) -> Columns:
        return {"shorter_side": pairs.select("width", "height").min_horizontal()}


RULE = SizeRule()
