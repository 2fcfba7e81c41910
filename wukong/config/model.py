"""The section ``model`` of an experiment (section 4), and the architectures that it may name."""

from importlib import resources
from math import isqrt
from typing import Any, Literal

import yaml
from pydantic import Field, field_validator, model_validator

from wukong.config.section import Positive, Sha256, Strict, uri_problem

TEXT_FILES = ("config.json", "model.safetensors")
"""The files of a folder that ``text.weights`` names."""


class ImageEncoder(Strict):
    """An image encoder: a timm model by name, the source of its weights, and the resolution of its input."""

    name: str = Field("tf_efficientnet_lite0", description="timm's, for instance 'resnet50_clip.openai'")
    weights: str = Field(
        "package",
        description="'package' (tf_efficientnet_lite0 and vit_small_patch14_dinov2 have one), 'hub', 'random', or the "
        "URI of a safetensors file in timm's, OpenAI's or open_clip's naming",
    )
    weights_sha256: Sha256 | None = Field(
        None,
        exclude_if=lambda value: value is None,
        description="of the file that weights names; a run notes it when it begins, and then takes no other file",
    )
    image_size: Positive = Field(224, description="pixels of a side of the square that the tower sees")
    view: Literal["whole", "crop"] = Field(
        "whole",
        description="what the tower sees of a picture: the 'whole' of it on a white square, or 'crop', as CLIP and "
        "most evaluations do: resized by its shorter side and cut to the square in its middle. Augmented views are "
        "cropped from the white square, or from the picture itself",
    )
    block: int | None = Field(
        None, ge=0, description="take the features after this stage (CNN, Swin) or block (ViT) instead of the last ones"
    )
    tokens: Positive | None = Field(
        None,
        exclude_if=lambda value: value is None,
        description="of the token-wise similarity: number of tokens to which an image's patches are pooled; null for "
        "all patches, as in the paper",
    )
    pooling: Literal["areas", "attention"] = Field(
        "areas",
        exclude_if=lambda value: value == "areas",
        description="how patches are pooled to tokens: to means of square areas, or by trained attention maps, as in "
        "some of the authors' released models",
    )

    def of_tower(self) -> dict[str, Any]:
        """Return the keys that decide the features of an image: all but how they are pooled, which is trained later."""
        return self.model_dump(mode="json", exclude={"tokens", "pooling"})

    @field_validator("weights")
    @classmethod
    def _weights_are_known(cls, value: str) -> str:
        if value not in ("package", "hub", "random") and (why := uri_problem(value)):
            raise ValueError(f"it is 'package', 'hub', 'random', or the URI of a safetensors file; {why}")
        return value


class TextEncoder(Strict):
    """A BERT-like text tower (section 4.2) over a WordPiece vocabulary of 21,128."""

    layers: Positive = Field(12, description="transformer layers")
    heads: Positive = Field(12, description="attention heads of a layer; they divide width")
    width: Positive = Field(768, description="of a token's vector")
    max_tokens: Positive = Field(32, description="of a caption, [CLS] and [SEP] included; more are cut off")
    dropout: float = Field(0.0, ge=0.0, lt=1.0, description="share of values set to zero in training")
    pooling: Literal["cls", "mean"] = Field(
        "cls", description="what stands for a caption: [CLS], as in the paper, or the mean of its tokens"
    )
    vocabulary: str = Field("package", description="'package' for the Chinese BERT's, or the URI of a vocab.txt")
    vocabulary_sha256: Sha256 | None = Field(
        None,
        exclude_if=lambda value: value is None,
        description="of the file that vocabulary names; a run notes it when it begins, and then takes no other file",
    )
    weights: str = Field(
        "random",
        description="what training starts from: 'random', as in the paper; the URI of a folder with config.json and "
        "model.safetensors of a BERT or RoBERTa; or 'hub:' and its name there, for instance 'hub:bert-base-chinese'",
    )
    weights_sha256: Sha256 | None = Field(
        None,
        exclude_if=lambda value: value is None,
        description="of the two files that weights names; a run notes it when it begins, and then takes no others",
    )
    norm_epsilon: float = Field(1e-12, gt=0, description="of the layer norms: BERT's 1e-12, RoBERTa's 1e-5")

    @field_validator("vocabulary")
    @classmethod
    def _vocabulary_is_known(cls, value: str) -> str:
        if value != "package" and (why := uri_problem(value)):
            raise ValueError(f"it is 'package', or the URI of a vocab.txt; {why}")
        return value

    @field_validator("weights")
    @classmethod
    def _weights_are_known(cls, value: str) -> str:
        named = value.startswith("hub:") and value != "hub:"
        if value != "random" and not named and (why := uri_problem(value)):
            raise ValueError(f"it is 'random', 'hub:NAME', or the URI of a folder of a BERT; {why}")
        return value

    @model_validator(mode="after")
    def _heads_divide_the_width(self) -> "TextEncoder":
        if self.width % self.heads:
            fitting = [n for n in range(1, min(self.width, 64) + 1) if not self.width % n]
            raise ValueError(
                f"heads is {self.heads}, which does not divide width, {self.width}; for this width heads may be "
                f"{', '.join(map(str, fitting))}"
            )
        return self


class Model(Strict):
    """The dual encoder of figure 1: an architecture (``wukong/config/architectures``) and the keys that override it."""

    architecture: str | None = Field(
        None,
        exclude=True,  # what it stands for is in the other keys
        description="name of a file in wukong/config/architectures, such as vit-b-32; the other keys override it",
    )
    image: ImageEncoder = ImageEncoder()
    text: TextEncoder = TextEncoder()
    embedding: Positive | None = Field(
        256,
        description="width of the common space (table 3), to which each side is projected; null for no projections, "
        "where the towers are of one width",
    )
    similarity: Literal["global", "token"] = Field(
        "global", description="of one vector an image and a caption, or of all their tokens (section 4.3)"
    )
    match_text_cls: bool = Field(
        True,
        description="of the token-wise similarity: whether a patch may take the text's [CLS] for its match (s^I), as "
        "in section 4.3 and the authors' code; a text's similarity to pictures (s^T) leaves [CLS] out either way",
    )
    temperature: float = Field(0.07, gt=0, description="initial; learned")
    min_temperature: float = Field(0.01, gt=0, description="the learned temperature is never lower")
    loss: Literal["softmax", "sigmoid"] = Field(
        "softmax", description="a caption among all of the batch (section 4.3), or each pair by itself (SigLIP)"
    )
    bias: float = Field(
        -10.0,
        description="bias of the sigmoid loss at the start; learned. It is negative because most combinations of an "
        "image and a caption in a batch are no pairs",
    )

    @model_validator(mode="after")
    def _pooled_tokens_are_compared(self) -> "Model":
        image, count = self.image, self.image.tokens
        if count is None and image.pooling != "areas":
            raise ValueError(f"image.pooling is {image.pooling}, and image.tokens, the number of tokens, is not given")
        if count is not None and not self.is_token_wise:
            raise ValueError("image.tokens is of the token-wise similarity: write similarity: token, or leave it out")
        if count is not None and image.pooling == "areas" and isqrt(count) ** 2 != count:
            raise ValueError(f"image.tokens: {count} square areas are no square; 4, 9, 16, … are allowed")
        return self

    @property
    def is_token_wise(self) -> bool:
        """Whether images and texts have a vector for each token (FILIP), or one (CLIP)."""
        return self.similarity == "token"

    @model_validator(mode="before")
    @classmethod
    def _of_architecture(cls, value: Any) -> Any:
        if not isinstance(value, dict) or value.get("architecture") is None:
            return value
        merged = dict(architecture(value["architecture"]))
        for key, entry in value.items():
            if key == "architecture":
                continue
            both = isinstance(entry, dict) and isinstance(merged.get(key), dict)
            merged[key] = {**merged[key], **entry} if both else entry
        return merged


def architecture(name: str) -> dict[str, Any]:
    """Read a file of ``wukong/config/architectures``: keys of ``model`` by section.

    Raises:
        ValueError: there is no such file; the message names those there are.
    """
    folder = resources.files("wukong.config") / "architectures"
    names = sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))
    if name not in names:
        raise ValueError(f"there is no architecture {name!r}; allowed are {', '.join(names)}")
    value: dict[str, Any] = yaml.safe_load((folder / f"{name}.yaml").read_text(encoding="utf-8"))
    return value
