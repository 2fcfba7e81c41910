"""Of pairs with an equal picture, or a similar one by perceptual hash, the first by key is kept. Off by default."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from wukong.config.section import Strict
from wukong.curate.rule import Column, Comparison, Dropped, FromPictures, Pairs, PictureBatch

if TYPE_CHECKING:
    import polars as pl

    from wukong.curate.caption_counts import Hashes

_NEAR = 3  # bits of 64 in which similar pictures' hashes may differ


def _hashes(batch: PictureBatch, _settings: Strict) -> pl.Series:
    import polars as pl

    from wukong.curate.phash import perceptual_hash

    hashes = [perceptual_hash(data, name) for data, name in zip(batch.pictures, batch.names, strict=True)]
    return pl.Series(hashes, dtype=pl.UInt64)


class DuplicateImageRule(Comparison):
    place = 90
    title = "picture not seen before"
    unchecked = "Equal and similar pictures were not looked for."
    stored = (Column("image_hash", "uint64", place=70, nullable=True),)
    column = "repeats_picture"

    class Settings(Strict):
        duplicate_images: Literal["keep", "equal", "similar"] = Field(
            "keep",
            description="of pairs with an equal picture, or a similar one by perceptual hash, keep the first by key",
        )

    def enabled(self, settings: Settings) -> bool:
        return settings.duplicate_images != "keep"

    def from_pictures(self, settings: Settings) -> tuple[FromPictures, ...]:
        return (FromPictures("image_hash", _hashes),) if settings.duplicate_images == "similar" else ()

    def values(self, pairs: Pairs, settings: Settings) -> Hashes:
        from wukong.curate.split import picture_digests

        return pairs["image_hash"].to_numpy() if settings.duplicate_images == "similar" else picture_digests(pairs)

    def distance(self, settings: Settings) -> int:
        return _NEAR if settings.duplicate_images == "similar" else 0

    def drops(self, pairs: Pairs, settings: Settings) -> Dropped:
        return pairs[self.column]


RULE = DuplicateImageRule()
