"""Tables 5, 6 and 7 of the paper with several models beside its own: differences, what exceeds noise, what is missing.

The paper gives no intervals. Its numbers are of the same test sets, so they are taken to be as uncertain as ours: a
difference exceeds the noise where it is larger than sqrt(2) times half of our 95 % interval.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from wukong.config.evaluators import CUTOFFS, DIRECTIONS
from wukong.evaluate import paper, results, sets
from wukong.evaluate.results import MeasuredModel
from wukong.runtime.language import _

FORMAT = 1
TITLES: Mapping[str, str] = {
    "5": "Zero-shot classification",
    "6": "Zero-shot retrieval",
    "7": "Retrieval after fine-tuning",
}
ROLE: Mapping[str, str] = {"5": "pretrained", "6": "pretrained", "7": "finetuned"}
"""Which of the measured models each table is of."""


@dataclass(frozen=True)
class Evaluated:
    """A model that was evaluated.

    Attributes:
        label: its name in the table; no two have the same.
        document: that of ``wukong.evaluate.results``.
        column: the model of the paper that its numbers stand beside, one of ``paper.MODELS_OF_TABLE_5``; None for none.
        address: how to measure it by ``wukong evaluate``, where that is known.
    """

    label: str
    document: Mapping[str, Any]
    column: str | None = None
    address: str = ""


def table(number: str, models: Sequence[Evaluated]) -> dict[str, Any]:
    """Return Table 5, 6 or 7 with what was measured of some models.

    Returns:
        ``format``, ``table``, ``title``; ``models``: label, column, digest and similarity of each; ``protocols``: their
        sentences by name; ``rows`` as in ``results.tables``, where ``ours`` has an entry a model by its label and each
        number has ``paper``, ``difference`` and ``verdict`` if the paper has one for it; ``average`` (Table 5); and
        ``missing``: ``set``, ``models``, ``how`` of what was not measured.
    """
    role, tables = ROLE[number], {each.label: _of(number, each) for each in models}
    rows = [
        {key: value for key, value in row.items() if key != "ours"} | {"title": sets.of(row["set"]).title, "ours": {}}
        for row in results.tables((), ())[number]["rows"]
    ]
    for model in models:
        for row, own in zip(rows, tables[model.label]["rows"], strict=True):
            entry = own["ours"].get(role) if number == "5" else own["ours"]
            if entry is not None:
                row["ours"][model.label] = _beside(number, row, entry, model)
    made = {
        "format": FORMAT,
        "table": number,
        "title": TITLES[number],
        "models": [_about(model, role) for model in models],
        "protocols": {name: each for model in models for name, each in model.document["protocols"].items()},
        "rows": rows,
        "missing": list(_missing(number, rows, models)),
    }
    if number == "5":
        made["average"] = _average(rows, models)
    return made


def _of(number: str, model: Evaluated) -> Mapping[str, Any]:
    measured = [MeasuredModel(**each) for each in model.document["models"]]
    found: Mapping[str, Any] = results.tables(measured, model.document["tasks"])[number]
    return found


def _about(model: Evaluated, role: str) -> dict[str, Any]:
    measured = next((each for each in model.document["models"] if each["role"] == role), None)
    return {
        "label": model.label,
        "column": model.column,
        "name": measured["name"] if measured else None,
        "digest": measured["digest"] if measured else None,
        "token_wise": measured["token_wise"] if measured else None,
    }


def _beside(number: str, row: Mapping[str, Any], entry: Mapping[str, Any], model: Evaluated) -> dict[str, Any]:
    """Put the paper's number beside each of an entry's, by the model's column."""
    fair = entry["protocol"] == "paper"
    if number == "5":
        published = row["paper"].get(model.column) if model.column else None
        return {**entry, **_compared(entry, published, fair=fair)}
    methods = {each["method"]: each for each in row["paper"]}
    published = methods.get(model.column) if model.column else None
    made = dict(entry)
    for direction in DIRECTIONS:
        if made[direction] is not None:
            known = (published[direction] if published else None) or [None] * len(CUTOFFS)
            made[direction] = [
                {**value, **_compared(value, each, fair=fair)}
                for value, each in zip(made[direction], known, strict=True)
            ]
    mean = made["mean_recall"]
    made["mean_recall"] = {**mean, **_compared(mean, published["mean_recall"] if published else None, fair=fair)}
    return made


def _compared(value: Mapping[str, float], published: float | None, *, fair: bool) -> dict[str, Any]:
    """Compare a number with the paper's; nothing if the paper has none."""
    if published is None:
        return {}
    difference = value["value"] - published
    verdict = "incomparable"
    if fair:
        noise = math.sqrt(2) * (value["high"] - value["low"]) / 2
        verdict = "noise" if abs(difference) <= noise else "better" if difference > 0 else "worse"
    return {"paper": published, "difference": difference, "verdict": verdict}


def _average(rows: Sequence[Mapping[str, Any]], models: Sequence[Evaluated]) -> dict[str, Any]:
    """Return the last row of Table 5, of models of which all sets were measured; the sets are independent."""
    published = dict(zip(paper.MODELS_OF_TABLE_5, paper.AVERAGE_OF_TABLE_5, strict=True))
    ours = {}
    for model in models:
        entries = [row["ours"].get(model.label) for row in rows]
        if all(entries):
            value = sum(entry["value"] for entry in entries) / len(entries)
            half = math.sqrt(sum(((entry["high"] - entry["low"]) / 2) ** 2 for entry in entries)) / len(entries)
            average = {"value": value, "low": value - half, "high": value + half}
            fair = all(entry["protocol"] == "paper" for entry in entries)
            known = published[model.column] if model.column else None
            ours[model.label] = {**average, **_compared(average, known, fair=fair)}
    return {"paper": published, "ours": ours}


def _missing(number: str, rows: Sequence[Mapping[str, Any]], models: Sequence[Evaluated]) -> Iterator[dict[str, Any]]:
    how_to_get, role = sets.missing(()), ROLE[number]
    unmeasured = [each for each in models if all(known["role"] != role for known in each.document["models"])]
    if unmeasured:
        yield {
            "set": "",
            "models": [each.label for each in unmeasured],
            "how": _("no fine-tuned model was measured: `wukong evaluate --model MODEL --fine-tuned FINE_TUNED`")
            if role == "finetuned"
            else _("no zero-shot model was measured: `wukong evaluate --model MODEL`"),
        }
    for row in rows:
        if lacking := [each for each in models if each.label not in row["ours"] and each not in unmeasured]:
            addresses = [each.address or "MODEL" for each in lacking]
            commands = [f"wukong evaluate --model {each} --tasks {row['set']} --protocol paper" for each in addresses]
            run, download = " && ".join(dict.fromkeys(commands)), how_to_get[row["set"]]
            yield {
                "set": row["set"],
                "models": [each.label for each in lacking],
                "how": _("{download} Then `{run}`, or add it to evaluate.tasks and run again.").format(
                    download=download, run=run
                ),
            }
