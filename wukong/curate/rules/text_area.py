"""Pictures that are mostly text, by a detector, are dropped. Off without the operator's weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field, field_validator

from wukong.config.picture_model import PictureModel
from wukong.config.section import Fraction, Strict
from wukong.curate.picture_scores import ModelRule, whole_picture
from wukong.curate.rule import Column, PictureBatch

if TYPE_CHECKING:
    import polars as pl


class TextArea(Strict):
    """A detector that marks the pixels of text, as PaddleOCR's do, and what is left out."""

    model: PictureModel
    max_share: Fraction = Field(
        1.0, description="pictures of whose area a greater share is text are left out; 1 leaves out none"
    )

    _sees_all = field_validator("model")(whole_picture)


class TextAreaRule(ModelRule):
    place = 85
    title = "little text in the picture, by a model"
    unchecked = "No model looked for text in pictures."
    column = Column("text_area", "float32", optional=True)
    decides = ("max_share",)
    one_number = False

    class Settings(Strict):
        text_area: TextArea | None = Field(
            None, description="measure which share of a picture is text, and leave out those with much"
        )

    def seen(self, batch: PictureBatch, section: TextArea) -> pl.Series:
        import polars as pl

        from wukong.curate import picture_models, text_areas

        maps = picture_models.maps(section.model, batch.decoded, batch.device, batch.names)
        shares = [arrays and text_areas.share(arrays[0][0]) for arrays in maps]
        return pl.Series(shares, dtype=pl.Float32)


RULE = TextAreaRule()
