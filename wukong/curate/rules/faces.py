"""Faces are found by a detector and counted; pictures with many may be dropped. Off without the operator's weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field, field_validator

from wukong.config.picture_model import PictureModel
from wukong.config.section import Strict
from wukong.curate import picture_weights
from wukong.curate.picture_scores import verify, whole_picture
from wukong.curate.rule import Column, FromPictures, PictureBatch, Rule
from wukong.runtime.language import message

if TYPE_CHECKING:
    import polars as pl
    import pyarrow as pa

LEAST_SCORE = 0.2
"""Faces below it are not stored, so that no face is sought again where ``min_score`` changes."""

_FACE = ("x", "y", "width", "height", "score")


class Faces(Strict):
    """A detector of faces with the outputs of CenterFace, and what is done with what it finds."""

    model: PictureModel
    min_score: float = Field(0.5, ge=LEAST_SCORE, le=1, description="what has a lower score is no face")
    max_faces: int | None = Field(None, ge=0, description="pictures with more faces are left out; null leaves out none")
    blur_in_previews: bool = Field(False, description="blur faces in the previews of a release")

    _sees_all = field_validator("model")(whole_picture)


class FacesSettings(Strict):
    """Keys of ``filter``."""

    faces: Faces | None = Field(None, description="find faces, count them, and leave out pictures with many")


def _type() -> pa.DataType:
    import pyarrow as pa

    return pa.list_(pa.struct([pa.field(name, pa.float32()) for name in _FACE]))


def _found(batch: PictureBatch, settings: Faces) -> pl.Series:
    """The faces of each picture, by falling score: their boxes in shares of the picture's sides."""
    import polars as pl

    from wukong.curate import faces, picture_models
    from wukong.errors import ConfigError

    found = []
    for arrays in picture_models.maps(settings.model, batch.decoded, batch.device, batch.names):
        if arrays is not None and [len(each) for each in arrays[:3]] != [1, 2, 2]:
            raise ConfigError(
                f"{settings.model.uri} gives outputs of {', '.join(str(each.shape) for each in arrays)} for a picture: "
                "a detector like CenterFace gives a map of scores, then maps of sizes and of offsets"
            )
        found.append(arrays and faces.of_centers(arrays[0], arrays[1], arrays[2], LEAST_SCORE).tolist())
    faces_of = [boxes and [dict(zip(_FACE, box, strict=True)) for box in boxes] for boxes in found]
    return pl.Series(faces_of, dtype=pl.List(pl.Struct(dict.fromkeys(_FACE, pl.Float32))))


def _sure(settings: Faces) -> pl.Expr:
    """The faces of each pair's picture that are sure enough."""
    import polars as pl

    return pl.col("faces").list.filter(pl.element().struct.field("score") >= settings.min_score)


def _drops(settings: Faces) -> pl.Expr:
    import polars as pl

    return pl.lit(False) if settings.max_faces is None else _sure(settings).list.len() > settings.max_faces


def _counts(pairs: pl.DataFrame, settings: Faces) -> dict[str, int]:
    """Count the pictures that could not be read, pairs that are left with a face, and names beside one large face."""
    import polars as pl

    from wukong.curate import names_and_faces

    sure = pairs.with_columns(faces=_sure(settings))
    shown = sure.filter(pl.col("dropped_by").is_null() & (pl.col("faces").list.len() > 0))
    return {
        "unread/faces": pairs["faces"].null_count(),
        "with_faces": len(shown),
        names_and_faces.NAME_AND_FACE: names_and_faces.count(sure),
    }


RULE = Rule[Any](
    name="faces",
    place=86,
    title="few faces, by a model",
    unchecked=message("No model looked for faces: how many masked names stand beside a face is not known."),
    version=1,
    settings=FacesSettings,
    enabled=lambda settings: settings.faces is not None,
    stored=(Column("faces", _type, place=64, optional=True),),
    from_pictures=(
        FromPictures(
            column="faces",
            compute=lambda batch, settings: _found(batch, settings.faces),
            thresholds=("faces.min_score", "faces.max_faces", "faces.blur_in_previews"),
            runs_model=True,
        ),
    ),
    counts=lambda pairs, settings: _counts(pairs, settings.faces),
    drops=lambda settings: _drops(settings.faces),
    uris={"faces.model.uri": picture_weights.missing},
    verify=lambda settings: verify(settings.faces.model, one_number=False),
)
