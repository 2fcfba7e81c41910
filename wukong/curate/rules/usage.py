"""Pictures are dropped whose owners do not want the use that is made of them here; the paper did not ask.

The crawl stores what owners say (``wukong/crawl/usage.py``): the directives ``noai``, ``noimageai`` and ``noindex`` of
``X-Robots-Tag``, and the preferences of the IETF's AIPREF drafts, from the header ``Content-Usage`` and robots.txt. A
model is trained on the pictures, so ``train-ai=n`` counts; the search page shows them, and a release lists them, so
``search=n`` and ``noindex`` count too. A picture of which nothing is known is kept.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from wukong.config.section import Strict
from wukong.curate.rule import Dropped, Pairs, Rule

if TYPE_CHECKING:
    import polars as pl


class UsageRule(Rule):
    place = 75
    title = "owners do not object"

    class Settings(Strict):
        refused_usage: tuple[Literal["noai", "noimageai", "noindex", "search=n", "train-ai=n"], ...] = Field(
            ("noai", "noimageai", "noindex", "search=n", "train-ai=n"),
            description="statements of its owner (X-Robots-Tag, Content-Usage) under which a picture is left out; an "
            "empty list leaves none out",
        )

    def drops(self, pairs: Pairs, settings: Settings) -> Dropped:
        refused = "|".join(settings.refused_usage)
        if not refused or "usage" not in pairs.columns:
            return False
        return pairs["usage"].str.contains(f"(?:^|, )(?:{refused})(?:,|$)")

    def kinds(self, pairs: Pairs, settings: Settings) -> pl.Series:
        return pairs["usage"]


RULE = UsageRule()
