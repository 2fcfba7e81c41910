"""Markdown pages for the KFP UI: the funnel and the scores. They have no switch, so what heads them is bilingual."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from wukong.evaluate.results import tasks_of
from wukong.report.funnel import wording
from wukong.runtime.language import _, chinese
from wukong.store.manifest import Manifest

_MAX_CLASSES = 50  # the UI cannot draw larger confusion matrices


def funnel(manifests: Sequence[Manifest]) -> str:
    """Returns a page with the counts of each stage, the rows that it left out, and the address of its data."""
    title = wording(manifests[0]).heading if manifests else _("From query to pair")
    lines = [f"# {_both(title)}", "", _header((_("stage"), "", _("rows"))), "|---|---|---:|"]
    left_out = _both(_("left out"))
    for manifest in manifests:
        for name, count in manifest.counts.items():
            lines.append(f"| {manifest.stage} | {_words(name)} | {count:,} |")
        for name, count in manifest.dropped.items():
            lines.append(f"| {manifest.stage} | *{left_out}: {_words(name)}* | {count:,} |")
    lines += ["", _header((_("stage"), _("data"), _("digest"))), "|---|---|---|"]
    lines += [f"| {entry.stage} | `{entry.uri}` | `{entry.digest[:16]}` |" for entry in manifests]
    return "\n".join(lines) + "\n"


def numbers(manifests: Sequence[Manifest]) -> dict[str, float]:
    """Returns the counts of stages as named numbers: ``STAGE.NAME`` and ``STAGE.dropped.NAME``."""
    values: dict[str, float] = {}
    for manifest in manifests:
        values |= {f"{manifest.stage}.{name}": float(count) for name, count in manifest.counts.items()}
        values |= {f"{manifest.stage}.dropped.{name}": float(count) for name, count in manifest.dropped.items()}
    return values


def scores(evaluation: Mapping[str, Any]) -> str:
    """Returns a page with the scores of an evaluation (``wukong.evaluate.results``) beside the scores of chance."""
    lines = [f"# {_both(_('What was measured'))}"]
    searched, classified = tasks_of(evaluation, "retrieval"), tasks_of(evaluation, "classification")
    if searched:
        columns = (_("set"), _("direction"), "R@1", "R@5", "R@10", _("chance R@1"), _("protocol"))
        lines += ["", _header(columns), "|---|---|---:|---:|---:|---:|---|"]
    for entry in searched:
        for direction in ("text_to_image", "image_to_text"):
            recalls = [entry["results"].get(f"{direction}_r{k}") for k in (1, 5, 10)]
            if all(recalls):
                row = [entry["title"], _words(direction), *(f"{each['value']:.3f}" for each in recalls)]
                chance = entry["chance"][f"{direction}_r1"]
                lines.append(f"| {' | '.join(row)} | {chance:.4f} | {entry['protocol']} |")
    if classified:
        names = (_("zero-shot set"), _("pictures"), _("top-1"), _("top-5"), _("chance"), _("protocol"))
        lines += ["", _header(names), "|---|---:|---:|---:|---:|---|"]
    for entry in classified:
        top = [f"{entry['results'][key]['value']:.3f}" if key in entry["results"] else "" for key in ("top1", "top5")]
        row = [entry["title"], f"{entry['sizes']['images']:,}", *top, f"{entry['chance']['top1']:.3f}"]
        lines.append(f"| {' | '.join(row)} | {entry['protocol']} |")
    return "\n".join(lines) + "\n"


def confusions(evaluation: Mapping[str, Any]) -> tuple[list[str], list[list[int]]] | None:
    """Returns the class names and the confusion matrix of the first classification set that has a matrix.

    A row of the matrix is a true class, a column a predicted one. None if no set has a matrix that the UI can draw.
    """
    for entry in tasks_of(evaluation, "classification"):
        if entry["confusion"] and len(entry["confusion"]) <= _MAX_CLASSES:
            return list(entry["candidates"]), entry["confusion"]
    return None


def _both(text: str) -> str:
    return text if (other := chinese(text)) == text else f"{text} {other}"


def _header(names: Iterable[str]) -> str:
    return f"| {' | '.join(map(_both, names))} |"


def _words(name: str) -> str:
    return name.replace("_", " ")
