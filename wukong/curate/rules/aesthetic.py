"""Pictures that a model finds ugly are dropped. Off without the operator's weights."""

from pydantic import Field, model_validator

from wukong.config.picture_model import PictureModel
from wukong.config.section import Strict
from wukong.curate.picture_scores import known_range, rule_of_scores
from wukong.runtime.language import message


class Aesthetic(Strict):
    """A model that says how much a picture pleases, and what is left out."""

    model: PictureModel
    min_score: float = Field(description="pictures with a lower score are left out; models differ in their ranges")

    @model_validator(mode="after")
    def _a_score_may_reach_it(self) -> "Aesthetic":
        least, greatest = known_range(self.model).output.possible or (self.min_score, self.min_score)
        if not least <= self.min_score <= greatest:
            raise ValueError(
                f"min_score is {self.min_score:g}, and the model's scores are from {least:g} to {greatest:g}: write a "
                "number between them"
            )
        return self


class AestheticSettings(Strict):
    """Keys of ``filter``."""

    aesthetic: Aesthetic | None = Field(None, description="leave out pictures that a model finds ugly")


RULE = rule_of_scores(
    "aesthetic",
    place=84,
    title="pleasing picture, by a model",
    unchecked=message("No model judged how pictures look."),
    settings=AestheticSettings,
    column="aesthetic_score",
    column_place=62,
    threshold="min_score",
    drops=lambda score, aesthetic: score < aesthetic.min_score,
)
