"""Training pairs that show a picture of a test set, or have a caption of one, are dropped or marked. Off by default.

Test sets are the published ones, those that others know by fingerprints alone, and the experiment's own hold-outs. So
the rule decides after the split is known (``ray_jobs/filter.py``). See ``docs/overlap.md``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from wukong.config.decontaminate import Decontaminate
from wukong.config.picture_model import PictureModel
from wukong.config.section import Strict
from wukong.curate import picture_weights
from wukong.curate.rule import Column, FromPictures, PictureBatch, Rule
from wukong.runtime.language import message

if TYPE_CHECKING:
    import polars as pl


class OverlapSettings(Strict):
    """Keys of ``filter``."""

    decontaminate: Decontaminate | None = Field(
        None, description="drop or mark training pairs that show a picture of a test set, or have a caption of one"
    )
    vector_model: PictureModel | None = Field(
        None,
        description="model by whose vectors pictures are compared, for instance SSCD; null for the packaged tower",
    )


def _on(settings: OverlapSettings) -> bool:
    return settings.decontaminate is not None


def _by_vectors(settings: OverlapSettings) -> bool:
    return settings.decontaminate is not None and settings.decontaminate.min_cosine is not None


def _pdq(batch: PictureBatch, _settings: OverlapSettings) -> pl.Series:
    """The PDQ hash of each picture and, as the last byte, its quality. Mirrored are the test pictures: they are few."""
    import numpy as np
    import polars as pl

    from wukong.curate.pdq import hashes

    found, quality = hashes(batch.decoded)
    return pl.Series([row.tobytes() for row in np.column_stack([found, quality])], dtype=pl.Binary)


def vectors(batch: PictureBatch, settings: OverlapSettings) -> pl.Series:
    """The vector of each picture; not a number where a model cannot read it."""
    from wukong.curate import picture_vectors

    encoded = picture_vectors.encode(batch.decoded, settings.vector_model, batch.device, batch.names)
    return picture_vectors.column(encoded)


def _halves(batch: PictureBatch, settings: OverlapSettings) -> pl.Series:
    from wukong.curate import picture_vectors

    return picture_vectors.halves(batch.decoded, settings.vector_model, batch.device, batch.names)


def _thumbnails(batch: PictureBatch, _settings: OverlapSettings) -> pl.Series:
    import polars as pl

    from wukong.curate.alignment import thumbnail

    return pl.Series([thumbnail(image) for image in batch.decoded], dtype=pl.Binary)


def _counts(pairs: pl.DataFrame, settings: OverlapSettings) -> dict[str, int]:
    """Pictures that the model cannot read are counted, because they are compared by hashes alone."""
    import polars as pl

    if not _by_vectors(settings):
        return {}
    if "vector" not in pairs.columns:  # no pair was left whose picture would be read
        return {"unread/overlap": 0}
    return {"unread/overlap": int(pairs["vector"].arr.first().cast(pl.Float32).is_nan().sum())}


def _drops(settings: OverlapSettings) -> pl.Expr:
    import polars as pl

    dropped = settings.decontaminate is not None and settings.decontaminate.action == "drop"
    found = pl.col("overlap").is_not_null() | pl.col("overlap_caption").is_not_null()
    return found & pl.lit(dropped)


def _fingerprints_problem(uri: str) -> str:
    from wukong.store import storage

    if storage.exists(uri):
        return ""
    return message(f"{uri} does not exist; name a file of fingerprints that `wukong hashes SET` has made")


def _verify(settings: OverlapSettings) -> None:
    if settings.vector_model is not None:
        picture_weights.verify(settings.vector_model)


def _load(settings: OverlapSettings) -> None:
    """Refuse fingerprints that cannot be compared, before a task needs them.

    Raises:
        ConfigError: a file is of another kind or version, or damaged.
    """
    from wukong.curate import overlap

    for uri in settings.decontaminate.hashes if settings.decontaminate else ():
        overlap.read(uri)


def _digests(settings: OverlapSettings) -> dict[str, str]:
    from wukong.curate import overlap

    return overlap.digests(settings.decontaminate) if settings.decontaminate else {}


_THRESHOLDS = ("decontaminate",)


def _sets(pairs: pl.DataFrame, _settings: OverlapSettings, _loaded: None) -> pl.Series:
    """The test set of each pair that was dropped."""
    import polars as pl

    return pairs.select(pl.coalesce(pl.col("overlap").str.split("/").list.first(), "overlap_caption")).to_series()


RULE = Rule(
    name="overlap",
    place=97,
    title="no picture or caption of a test set",
    kinds=_sets,
    unchecked=message("Nobody compared the pictures with those of test sets."),
    version=1,
    settings=OverlapSettings,
    enabled=_on,
    stored=(
        Column("overlap", "string", place=90, optional=True),
        Column("overlap_caption", "string", place=91, optional=True),
    ),
    from_pictures=(
        FromPictures("pdq", _pdq, _THRESHOLDS),
        FromPictures("vector", vectors, _THRESHOLDS, _by_vectors, runs_model=True),
        FromPictures("halves", _halves, _THRESHOLDS, _by_vectors, runs_model=True),
        FromPictures("thumbnail", _thumbnails, _THRESHOLDS, _by_vectors),
    ),
    load=_load,
    digests=_digests,
    against_tests=True,
    counts=_counts,
    drops=_drops,
    uris={"decontaminate.hashes": _fingerprints_problem, "vector_model.uri": picture_weights.missing},
    verify=_verify,
)
