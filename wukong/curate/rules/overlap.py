"""Training pairs that show a picture of a test set, or have a caption of one, are dropped or marked. Off by default.

Test sets are the published ones, those that others know by fingerprints alone, and the experiment's own hold-outs. So
the rule decides after the split is known (``ray_jobs/filter.py``). See ``docs/overlap.md``.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from wukong.config.picture_model import PictureModel
from wukong.config.section import Strict
from wukong.curate.rule import Column, FromPictures, PictureBatch, Rule
from wukong.runtime.language import message

if TYPE_CHECKING:
    import polars as pl

ALL = "all"

TOWER = {"name": "tf_efficientnet_lite0", "image_size": 224, "block": 4}
"""The image tower that comes in a package, and the stage of which its vectors are the mean."""


class Decontaminate(Strict):
    """The section ``filter.decontaminate``."""

    sets: tuple[str, ...] = Field(
        (),
        description="test sets whose pictures are looked for: names of published sets in the folder evaluate.sets, of "
        "the experiment's own hold-outs, or 'all' for every one that is there",
    )
    hashes: tuple[str, ...] = Field((), description="URIs of further sets' fingerprints, as `wukong hashes` makes them")
    distance: int = Field(
        31, ge=0, le=63, description="bits of 256 in which the PDQ hashes of nearly equal ones differ"
    )
    min_quality: int = Field(
        50, ge=0, le=100, description="pictures of a lower PDQ quality have too little in them to be compared by PDQ"
    )
    min_cosine: float | None = Field(
        0.75, ge=-1, le=1, description="of vectors of pictures that are laid over each other; null to compare by hashes"
    )
    min_agreement: float = Field(
        0.8, ge=0, le=1, description="pictures laid over each other that agree so well, or better, show the same"
    )
    captions: bool = Field(True, description="look for the captions of the sets too")
    action: Literal["drop", "mark"] = Field("drop", description="what is done with pairs that are found")

    @model_validator(mode="after")
    def _names_a_set(self) -> Decontaminate:
        if not self.sets and not self.hashes:
            raise ValueError("it names neither sets nor hashes: name one, or leave decontaminate out")
        return self


class OverlapSettings(Strict):
    """Keys of ``filter``."""

    decontaminate: Decontaminate | None = Field(
        None, description="drop or mark training pairs that show a picture of a test set, or have a caption of one"
    )
    vector_model: PictureModel | None = Field(
        None,
        description="model whose vectors of pictures are compared, for instance SSCD; null for the packaged image tower",
    )


def made_by(model: PictureModel | None) -> str:
    """What identifies the vectors of a model, or of the packaged tower: vectors of one kind alone can be compared."""
    said = repr(TOWER) if model is None else f"{model.sha256} {model.input!r} {model.output!r}"
    return hashlib.sha256(said.encode()).hexdigest()


def _on(settings: OverlapSettings) -> bool:
    return settings.decontaminate is not None


def _by_vectors(settings: OverlapSettings) -> bool:
    return settings.decontaminate is not None and settings.decontaminate.min_cosine is not None


def _forms(batch: PictureBatch, _settings: OverlapSettings) -> pl.Series:
    import polars as pl

    return pl.Series([each.tobytes() for each in batch.pdq[0]], dtype=pl.Binary)


def _quality(batch: PictureBatch, _settings: OverlapSettings) -> pl.Series:
    import polars as pl

    return pl.Series(batch.pdq[1], dtype=pl.UInt8)


def vectors(batch: PictureBatch, settings: OverlapSettings) -> pl.Series:
    """The vector of each picture; null where a model cannot read it."""
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


def _load(settings: OverlapSettings) -> None:
    """Refuse fingerprints that cannot be compared, before a task needs them.

    Raises:
        ConfigError: a file is of another kind or version, or holds the vectors of another model.
    """
    from wukong.curate import overlap

    overlap.check(settings)


def _digests(settings: OverlapSettings) -> dict[str, str]:
    from wukong.curate import overlap

    return overlap.digests(settings)


_THRESHOLDS = ("decontaminate",)

RULE = Rule(
    name="overlap",
    place=97,
    title="no picture or caption of a test set",
    version=1,
    added=("decontaminate", "vector_model"),
    settings=OverlapSettings,
    enabled=_on,
    stored=(
        Column("overlap", "string", place=90, optional=True),
        Column("overlap_caption", "string", place=91, optional=True),
    ),
    from_pictures=(
        FromPictures("pdq_forms", _on, _forms, _THRESHOLDS),
        FromPictures("pdq_quality", _on, _quality, _THRESHOLDS),
        FromPictures("vector", _by_vectors, vectors, _THRESHOLDS, runs_model=True),
        FromPictures("halves", _by_vectors, _halves, _THRESHOLDS, runs_model=True),
        FromPictures("thumbnail", _by_vectors, _thumbnails, _THRESHOLDS),
    ),
    load=_load,
    digests=_digests,
    against_tests=True,
    drops=_drops,
    uris={"decontaminate.hashes": _fingerprints_problem},
)
