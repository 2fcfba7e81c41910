"""Of pairs whose pictures have vectors near each other one is kept. Off by default; without a threshold only measured.

``wukong/curate/near_duplicates.py`` finds them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from wukong.config.section import Strict
from wukong.curate.preferred import Keep, scores, sharpness
from wukong.curate.rule import Column, FromPictures, Nearness, Rule
from wukong.curate.rules.overlap import vectors
from wukong.runtime.language import message

if TYPE_CHECKING:
    import polars as pl

_COSINE = "nearest_cosine"


class NearDuplicates(Strict):
    """The section ``filter.near_duplicates``."""

    min_cosine: float | None = Field(
        None,
        ge=0.8,
        le=1,
        description="pairs go whose picture has another at this cosine or above that is kept rather; without it none "
        "goes, and the dataset card shows how many would go at each threshold",
    )
    keep: Keep = Field(
        "first",
        description="which of near pairs: the 'first' by key, the 'sharpest' picture, or 'best-caption': the caption "
        "that fits best by similarity_model, without that the longest",
    )


class NearDuplicateSettings(Strict):
    """Keys of ``filter``."""

    near_duplicates: NearDuplicates | None = Field(
        None, description="find pairs with nearly the same picture, by vectors of vector_model"
    )


def _asked(settings: NearDuplicateSettings) -> NearDuplicates:
    return settings.near_duplicates or NearDuplicates()


def _drops(settings: NearDuplicateSettings) -> pl.Expr:
    import polars as pl

    lowest = _asked(settings).min_cosine
    return pl.lit(False) if lowest is None else pl.col(_COSINE) >= lowest


RULE = Rule(
    name="near_duplicate",
    place=95,
    title="no picture nearly the same, by vectors",
    unchecked=message("Near duplicates were not looked for."),
    version=1,
    settings=NearDuplicateSettings,
    enabled=lambda settings: settings.near_duplicates is not None,
    stored=(Column(_COSINE, "float32", place=60, optional=True),),
    from_pictures=(
        FromPictures(
            column="vector",
            compute=vectors,
            thresholds=("near_duplicates.min_cosine", "near_duplicates.keep"),
            runs_model=True,
        ),
        FromPictures(
            column="sharpness",
            needed=lambda settings: _asked(settings).keep == "sharpest",
            compute=sharpness,
            thresholds=(),
        ),
    ),
    nearness=Nearness(vector="vector", scores=lambda pairs, settings: scores(pairs, _asked(settings).keep)),
    drops=_drops,
)
