"""Faces are found by a detector and counted; pictures with many may be dropped. Off without the operator's weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import Field, field_validator

from wukong.config.picture_model import PictureModel
from wukong.config.section import Strict
from wukong.curate.picture_scores import ModelRule, whole_picture
from wukong.curate.rule import Column, Dropped, Pairs, PictureBatch

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


def _type() -> pa.DataType:
    import pyarrow as pa

    return pa.list_(pa.struct([pa.field(name, pa.float32()) for name in _FACE]))


def _sure(settings: Faces) -> pl.Expr:
    """The faces of each pair's picture that are sure enough."""
    import polars as pl

    return pl.col("faces").list.filter(pl.element().struct.field("score") >= settings.min_score)


class FacesRule(ModelRule):
    place = 86
    title = "few faces, by a model"
    unchecked = "No model looked for faces: how many masked names stand beside a face is not known."
    column = Column("faces", _type, optional=True)
    decides = ("min_score", "max_faces", "blur_in_previews")
    one_number = False

    class Settings(Strict):
        faces: Faces | None = Field(None, description="find faces, count them, and leave out pictures with many")

    def seen(self, batch: PictureBatch, section: Faces) -> pl.Series:
        """The faces of each picture, by falling score: their boxes in shares of the picture's sides."""
        import polars as pl

        from wukong.curate import faces, picture_models
        from wukong.errors import ConfigError

        found = []
        for arrays in picture_models.maps(section.model, batch.decoded, batch.device, batch.names):
            if arrays is not None and [len(each) for each in arrays[:3]] != [1, 2, 2]:
                raise ConfigError(
                    f"{section.model.uri} gives outputs of {', '.join(str(each.shape) for each in arrays)} for a "
                    "picture: a detector like CenterFace gives a map of scores, then maps of sizes and of offsets"
                )
            found.append(arrays and faces.of_centers(arrays[0], arrays[1], arrays[2], LEAST_SCORE).tolist())
        faces_of = [boxes and [dict(zip(_FACE, box, strict=True)) for box in boxes] for boxes in found]
        return pl.Series(faces_of, dtype=pl.List(pl.Struct(dict.fromkeys(_FACE, pl.Float32))))

    def drops(self, pairs: Pairs, settings: Any) -> Dropped:
        most = settings.faces.max_faces
        return most is not None and _sure(settings.faces).list.len() > most

    def counts(self, pairs: Pairs, settings: Any) -> Mapping[str, int]:
        """Count unread pictures, pairs that are left with a face, and names beside one large face."""
        import polars as pl

        from wukong.curate import names_and_faces

        sure = pairs.with_columns(faces=_sure(settings.faces))
        shown = sure.filter(pl.col("dropped_by").is_null() & (pl.col("faces").list.len() > 0))
        named = names_and_faces.count(sure)
        return {**super().counts(pairs, settings), "with_faces": len(shown), names_and_faces.NAME_AND_FACE: named}


RULE = FacesRule()
