"""Training pairs that show a picture of a test set, or have a caption of one, are dropped or marked. Off by default.

Test sets are the published ones, those that others know by fingerprints alone, and the experiment's own hold-outs. So
the rule decides after the split is known (``ray_jobs/filter.py``). See ``docs/overlap.md``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from pydantic import Field

from wukong.config.decontaminate import Decontaminate
from wukong.config.picture_model import PictureModel
from wukong.config.section import Strict
from wukong.curate import picture_weights
from wukong.curate.rule import Column, Dropped, FromPictures, Pairs, PictureBatch, Rule

if TYPE_CHECKING:
    import polars as pl


class OverlapRule(Rule):
    place = 97
    title = "no picture or caption of a test set"
    unchecked = "Nobody compared the pictures with those of test sets."
    decided = "tests"
    stored = (Column("overlap", "string", optional=True), Column("overlap_caption", "string", optional=True))
    thresholds = ("decontaminate",)
    uris = ("decontaminate.hashes", "vector_model.uri")

    class Settings(Strict):
        decontaminate: Decontaminate | None = Field(
            None, description="drop or mark training pairs that show a picture of a test set, or have a caption of one"
        )
        vector_model: PictureModel | None = Field(
            None,
            description="model by whose vectors pictures are compared, for instance SSCD; null for the packaged tower",
        )

    def enabled(self, settings: Settings) -> bool:
        return settings.decontaminate is not None

    def problem(self, key: str, uri: str) -> str:
        from wukong.store import storage

        if key == "vector_model.uri":
            return picture_weights.missing(uri)
        if storage.exists(uri):
            return ""
        return f"{uri} does not exist; name a file of fingerprints that `wukong hashes SET` has made"

    def verify(self, settings: Settings) -> None:
        if settings.vector_model is not None:
            picture_weights.verify(settings.vector_model)

    def load(self, settings: Settings) -> None:
        """Refuse fingerprints that cannot be compared, before a task needs them.

        Raises:
            ConfigError: a file is of another kind or version, or damaged.
        """
        from wukong.curate import overlap

        for uri in settings.decontaminate.hashes if settings.decontaminate else ():
            overlap.read(uri)

    def digests(self, settings: Settings) -> Mapping[str, str]:
        from wukong.curate import overlap

        return overlap.digests(settings.decontaminate) if settings.decontaminate else {}

    def from_pictures(self, settings: Settings) -> tuple[FromPictures, ...]:
        of_vectors = (
            FromPictures("vector", vectors, runs_model=True),
            FromPictures("halves", _halves, runs_model=True),
            FromPictures("thumbnail", _thumbnails),
        )
        return (FromPictures("pdq", _pdq), *(of_vectors if _by_vectors(settings) else ()))

    def counts(self, pairs: Pairs, settings: Settings) -> Mapping[str, int]:
        """Count the pictures that the model cannot read, because they are compared by hashes alone."""
        import polars as pl

        if not _by_vectors(settings):
            return {}
        if "vector" not in pairs.columns:  # no pair was left whose picture would be read
            return {"unread/overlap": 0}
        return {"unread/overlap": int(pairs["vector"].arr.first().cast(pl.Float32).is_nan().sum())}

    def drops(self, pairs: Pairs, settings: Settings) -> Dropped:
        asked = settings.decontaminate
        found = pairs["overlap"].is_not_null() | pairs["overlap_caption"].is_not_null()
        return asked is not None and asked.action == "drop" and found

    def kinds(self, pairs: Pairs, settings: Settings) -> pl.Series:
        """Tell the test set of each pair."""
        import polars as pl

        return pairs.select(pl.coalesce(pl.col("overlap").str.split("/").list.first(), "overlap_caption")).to_series()


def _by_vectors(settings: OverlapRule.Settings) -> bool:
    return settings.decontaminate is not None and settings.decontaminate.min_cosine is not None


def _pdq(batch: PictureBatch, _settings: Strict) -> pl.Series:
    """The PDQ hash of each picture and, as the last byte, its quality. Mirrored are the test pictures: they are few."""
    import numpy as np
    import polars as pl

    from wukong.curate.pdq import hashes

    found, quality = hashes(batch.decoded)
    return pl.Series([row.tobytes() for row in np.column_stack([found, quality])], dtype=pl.Binary)


def vectors(batch: PictureBatch, settings: OverlapRule.Settings) -> pl.Series:
    """The vector of each picture; not a number where a model cannot read it."""
    from wukong.curate import picture_vectors

    encoded = picture_vectors.encode(batch.decoded, settings.vector_model, batch.device, batch.names)
    return picture_vectors.column(encoded)


def _halves(batch: PictureBatch, settings: OverlapRule.Settings) -> pl.Series:
    from wukong.curate import picture_vectors

    return picture_vectors.halves(batch.decoded, settings.vector_model, batch.device, batch.names)


def _thumbnails(batch: PictureBatch, _settings: Strict) -> pl.Series:
    import polars as pl

    from wukong.curate.alignment import thumbnail

    return pl.Series([thumbnail(image) for image in batch.decoded], dtype=pl.Binary)


RULE = OverlapRule()
