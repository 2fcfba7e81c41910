"""Pictures that a model finds ugly are dropped. Off without the operator's weights."""

from pydantic import Field, model_validator

from wukong.config.picture_model import PictureModel
from wukong.config.section import Strict
from wukong.curate.picture_scores import ModelRule, known_range
from wukong.curate.rule import Column


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


class AestheticRule(ModelRule):
    place = 84
    title = "pleasing picture, by a model"
    unchecked = "No model judged how pictures look."
    column = Column("aesthetic_score", "float32", optional=True)
    decides = ("min_score",)

    class Settings(Strict):
        aesthetic: Aesthetic | None = Field(None, description="leave out pictures that a model finds ugly")


RULE = AestheticRule()
