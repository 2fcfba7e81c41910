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
from wukong.curate.rule import Batch, Rule

if TYPE_CHECKING:
    import polars as pl


class UsageSettings(Strict):
    """Keys of ``filter``."""

    refused_usage: tuple[Literal["noai", "noimageai", "noindex", "search=n", "train-ai=n"], ...] = Field(
        ("noai", "noimageai", "noindex", "search=n", "train-ai=n"),
        description="statements of its owner (X-Robots-Tag, Content-Usage) under which a picture is left out; an empty "
        "list leaves none out",
    )


def _compute(batch: Batch, settings: UsageSettings) -> dict[str, pl.Expr]:
    import polars as pl

    said = pl.col("usage") if "usage" in batch.pairs.columns else pl.lit(None, pl.String)
    return {"said": said}


def _drops(settings: UsageSettings) -> pl.Expr:
    import polars as pl

    if not settings.refused_usage:
        return pl.lit(False)
    return pl.col("said").str.contains(f"(?:^|, )(?:{'|'.join(settings.refused_usage)})(?:,|$)").fill_null(value=False)


RULE = Rule(
    name="usage",
    place=75,
    title="owners do not object",
    version=1,
    settings=UsageSettings,
    compute=_compute,
    drops=_drops,
    kinds=lambda pairs, _settings, _loaded: pairs["usage"],
)
