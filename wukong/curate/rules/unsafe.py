"""Pictures that a model calls unsafe are dropped. Off without the operator's weights (``docs/picture-models.md``)."""

from pydantic import Field, field_validator

from wukong.config.picture_model import PictureModel
from wukong.config.section import Fraction, Strict
from wukong.curate.picture_scores import known_range, rule_of_scores
from wukong.runtime.language import message


class Unsafe(Strict):
    """A model that says how unsafe a picture is, from 0 to 1, and what is left out."""

    model: PictureModel
    max_score: Fraction = Field(0.8, description="pictures with a greater score are left out")

    _is_comparable = field_validator("model")(known_range)


class UnsafeSettings(Strict):
    """Keys of ``filter``."""

    unsafe: Unsafe | None = Field(None, description="leave out pictures that a model calls unsafe")


RULE = rule_of_scores(
    "unsafe",
    place=82,
    title="safe picture, by a model",
    unchecked=message("No model looked for unsafe pictures."),
    settings=UnsafeSettings,
    column="unsafe_score",
    column_place=60,
    threshold="max_score",
    drops=lambda score, unsafe: score > unsafe.max_score,
)
