"""Rules that score pictures by a model of the operator: unsafe, watermark, aesthetic and the like differ in little."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from wukong.config.picture_model import PictureModel
from wukong.config.section import Strict
from wukong.curate import picture_weights
from wukong.curate.rule import Column, FromPictures, PictureBatch, Rule
from wukong.errors import ConfigError, DataError

if TYPE_CHECKING:
    import polars as pl


def rule_of_scores(
    name: str,
    *,
    place: int,
    title: str,
    unchecked: str,
    settings: type[Strict],
    column: str,
    column_place: int,
    threshold: str,
    drops: Callable[[pl.Expr, Any], pl.Expr],
    scores: Callable[[PictureBatch, Any], pl.Series] | None = None,
) -> Rule[Any]:
    """Make a rule that stores a score of each picture, Float32, and decides over it; null where the model is blind.

    Args:
        name: of the rule, and of its section: a key of ``settings`` that is null where the rule is off.
        place: see ``Rule``.
        title: see ``Rule``.
        unchecked: see ``Rule``.
        settings: the rule's keys in ``filter``.
        column: of the scores.
        column_place: see ``Column``.
        threshold: the key of the section that decides over the scores.
        drops: from the column and the section an expression, true for a pair that is dropped.
        scores: from a batch and the section one score a picture; if absent, the model's one number.
    """
    section: Callable[[Any], Any] = attrgetter(name)

    def is_on(all_settings: Any) -> bool:
        return section(all_settings) is not None

    def of_column(all_settings: Any) -> pl.Expr:
        import polars as pl

        return drops(pl.col(column), section(all_settings))

    return Rule(
        name=name,
        place=place,
        title=title,
        unchecked=unchecked,
        version=1,
        settings=settings,
        enabled=is_on,
        stored=(Column(column, "float32", place=column_place, optional=True),),
        from_pictures=(
            FromPictures(
                column=column,
                compute=lambda batch, all_settings: (scores or _of_model)(batch, section(all_settings)),
                thresholds=(f"{name}.{threshold}",),
                runs_model=True,
            ),
        ),
        counts=lambda pairs, all_settings: {f"unread/{name}": pairs[column].null_count()},
        drops=of_column,
        uris={f"{name}.model.uri": picture_weights.missing},
        verify=lambda all_settings: verify(section(all_settings).model, one_number=scores is None),
    )


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


def verify(model: PictureModel, *, one_number: bool) -> None:
    """Compare weights with their digest, and let the model look at a gray picture where what runs it is installed.

    Args:
        model: the weights and their settings.
        one_number: whether a rule compares the model's one number.

    Raises:
        ConfigError: they are others, or the settings do not fit them.
    """
    picture_weights.verify(model)
    if not all(map(find_spec, ("onnxruntime",) if model.uri == model.file else ("timm", "safetensors"))):
        return
    from wukong.curate import picture_models

    try:
        numbers = picture_models.check(model)
    except DataError as error:
        raise ConfigError(str(error)) from error
    if one_number:
        _refuse_several(model, numbers)


def _refuse_several(model: PictureModel, numbers: int) -> None:
    if numbers != 1:
        raise ConfigError(
            f"{model.uri} gives {numbers} numbers a picture, and the rule compares one: name it in output.index"
        )


def _of_model(batch: PictureBatch, section: Any) -> pl.Series:
    import polars as pl

    from wukong.curate import picture_models

    model: PictureModel = section.model
    found = picture_models.outputs(model, batch.decoded, batch.device, batch.names)
    _refuse_several(model, found.shape[1])
    return pl.Series(found[:, 0], dtype=pl.Float32).fill_nan(None)
