"""Of pairs with an equal picture, or a similar one by perceptual hash, the first by key is kept. Off by default."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from wukong.config.section import Strict
from wukong.curate.rule import Column, Comparison, FromPictures, PictureBatch, Rule
from wukong.runtime.language import message

if TYPE_CHECKING:
    import polars as pl

    from wukong.curate.caption_counts import Hashes


class DuplicateImageSettings(Strict):
    """Keys of ``filter``."""

    duplicate_images: Literal["keep", "equal", "similar"] = Field(
        "keep", description="of pairs with an equal picture, or a similar one by perceptual hash, keep the first by key"
    )
    max_hash_distance: int = Field(3, ge=0, le=3, description="bits of 64 in which similar pictures' hashes may differ")


def _hashes(batch: PictureBatch, _settings: DuplicateImageSettings) -> pl.Series:
    import polars as pl

    from wukong.curate.phash import perceptual_hash

    hashes = [perceptual_hash(data, name) for data, name in zip(batch.pictures, batch.names, strict=True)]
    return pl.Series(hashes, dtype=pl.UInt64)


def _values(pairs: pl.DataFrame, settings: DuplicateImageSettings) -> Hashes:
    from wukong.curate.split import picture_digests

    return pairs["image_hash"].to_numpy() if settings.duplicate_images == "similar" else picture_digests(pairs)


def _drops(_settings: DuplicateImageSettings) -> pl.Expr:
    import polars as pl

    return pl.col("repeats_picture")


RULE = Rule(
    name="duplicate_image",
    place=90,
    title="picture not seen before",
    version=1,
    settings=DuplicateImageSettings,
    enabled=lambda settings: settings.duplicate_images != "keep",
    stored=(Column("image_hash", "uint64", place=40, nullable=True),),
    from_pictures=(
        FromPictures(
            column="image_hash",
            needed=lambda settings: settings.duplicate_images == "similar",
            compute=_hashes,
            thresholds=("max_hash_distance",),
        ),
    ),
    comparison=Comparison(
        column="repeats_picture",
        values=_values,
        distance=lambda settings: settings.max_hash_distance if settings.duplicate_images == "similar" else 0,
    ),
    drops=_drops,
    unchecked=message("Equal and similar pictures were not looked for."),
)
