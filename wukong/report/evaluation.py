"""The page of an evaluation: the paper's Tables 5, 6 and 7 with the numbers measured here beside the paper's.

``wukong evaluate --report`` and the evaluate stage write it. It is one HTML file that needs no network, and in
English no script. What it shows is the document of ``wukong.evaluate.results`` and small images.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from markupsafe import Markup

from wukong.config import evaluators
from wukong.config.evaluators import DIRECTIONS
from wukong.evaluate import paper, protocol, sets
from wukong.evaluate.results import HOLDOUT, ROLES, overlap_of, significance, square_of
from wukong.report import languages, template
from wukong.report.comparison import SIGNS
from wukong.runtime.language import chinese_of, restored

_CLASSES = 6  # of the best, and of the worst


def render(document: Mapping[str, Any], shown: Mapping[str, Mapping[str, str]]) -> str:
    """Returns the page.

    Args:
        document: what ``wukong.evaluate.results.document`` returns.
        shown: small images of the examples and alignments of each task (``wukong.evaluate.examples``).
    """
    models = {model["role"]: model for model in document["models"]}
    roles = {role: _title(role) for role in ROLES if role in models}
    tasks, in_paper = _tasks(document, shown), {*paper.TABLE_5, *paper.TABLE_7}
    values = {
        "models": [{**models[role], "title": title} for role, title in roles.items()],
        "roles": roles,
        **described(document),
        "tasks": tasks,
        "held": [task for task in tasks if task["split"] == HOLDOUT],
        "other": [task for task in tasks if task["split"] != HOLDOUT and task["task"] not in in_paper],
        "methods": paper.MODELS_OF_TABLE_5,
        "table_5": [_titled(row) for row in document["tables"]["5"]["rows"]],
        "average": document["tables"]["5"]["average"],
        "recalls": [
            {
                "number": number,
                "model": _title(role),
                "measured": role in roles,
                "titles": {role: _title(role)},
                "rows": [
                    {**_titled(row), "ours": {role: row["ours"]} if row["ours"] else {}}
                    for row in document["tables"][number]["rows"]
                ],
            }
            for number, role in (("6", "pretrained"), ("7", "finetuned"))
        ],
        "directions": DIRECTIONS,
        "alignments": [_alignment(each, shown[each["task"]]) for each in document["alignments"]],
        "token_wise": any(model["token_wise"] for model in document["models"]),
        "overlaps": [(task, role) for task in tasks for role in task["overlaps"]],
    }
    return template.fill("evaluation.html.j2", values, FILTERS)


def described(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return protocols and missing sets of a document, which may be of a file, with their Chinese."""
    known = chinese_of([*protocol.descriptions(), *sets.missing(()).values()])
    return {key: restored(document[key], known) for key in ("protocols", "missing")}


def _title(role: str) -> Markup:
    return languages.spoken(ROLES[role])


def _titled(row: Mapping[str, Any]) -> dict[str, Any]:
    return {**row, "title": sets.of(row["set"]).title}


def _tasks(document: Mapping[str, Any], shown: Mapping[str, Mapping[str, str]]) -> list[dict[str, Any]]:
    """Return each task once, with the results of the models beside each other; the last model's examples are shown."""
    tasks: dict[str, dict[str, Any]] = {}
    for entry in document["tasks"]:
        task = tasks.setdefault(entry["task"], {**entry, "by_model": {}})
        task["by_model"][entry["model"]] = entry["results"]
    for name, task in tasks.items():
        entries = {entry["model"]: entry for entry in document["tasks"] if entry["task"] == name}
        role = next(each for each in ("finetuned", "pretrained") if each in entries)
        task |= {
            "names": {key: evaluators.result_of(key).title for key in sorted(task["results"], key=_rank)},
            "sizes": {what: task["sizes"][what] for what in sorted(task["sizes"], key=_rank)},
            "shown_model": _title(role),
            "pictures": shown.get(name, {}),
            "differences": {each["result"]: each for each in document["comparisons"] if each["task"] == name},
            "examples": entries[role]["examples"],
            "note": document["notes"].get(name, ""),
            "trained_on": [each for each in document["trained_on"] if each["task"] == name],
            "overlaps": {role: found for role in ROLES if (found := overlap_of(document, name, role))},
            **_best_and_worst(entries[role]["classes"]),
        }
    return list(tasks.values())


def _rank(name: str) -> tuple[int, str]:
    """Return the rank of a result or a size on the page: a document that was read from a file has sorted keys."""
    order = [*evaluators.results(), "images"]
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
    return {**entry, "square": shown[square_of(entry["image"])], "side": side, "cells": cells, "legend": tokens}


def _interval(value: Mapping[str, float], scale: float = 1.0) -> str:
    return f"{scale * value['low']:.1f}–{scale * value['high']:.1f}"


FILTERS: Mapping[str, Callable[..., str]] = {
    "significance": significance,
    "p_value": "{:.2g}".format,
    "sign": SIGNS.__getitem__,
    "number": "{:.1f}".format,
    "interval": _interval,
    "signed": "{:+.1f}".format,
    "count": "{:,}".format,
}
