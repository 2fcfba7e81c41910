"""Of pairs whose pictures have vectors near each other one is kept. Off by default; without a threshold only measured.

``wukong/curate/near_duplicates.py`` finds them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field

from wukong.config.section import Strict
from wukong.curate.preferred import Keep, scores, sharpness
from wukong.curate.rule import Column, Dropped, FromPictures, Nearness, Pairs
from wukong.curate.rules.overlap import vectors

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


class NearDuplicateRule(Nearness):
    place = 95
    title = "no picture nearly the same, by vectors"
    unchecked = "Near duplicates were not looked for."
    stored = (Column(_COSINE, "float32", place=82, optional=True),)
    thresholds = ("near_duplicates.min_cosine", "near_duplicates.keep")
    vector = "vector"

    class Settings(Strict):
        near_duplicates: NearDuplicates | None = Field(
            None, description="find pairs with nearly the same picture, by vectors of vector_model"
        )

    def enabled(self, settings: Settings) -> bool:
        return settings.near_duplicates is not None

    def from_pictures(self, settings: Any) -> tuple[FromPictures, ...]:
        asked = [FromPictures(self.vector, vectors, runs_model=True)]
        if settings.near_duplicates.keep == "sharpest":
            asked.append(FromPictures("sharpness", sharpness))
        return tuple(asked)

    def scores(self, pairs: Pairs, settings: Any) -> pl.Series:
        return scores(pairs, settings.near_duplicates.keep)

    def drops(self, pairs: Pairs, settings: Any) -> Dropped:
        lowest = settings.near_duplicates.min_cosine
        return lowest is not None and pairs[_COSINE] >= lowest


RULE = NearDuplicateRule()
