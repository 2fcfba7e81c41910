"""Pictures that a model calls unsafe are dropped. Off without the operator's weights (``docs/picture-models.md``)."""

from pydantic import Field, field_validator

from wukong.config.picture_model import PictureModel
from wukong.config.section import Fraction, Strict
from wukong.curate.picture_scores import ModelRule, known_range
from wukong.curate.rule import Column


class Unsafe(Strict):
    """A model that says how unsafe a picture is, from 0 to 1, and what is left out."""

    model: PictureModel
    max_score: Fraction = Field(0.8, description="pictures with a greater score are left out")

    _is_comparable = field_validator("model")(known_range)


class UnsafeRule(ModelRule):
    place = 82
    title = "safe picture, by a model"
    unchecked = "No model looked for unsafe pictures."
    column = Column("unsafe_score", "float32", optional=True)
    decides = ("max_score",)

    class Settings(Strict):
        unsafe: Unsafe | None = Field(None, description="leave out pictures that a model calls unsafe")


RULE = UnsafeRule()
