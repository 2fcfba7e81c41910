"""Pictures on which a model sees a watermark are dropped. Off without the operator's weights."""

from pydantic import Field, field_validator

from wukong.config.picture_model import PictureModel
from wukong.config.section import Fraction, Strict
from wukong.curate.picture_scores import ModelRule, known_range
from wukong.curate.rule import Column


class Watermark(Strict):
    """A model that says how surely a picture has a watermark, from 0 to 1, and what is left out."""

    model: PictureModel
    max_score: Fraction = Field(0.8, description="pictures with a greater score are left out")

    _is_comparable = field_validator("model")(known_range)


class WatermarkRule(ModelRule):
    place = 83
    title = "no watermark, by a model"
    unchecked = "No model looked for watermarks."
    column = Column("watermark_score", "float32", optional=True)
    decides = ("max_score",)

    class Settings(Strict):
        watermark: Watermark | None = Field(None, description="leave out pictures on which a model sees a watermark")


RULE = WatermarkRule()
