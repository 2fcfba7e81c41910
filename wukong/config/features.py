"""The section ``features`` of an experiment."""

from typing import Literal

from pydantic import Field

from wukong.config.section import Strict

Dtype = Literal["float16", "int8"]
"""Of the numbers in stored features."""


class Features(Strict):
    """How stored features are kept (store_features). The tower computes them in pretrain.precision."""

    dtype: Dtype = Field(
        "float16", description="of the stored numbers; 'int8' has a scale for each vector and takes half of the room"
    )
    room_gib: float | None = Field(
        None,
        gt=0,
        description="for store_features: auto, room for features in a store that cannot say how much is free, like S3",
    )
