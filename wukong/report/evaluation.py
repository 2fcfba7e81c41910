"""The page of an evaluation: the paper's Tables 5, 6 and 7 with the numbers measured here beside the paper's.

``wukong evaluate --report`` and the evaluate stage write it. It is one HTML file that needs neither a network nor a
script. What it shows is the document of ``wukong.evaluate.results`` and small images.
"""

import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

from wukong.errors import DataError
from wukong.evaluate import alignment, paper, sets
from wukong.evaluate.data_set import ClassificationData, RetrievalData
from wukong.evaluate.results import HOLDOUT, ROLES, Classified, Outcome
from wukong.model.saved_model import SavedModel
from wukong.report import template
from wukong.report.gallery import data_uri

log = logging.getLogger(__name__)

_ALIGNED = 2  # pictures of a task
_SQUARE = 448
_CLASSES = 6  # of the best, and of the worst
_DIRECTIONS = {"image_to_text": "image → text", "text_to_image": "text → image"}
_NAMES = {
    "top1": "top-1",
    "top5": "top-5",
    "mean_per_class": "mean over classes",
    "mean_recall": "mean recall",
    **{f"{name}_r{k}": f"{title} R@{k}" for name, title in _DIRECTIONS.items() for k in (1, 5, 10)},
}


def pictures(
    data: ClassificationData | RetrievalData, outcome: Outcome, known: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Make the small images of a task's examples: data URIs by the images' ids.

    Args:
        data: what was measured.
        outcome: the results on it.
        known: those that are made already, which are left out.

    Raises:
        DataError: an image cannot be decoded.
    """
    places = {each: i for i, each in enumerate(data.ids if isinstance(data, ClassificationData) else data.image_ids)}
    wanted = dict.fromkeys(each for example in outcome.examples for each in _ids(example))
    return {each: data_uri(data.image(places[each])) for each in wanted if each not in (known or {})}


def _ids(example: Any) -> Iterator[str]:
    if isinstance(example, Classified):
        yield example.image
    else:
        yield from (candidate.image for candidate in example.images)


def aligned(
    saved: SavedModel, data: ClassificationData | RetrievalData, outcome: Outcome, role: str
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Align words and patches of a few pictures that a token-wise model gets right (section 5.4, Figure 4).

    Args:
        saved: the model with its image tower.
        data: what was measured.
        outcome: the results on it.
        role: of the model, one of ``ROLES``.

    Returns:
        For each picture ``task``, ``model``, ``image`` (its id), ``text``, ``tokens``, ``highlighted`` (indices of
        tokens) and ``best`` (rows of indices). And what the image encoder saw of them, as ``render`` takes it with the
        examples' small images.

    Raises:
        DataError: an image cannot be decoded.
    """
    places = {each: i for i, each in enumerate(data.ids if isinstance(data, ClassificationData) else data.image_ids)}
    found: list[dict[str, Any]] = []
    squares = {}
    for image, text in _right(outcome):
        if len(found) == _ALIGNED:
            break
        try:
            best = alignment.align(saved, data.image(places[image]), text)
        except DataError as error:  # for instance a caption of more tokens than the model reads
            log.warning("%s: no alignment is drawn of %r: %s", data.name, text, error)
            continue
        found.append(
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
        squares[_square(image)] = data_uri(best.shown.copy(), _SQUARE)
    return found, squares


def _square(image: str) -> str:
    """The key of what the image encoder saw of an image, among the small images of a task."""
    return f"square of {image}"


def _right(outcome: Outcome) -> Iterator[tuple[str, str]]:
    """Iterate over the examples that are right: the image's id, and the class's name or the caption."""
    for example in outcome.examples:
        if isinstance(example, Classified):
            if example.right:
                yield example.image, example.label
        elif not example.rank:
            yield next(each.image for each in example.images if each.right), example.caption


def missing(measured: Collection[str]) -> dict[str, str]:
    """Return, for each published set that was not measured, what to download and where to put it."""
    return {name: f"{each.title}: {each.how_to_get}" for name, each in sets.REGISTRY.items() if name not in measured}


def notes(measured: Collection[str]) -> dict[str, str]:
    """Return what must be known of the published sets that were measured to read their numbers."""
    return {name: each.note for name, each in sets.REGISTRY.items() if name in measured and each.note}


def render(document: Mapping[str, Any], shown: Mapping[str, Mapping[str, str]]) -> str:
    """Returns the page.

    Args:
        document: of ``wukong.evaluate.results.document``.
        shown: for each task the small images of its examples and alignments, see ``pictures`` and ``aligned``.
    """
    models = {model["role"]: model for model in document["models"]}
    roles = {role: title for role, title in ROLES.items() if role in models}
    tasks = _tasks(document, shown)
    values = {
        "models": [{**models[role], "title": title} for role, title in roles.items()],
        "roles": roles,
        "protocols": document["protocols"],
        "tasks": tasks,
        "held": [task for task in tasks if task["split"] == HOLDOUT],
        "other": [task for task in tasks if task["split"] != HOLDOUT and not _in_paper(task["task"])],
        "methods": paper.MODELS_OF_TABLE_5,
        "table_5": [_titled(row) for row in document["tables"]["5"]["rows"]],
        "average": document["tables"]["5"]["average"],
        "recalls": [
            {
                "number": number,
                "title": title,
                "model": ROLES[role],
                "measured": role in roles,
                "rows": [_titled(row) for row in document["tables"][number]["rows"]],
            }
            for number, title, role in (
                ("6", "Zero-shot retrieval", "pretrained"),
                ("7", "Retrieval after fine-tuning", "finetuned"),
            )
        ],
        "directions": _DIRECTIONS,
        "alignments": [_alignment(each, shown[each["task"]]) for each in document["alignments"]],
        "token_wise": any(model["token_wise"] for model in document["models"]),
        "missing": document["missing"],
    }
    return template.fill("evaluation.html.j2", values, _FILTERS)


def _in_paper(name: str) -> bool:
    return name in paper.TABLE_5 or name in paper.TABLE_7


def _titled(row: Mapping[str, Any]) -> dict[str, Any]:
    return {**row, "title": sets.of(row["set"]).title}


def _tasks(document: Mapping[str, Any], shown: Mapping[str, Mapping[str, str]]) -> list[dict[str, Any]]:
    """Return each task once, with the results of the models beside each other; the last model's examples are shown."""
    found: dict[str, dict[str, Any]] = {}
    for entry in document["tasks"]:
        task = found.setdefault(entry["task"], {**entry, "by_model": {}})
        task["by_model"][entry["model"]] = entry["results"]
    for name, task in found.items():
        entries = {entry["model"]: entry for entry in document["tasks"] if entry["task"] == name}
        role = next(each for each in ("finetuned", "pretrained") if each in entries)
        task |= {
            "names": {key: _NAMES.get(key, key.replace("_", " ")) for key in sorted(task["results"], key=_place)},
            "sizes": {what: task["sizes"][what] for what in sorted(task["sizes"], key=_place)},
            "shown_model": ROLES[role],
            "pictures": shown.get(name, {}),
            "differences": {each["result"]: each for each in document.get("comparisons", ()) if each["task"] == name},
            "examples": entries[role]["examples"],
            "note": document.get("notes", {}).get(name, ""),
            "trained_on": [each for each in document.get("trained_on", ()) if each["task"] == name],
            **_best_and_worst(entries[role]["classes"]),
        }
    return list(found.values())


def _place(name: str) -> tuple[int, str]:
    """Return the place of a result or a size on the page: a document that was read from a file has sorted keys."""
    order = [*_NAMES, "images"]
    return (order.index(name) if name in order else len(order), name)


def _best_and_worst(classes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the best and the worst classes, no class in both; all of them as the best where there are few."""
    ordered = sorted(classes, key=lambda each: (-each["top1"], each["name"]))
    if len(ordered) <= 2 * _CLASSES:
        return {"best": ordered, "worst": []}
    return {"best": ordered[:_CLASSES], "worst": ordered[: -_CLASSES - 1 : -1]}


def _alignment(entry: Mapping[str, Any], shown: Mapping[str, str]) -> dict[str, Any]:
    """Add what the picture's overlay is drawn from: the marked patches, and how many patches each token has."""
    side, marked = len(entry["best"]), set(entry["highlighted"])
    cells = [
        {"x": x, "y": y, "token": token, "marked": token in marked}
        for y, row in enumerate(entry["best"])
        for x, token in enumerate(row)
    ]
    tokens = [
        {"text": text, "marked": number in marked, "patches": sum(cell["token"] == number for cell in cells)}
        for number, text in enumerate(entry["tokens"])
    ]
    return {**entry, "square": shown[_square(entry["image"])], "side": side, "cells": cells, "legend": tokens}


def _number(value: float) -> str:
    return f"{value:.1f}"


def _interval(value: Mapping[str, float], scale: float = 1.0) -> str:
    return f"{scale * value['low']:.1f}–{scale * value['high']:.1f}"


def _signed(value: float) -> str:
    return f"{value:+.1f}"


def _count(value: int) -> str:
    return f"{value:,}"


_FILTERS: Mapping[str, Callable[..., str]] = {
    "number": _number,
    "interval": _interval,
    "signed": _signed,
    "count": _count,
}
