"""A model that looks at pictures, of others: where its weights lie, what they are, how a picture becomes its input."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Field, field_validator, model_validator

from wukong.config.section import Positive, Sha256, Strict, uri_problem

Triple: TypeAlias = tuple[float, float, float]


class PictureInput(Strict):
    """How a picture becomes the numbers that a model reads: a channel's value is (pixel * scale - mean) / std."""

    size: Positive = Field(224, description="pixels of a side of the square that the model reads")
    resize: Literal["squash", "crop", "whole", "keep"] = Field(
        "crop",
        description="'squash' the picture into the square; 'crop' the square in its middle after its shorter side was "
        "resized; the 'whole' of it in the middle of the square, with margins; or 'keep' its shape: its shorter side "
        "becomes size, and both sides are rounded to multiples of 32, for detectors",
    )
    resize_to: Positive | None = Field(
        None,
        description="of 'squash' and 'crop': pixels to which is resized, before the square of size is cut out of the "
        "middle; size if absent",
    )
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos", "box"] = Field(
        "bilinear", description="as Pillow names them"
    )
    jpeg: int | None = Field(
        None,
        ge=1,
        le=95,
        description="quality of JPEG with which the resized picture is compressed once more, for a model whose authors "
        "do so",
    )
    margin: int = Field(0, ge=0, le=255, description="of 'whole': gray of the margins, from black to white")
    channels: Literal["rgb", "bgr"] = Field("rgb", description="their order, also in mean and std")
    layout: Literal["nchw", "nhwc"] = Field("nchw", description="whether channels come before or after the sides")
    scale: float = Field(1 / 255, gt=0, description="factor on pixels of 0 to 255")
    mean: Triple = Field((0.0, 0.0, 0.0), description="of scaled pixels, a number a channel")
    std: Triple = Field((1.0, 1.0, 1.0), description="of scaled pixels, a number a channel")

    @field_validator("std")
    @classmethod
    def _one_can_divide_by_std(cls, value: Triple) -> Triple:
        if min(value) <= 0:
            raise ValueError(f"{list(value)} has a number that is not above 0; give the deviation of each channel")
        return value

    @model_validator(mode="after")
    def _the_square_fits(self) -> PictureInput:
        if self.resize_to is not None and self.resize not in ("squash", "crop"):
            raise ValueError(
                f"resize_to is {self.resize_to}, and resize is {self.resize!r}, which cuts nothing: leave resize_to "
                "out, or write 'squash' or 'crop'"
            )
        if self.resize_to is not None and self.resize_to < self.size:
            raise ValueError(f"resize_to is {self.resize_to}: at least size is allowed, {self.size}")
        if self.resize == "keep" and self.size < 32:
            raise ValueError(f"size is {self.size}: where resize is 'keep', at least 32 is allowed")
        return self


class PictureOutput(Strict):
    """Which of a model's numbers are taken, and which are possible."""

    name: str | None = Field(None, description="of the graph's output; the first if absent")
    index: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] | None = Field(
        None,
        description="the class that is taken, from 0, or a list of classes whose numbers are summed; all if absent",
    )
    activation: Literal["none", "softmax", "sigmoid"] = Field(
        "none", description="what turns the model's numbers into scores, where the graph does not"
    )
    range: tuple[float, float] | None = Field(
        None, description="least and greatest number that is possible; 0 and 1 after softmax and sigmoid if absent"
    )

    @field_validator("index", mode="before")
    @classmethod
    def _one_class_needs_no_list(cls, value: Any) -> Any:
        return (value,) if isinstance(value, int) else value

    @field_validator("range")
    @classmethod
    def _least_comes_first(cls, value: tuple[float, float] | None) -> tuple[float, float] | None:
        if value is not None and value[0] >= value[1]:
            raise ValueError(f"{list(value)} has its greater number first; write [LEAST, GREATEST]")
        return value

    @property
    def possible(self) -> tuple[float, float] | None:
        """The least and the greatest number that is possible; None where every number is."""
        return (0.0, 1.0) if self.range is None and self.activation != "none" else self.range


class PictureModel(Strict):
    """A model that looks at pictures. Nothing is downloaded: its weights are the operator's."""

    uri: str = Field(
        description="of an ONNX file, or of a folder with config.json and model.safetensors, as timm saves its models "
        "and transformers its ViT classifiers"
    )
    sha256: Sha256 = Field(
        description="of the ONNX file, or of the folder's model.safetensors, in 64 hexadecimal digits"
    )
    licence: str = Field(min_length=1, description="of the weights, as their owner says it; cards show it")
    about: str = Field("", description="what the model is and what it was trained on; cards show it")
    device: Literal["any", "cpu"] = Field(
        "any", description="'cpu' to compute on cores also where there is a GPU, for instance without onnxruntime-gpu"
    )
    input: PictureInput = Field(PictureInput(), description="how a picture becomes its input")
    output: PictureOutput = Field(PictureOutput(), description="which of its numbers are taken")

    @field_validator("uri")
    @classmethod
    def _weights_have_an_address(cls, value: str) -> str:
        if why := uri_problem(value):
            raise ValueError(why)
        return value

    @property
    def file(self) -> str:
        """The URI of the file whose digest is ``sha256``."""
        return self.uri if self.uri.endswith(".onnx") else f"{self.uri.rstrip('/')}/model.safetensors"
