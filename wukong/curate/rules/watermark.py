"""Pictures on which a model sees a watermark are dropped. Off without the operator's weights."""

from pydantic import Field, field_validator

from wukong.config.picture_model import PictureModel
from wukong.config.section import Fraction, Strict
from wukong.curate.picture_scores import known_range, rule_of_scores
from wukong.runtime.language import message


class Watermark(Strict):
    """A model that says how surely a picture has a watermark, from 0 to 1, and what is left out."""

    model: PictureModel
    max_score: Fraction = Field(0.8, description="pictures with a greater score are left out")

    _is_comparable = field_validator("model")(known_range)


class WatermarkSettings(Strict):
    """Keys of ``filter``."""

    watermark: Watermark | None = Field(None, description="leave out pictures on which a model sees a watermark")


RULE = rule_of_scores(
    "watermark",
    place=83,
    title="no watermark, by a model",
    unchecked=message("No model looked for watermarks."),
    settings=WatermarkSettings,
    column="watermark_score",
    column_place=61,
    threshold="max_score",
    drops=lambda score, watermark: score > watermark.max_score,
)
