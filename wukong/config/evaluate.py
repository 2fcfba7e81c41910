"""The section ``evaluate`` of an experiment (sections 5.2 and 5.3)."""

from typing import Literal

from pydantic import Field, model_validator

from wukong.config.section import Positive, Strict


class Classification(Strict):
    """A zero-shot classification set: pictures of a hold-out, classes by a pattern on their URL."""

    name: str = Field(description="of the task, as it stands in the metrics")
    title: str = Field("", description="how reports call it")
    holdouts: tuple[str, ...] = Field(description="names of the test sets whose images are classified")
    classes: dict[str, str] = Field(description="Chinese class name -> shell pattern on the image URL")


class Evaluate(Strict):
    """Section 5.2 and 5.3: what is measured."""

    batch_size: Positive = Field(256, description="images or captions encoded at once")
    captions: Literal["distinct", "all", "first"] = Field(
        "distinct",
        description="of retrieval: 'distinct' takes equal captions as one, 'all' every pair's caption by itself, as "
        "for Flickr30K or COCO with five captions a picture, 'first' each picture's first caption alone",
    )
    classification: tuple[Classification, ...] = Field((), description="zero-shot classification tasks")
    tasks: tuple[str, ...] = Field(
        (), description="published evaluation sets that are measured too, for instance [coco-cn, imagenet]"
    )
    protocol: Literal["paper", "cn-clip", "clip-benchmark", "own"] = Field(
        "paper", description="how the published sets are measured; hold-outs are always measured by `own`"
    )
    sets: str = Field(
        "", description="URI of the folder that holds a folder for each published set; needed if `tasks` names any"
    )

    @model_validator(mode="after")
    def _sets_have_a_place(self) -> "Evaluate":
        if self.tasks and not self.sets:
            raise ValueError(
                f"evaluate.sets is empty, and evaluate.tasks names {', '.join(self.tasks)}: give the URI of the folder "
                "that holds them, file:///FOLDER or s3://BUCKET/PREFIX"
            )
        return self
