"""Markdown pages for the KFP UI: the funnel and the scores."""

from collections.abc import Mapping, Sequence
from typing import Any

from wukong.manifest import Manifest
from wukong.report.funnel import wording

_MAX_CLASSES = 50  # the UI cannot draw larger confusion matrices


def funnel(manifests: Sequence[Manifest]) -> str:
    """Returns a page with the counts of each stage, the rows that it left out, and the address of its data."""
    title = wording(manifests[0]).heading if manifests else "From query to pair"
    lines = [f"# {title}", "", "| stage | | rows |", "|---|---|---:|"]
    for manifest in manifests:
        for name, count in manifest.counts.items():
            lines.append(f"| {manifest.stage} | {_words(name)} | {count:,} |")
        for name, count in manifest.dropped.items():
            lines.append(f"| {manifest.stage} | *left out: {_words(name)}* | {count:,} |")
    lines += ["", "| stage | data | digest |", "|---|---|---|"]
    lines += [f"| {entry.stage} | `{entry.uri}` | `{entry.digest[:16]}` |" for entry in manifests]
    return "\n".join(lines) + "\n"


def numbers(manifests: Sequence[Manifest]) -> dict[str, float]:
    """Returns the counts of stages as named numbers: ``STAGE.NAME`` and ``STAGE.dropped.NAME``."""
    found: dict[str, float] = {}
    for manifest in manifests:
        found |= {f"{manifest.stage}.{name}": float(count) for name, count in manifest.counts.items()}
        found |= {f"{manifest.stage}.dropped.{name}": float(count) for name, count in manifest.dropped.items()}
    return found


def scores(evaluation: Mapping[str, Any]) -> str:
    """Returns a page with the scores of ``evaluation.json`` beside the scores of chance."""
    lines = ["# On held-out pairs"]
    if evaluation["retrieval"]:
        lines += ["", "| hold-out | direction | R@1 | R@5 | R@10 | chance R@1 |", "|---|---|---:|---:|---:|---:|"]
    for entry in evaluation["retrieval"]:
        for direction in ("text_to_image", "image_to_text"):
            found, chance = entry[direction], entry["chance"][direction]
            row = [entry["title"], _words(direction), *(f"{found[key]:.3f}" for key in ("r1", "r5", "r10"))]
            lines.append(f"| {' | '.join(row)} | {chance['r1']:.4f} |")
    if evaluation["classification"]:
        lines += ["", "| zero-shot set | pictures | top-1 | top-5 | chance |", "|---|---:|---:|---:|---:|"]
    for task in evaluation["classification"]:
        row = [task["title"], f"{task['images']:,}", *(f"{task[key]:.3f}" for key in ("top1", "top5", "chance"))]
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines) + "\n"


def confusions(evaluation: Mapping[str, Any]) -> tuple[list[str], list[list[int]]] | None:
    """Returns the class names and the confusion matrix of the first classification set that has a matrix.

    A row of the matrix is a true class, a column a predicted one. None if no set has a matrix that the UI can draw.
    """
    for task in evaluation["classification"]:
        matrix = task.get("confusion")
        if matrix and len(matrix) <= _MAX_CLASSES:
            return list(task["candidates"]), matrix
    return None


def _words(name: str) -> str:
    return name.replace("_", " ")
