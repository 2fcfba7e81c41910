"""Examples of a task for its page: which answers are shown, their small images, and alignments of words and patches."""

import logging
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from wukong.data.decoding import data_uri
from wukong.errors import DataError
from wukong.evaluate import alignment
from wukong.evaluate.data_set import Data
from wukong.evaluate.results import Classified, Outcome, Query, square_of
from wukong.model.saved_model import SavedModel

log = logging.getLogger(__name__)

_EXAMPLES = 4  # of right ones, and as many of wrong ones
_ALIGNED = 2  # pictures of a task
_SQUARE = 448


def chosen(right: Tensor) -> list[int]:
    """Choose a few right answers, then a few wrong ones, spread evenly over all; ``right`` is bool [answers]."""
    groups = (right.nonzero().squeeze(1).tolist(), (~right).nonzero().squeeze(1).tolist())
    return [number for group in groups for number in group[:: max(1, len(group) // _EXAMPLES)][:_EXAMPLES]]


def pictures(data: Data, outcome: Outcome, known: Mapping[str, str] | None = None) -> dict[str, str]:
    """Make the small images of a task's examples: data URIs by the images' ids.

    Args:
        data: what was measured.
        outcome: the results on it.
        known: those that are made already, which are left out.

    Raises:
        DataError: an image cannot be decoded.
    """
    rows = {image: row for row, image in enumerate(data.ids)}
    shown = [each for example in outcome.examples for each in _shown(example)]
    return {image: data_uri(data.image(rows[image])) for image in dict.fromkeys(shown) if image not in (known or {})}


def _shown(example: Classified | Query) -> list[str]:
    return [each.image for each in ([example] if isinstance(example, Classified) else example.images)]


def aligned(saved: SavedModel, data: Data, outcome: Outcome, role: str) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Align words and patches of a few pictures that a token-wise model gets right (section 5.4, Figure 4).

    Args:
        saved: the model with its image tower.
        data: what was measured.
        outcome: the results on it.
        role: the model's role, one of ``ROLES``.

    Returns:
        For each picture ``task``, ``model``, ``image`` (its id), ``text``, ``tokens``, ``highlighted`` (indices of
        tokens) and ``best`` (rows of indices). And what the image encoder saw of them, by ``square_of``, for the page.

    Raises:
        DataError: an image cannot be decoded.
    """
    rows = {image: row for row, image in enumerate(data.ids)}
    alignments: list[dict[str, Any]] = []
    squares = {}
    for image, text in _right(outcome):
        if len(alignments) == _ALIGNED:
            break
        try:
            best = alignment.align(saved, data.image(rows[image]), text)
        except DataError as error:  # for instance a caption of more tokens than the model reads
            log.warning("%s: no alignment is drawn of %r: %s", data.name, text, error)
            continue
        alignments.append(
            {
                "task": data.name,
                "model": role,
                "image": image,
                "text": text,
                "tokens": list(best.tokens),
                "highlighted": sorted(best.highlighted),
                "best": best.best.tolist(),
            }
        )
        squares[square_of(image)] = data_uri(best.shown.copy(), _SQUARE)
    return alignments, squares


def _right(outcome: Outcome) -> Iterator[tuple[str, str]]:
    """Iterate over the examples that are right: the image's id, and the class's name or the caption."""
    for example in outcome.examples:
        if isinstance(example, Classified):
            if example.right:
                yield example.image, example.label
        elif not example.rank:
            yield next(each.image for each in example.images if each.right), example.caption
