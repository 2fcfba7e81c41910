"""Pairs whose caption does not fit the picture, by a model of this project, are dropped. Off by default."""

from __future__ import annotations

from functools import lru_cache
from threading import Lock
from typing import TYPE_CHECKING, Any, Self

from pydantic import Field, model_validator

from wukong.config.section import Sha256, Strict
from wukong.curate.rule import Column, Dropped, FromPictures, Pairs, PictureBatch, Rule

if TYPE_CHECKING:
    import polars as pl

_LOADING = Lock()
MODEL_FILES = ("config.json", "model.safetensors", "vocab.txt")
"""The files of a saved model (``wukong.model.saved_model``, which needs torch)."""


class SimilarityRule(Rule):
    place = 80
    title = "caption fits the picture, by a model"
    unchecked = "No model looked whether captions fit their pictures."
    decided = "pictures"
    stored = (Column("similarity", "float32", nullable=True, of_caption=True),)
    thresholds = ("min_similarity",)
    uris = ("similarity_model",)

    class Settings(Strict):
        similarity_model: str | None = Field(
            None,
            description="URI of a model's folder, by which pairs are left out whose caption does not fit the picture",
        )
        similarity_model_sha256: Sha256 | None = Field(
            None,
            exclude_if=lambda value: value is None,
            description="of the files that similarity_model names; a run notes it when it begins, and then takes no "
            "others",
        )
        min_similarity: float = Field(0.0, ge=-1, le=1, description="by similarity_model, pairs below it are left out")

        @model_validator(mode="after")
        def _a_threshold_has_what_it_compares(self) -> Self:
            if self.min_similarity and self.similarity_model is None:
                raise ValueError(
                    f"min_similarity is {self.min_similarity}, but without similarity_model nothing is compared: name "
                    "the URI of a model's folder, or leave it out"
                )
            return self

    def enabled(self, settings: Settings) -> bool:
        return settings.similarity_model is not None

    def problem(self, key: str, uri: str) -> str:
        from wukong.store import storage

        if missing := [name for name in MODEL_FILES if not storage.exists(storage.join(uri, name))]:
            return f"{uri} lacks {', '.join(missing)}; name a folder with {', '.join(MODEL_FILES)}"
        return ""

    def from_pictures(self, settings: Settings) -> tuple[FromPictures, ...]:
        return (FromPictures("similarity", similarities, runs_model=True),)

    def drops(self, pairs: Pairs, settings: Settings) -> Dropped:
        return pairs["similarity"] < settings.min_similarity


def similarities(batch: PictureBatch, settings: SimilarityRule.Settings) -> pl.Series:
    """The similarity of each picture and its caption that the model computes, Float32 in [-1, 1].

    Raises:
        DataError: a picture cannot be decoded.
    """
    import polars as pl
    import torch

    with _LOADING:
        model = _model(str(settings.similarity_model), settings.similarity_model_sha256, batch.device)
    size = 32 if batch.device == "cpu" else len(batch.pictures)
    with torch.inference_mode():
        pictures = model.encode_image(batch.decoded, batch_size=size)
        scores = model.similarity(pictures, model.encode_text(batch.captions))
    return pl.Series(scores.diagonal().float().numpy(), dtype=pl.Float32)


@lru_cache(maxsize=1)
def _model(uri: str, sha256: str | None, device: str) -> Any:
    import torch

    from wukong.model import saved_model
    from wukong.store import contents

    if device == "cpu":
        torch.set_num_threads(1)  # tasks run side by side
    model = saved_model.load(uri, device)
    contents.check(uri, sha256, MODEL_FILES)
    return model


RULE = SimilarityRule()
