"""Rules that judge pictures by a model of the operator: unsafe, watermark, aesthetic and the like differ in little."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from wukong.config.picture_model import PictureModel
from wukong.curate import picture_weights
from wukong.curate.rule import Column, Dropped, FromPictures, Pairs, PictureBatch, Rule
from wukong.errors import ConfigError, DataError

if TYPE_CHECKING:
    import polars as pl


class ModelRule(Rule):
    """A rule that stores what a model sees in each picture, null where the model is blind, and decides over it.

    Its settings are one section of the rule's name, which has a ``model``, and is null where the rule is off.

    Attributes:
        column: of what the model sees.
        decides: the keys of the section that decide over the column. The first is the least score that is kept, if its
            name begins with ``min_``, or else the greatest.
        one_number: whether the column is the model's one number.
    """

    decided = "pictures"
    column: Column
    decides: tuple[str, ...]
    one_number = True

    def __init__(self) -> None:
        self.stored = (self.column,)
        self.thresholds = tuple(f"{self.name}.{key}" for key in self.decides)
        self.uris = (f"{self.name}.model.uri",)

    def section(self, settings: Any) -> Any:
        """The rule's section."""
        return getattr(settings, self.name)

    def seen(self, batch: PictureBatch, section: Any) -> pl.Series:
        """Compute what the model sees in each picture."""
        import polars as pl

        from wukong.curate import picture_models

        model: PictureModel = section.model
        found = picture_models.outputs(model, batch.decoded, batch.device, batch.names)
        _refuse_several(model, found.shape[1])
        return pl.Series(found[:, 0], dtype=pl.Float32).fill_nan(None)

    def enabled(self, settings: Any) -> bool:
        """Whether there is a section."""
        return self.section(settings) is not None

    def problem(self, key: str, uri: str) -> str:
        """Say why weights cannot be used."""
        return picture_weights.missing(uri)

    def verify(self, settings: Any) -> None:
        """Compare weights with their digest, and let the model see a gray picture where what runs it is installed.

        Raises:
            ConfigError: they are others, or the settings do not fit them.
        """
        model: PictureModel = self.section(settings).model
        picture_weights.verify(model)
        if not all(map(find_spec, ("onnxruntime",) if model.uri == model.file else ("timm", "safetensors"))):
            return
        from wukong.curate import picture_models

        try:
            numbers = picture_models.check(model)
        except DataError as error:
            raise ConfigError(str(error)) from error
        if self.one_number:
            _refuse_several(model, numbers)

    def from_pictures(self, settings: Any) -> tuple[FromPictures, ...]:
        """The column."""
        return (FromPictures(self.column.name, lambda batch, _: self.seen(batch, self.section(settings)), True),)

    def drops(self, pairs: Pairs, settings: Any) -> Dropped:
        """Compare the scores with the first key that decides."""
        scores = pairs[self.column.name]
        limit: float = getattr(self.section(settings), self.decides[0])
        return scores < limit if self.decides[0].startswith("min_") else scores > limit

    def counts(self, pairs: Pairs, settings: Any) -> Mapping[str, int]:
        """Count the pictures that the model cannot read."""
        return {f"unread/{self.name}": pairs[self.column.name].null_count()}


def known_range(model: PictureModel) -> PictureModel:
    """Return a model whose numbers have a known range, with which a threshold can be compared.

    Raises:
        ValueError: the range is not known.
    """
    if model.output.possible is None:
        raise ValueError(
            "output.range is missing: write the least and the greatest score that the model gives, for instance "
            "[0, 1], or set output.activation to 'softmax' or 'sigmoid'"
        )
    return model


def whole_picture(model: PictureModel) -> PictureModel:
    """Return a detector that sees the whole picture and nothing else, so that its sides are the picture's.

    Raises:
        ValueError: it sees a part, or margins.
    """
    if model.input.resize not in ("keep", "squash") or model.input.resize_to is not None:
        raise ValueError(
            f"input.resize is {model.input.resize!r}: a detector sees the whole picture without margins, by 'keep' or "
            "'squash' without resize_to"
        )
    return model


def _refuse_several(model: PictureModel, numbers: int) -> None:
    if numbers != 1:
        raise ConfigError(
            f"{model.uri} gives {numbers} numbers a picture, and the rule compares one: name it in output.index"
        )
