"""The section ``registry`` of an experiment."""

import re
from typing import Annotated, Literal

from pydantic import Field, field_validator

from wukong.config.section import Strict


class Registry(Strict):
    """Where a model is registered that is better than the one with the alias."""

    model_name: str = Field(
        "", description="in MLflow; if empty, the experiment's name, so that models of other data do not compete"
    )
    alias: str = Field("champion", description="what MLflow calls the best version of the model")
    metric: str = Field(
        "eval/retrieval/holdouts/mean_recall",
        description="name of the evaluation metric that decides; higher is better",
    )
    level: float = Field(
        0.04,
        gt=0,
        lt=0.5,
        description="probability that a model that is no better takes the alias, over all attempts at one holder",
    )
    guards: dict[str, Annotated[float, Field(gt=0, lt=1)]] = Field(
        {},
        description="by metric the margin, a share of 1, by which a model must be shown not to be worse than the "
        "holder, e.g. {eval/classification/holdouts/top1: 0.02}",
    )
    first: Literal["above-chance", "any"] = Field(
        "above-chance",
        description="what the first model of all must be to take the alias: better than chance by more than noise, or "
        "nothing, for trials with so few pairs that no model can show it",
    )

    @field_validator("model_name")
    @classmethod
    def _mlflow_takes_the_name(cls, value: str) -> str:
        if set(value) & set("/:"):
            raise ValueError(f"{value!r} holds '/' or ':', which MLflow does not take in a model's name")
        return value

    @field_validator("alias")
    @classmethod
    def _mlflow_takes_the_alias(cls, value: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9_-]{1,255}", value) or re.fullmatch(r"(?i)latest|v\d+", value):
            raise ValueError(
                f"{value!r} is no alias that MLflow takes: letters, digits, '_' and '-', but neither 'latest' nor a "
                "version such as 'v1'"
            )
        return value
