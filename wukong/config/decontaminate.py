"""The section ``filter.decontaminate``: what is compared with test sets, and how near is near."""

from __future__ import annotations

import hashlib
from typing import Literal

from pydantic import Field, model_validator

from wukong.config.picture_model import PictureModel
from wukong.config.section import Strict

ALL = "all"

SIDE = 224
TOWER = {"name": "tf_efficientnet_lite0", "image_size": SIDE, "block": 4}
"""The image tower that comes in a package, and the stage of which its vectors are the mean."""


class Decontaminate(Strict):
    """The section ``filter.decontaminate``."""

    sets: tuple[str, ...] = Field(
        (),
        description="test sets whose pictures are looked for: names of published sets in the folder evaluate.sets, of "
        "the experiment's own hold-outs, or 'all' for every one that is there",
    )
    hashes: tuple[str, ...] = Field((), description="URIs of further sets' fingerprints, as `wukong hashes` makes them")
    min_cosine: float | None = Field(
        0.75, ge=-1, le=1, description="of vectors of pictures that are laid over each other; null to compare by hashes"
    )
    captions: bool = Field(True, description="look for the captions of the sets too")
    action: Literal["drop", "mark"] = Field("drop", description="what is done with pairs that are found")

    @model_validator(mode="after")
    def _names_a_set(self) -> Decontaminate:
        if not self.sets and not self.hashes:
            raise ValueError("it names neither sets nor hashes: name one, or leave decontaminate out")
        return self


def made_by(model: PictureModel | None) -> str:
    """What identifies the vectors of a model, or of the packaged tower: vectors of one kind alone can be compared."""
    said = repr(TOWER) if model is None else f"{model.sha256} {model.input!r} {model.output!r}"
    return hashlib.sha256(said.encode()).hexdigest()
