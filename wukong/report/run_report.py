"""The report of a run: one HTML page. It needs no network, and in English no script.

It shows each score beside the score of chance, the pairs that were left out by reason, and the manifests and the config
that everything was made from.
"""

import fnmatch
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import polars as pl

from wukong import stages
from wukong.config.crawl import Crawl
from wukong.config.evaluators import DIRECTIONS
from wukong.config.experiment import Experiment
from wukong.curate import rules
from wukong.evaluate.protocol import sentences
from wukong.evaluate.results import HOLDOUT, overlap_said, role_of, tasks_of
from wukong.report import template
from wukong.report.funnel import bars, funnel, repeated, wording
from wukong.report.gallery import Pictures, Thumbnails, contact_sheet, pictures_of, shard_tables
from wukong.runs import run_records
from wukong.runs.run_records import Record
from wukong.runtime.language import _
from wukong.store import storage
from wukong.store.manifest import Manifest

_DROPPED_EXAMPLES = 4
_RETRIEVALS = 5
_LONGEST = 90  # characters of a setting's value
__all__ = ["contents", "pictures_of", "render"]

_DIRECTIONS = {name: DIRECTIONS[name] for name in ("text_to_image", "image_to_text")}
_CURVES = {
    "loss": _("loss"),
    "temperature": _("temperature"),
    "learning_rate": _("learning rate"),
    "pairs_per_second": _("pairs per second"),
}
"""What is drawn, in words; of other numbers the name is shown."""


@dataclass(frozen=True)
class Curve:
    """A line over the epochs of a training run, ready to be drawn in a box of 320 x 120 units.

    Attributes:
        title: what is drawn.
        points: the points as SVG writes them.
        first: the first value.
        last: the last value.
        steps: number of values.
    """

    title: str
    points: str
    first: float
    last: float
    steps: int


def contents(
    experiment: Experiment,
    manifests: Mapping[str, Manifest],
    evaluation: Mapping[str, Any],
    links: Mapping[str, str],
    pictures: Pictures,
    run: str = "",
    docs: str = "",
    decided: Mapping[str, Any] | None = None,
    records: Sequence[Record] = (),
    cost: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Collect what the report of a run shows.

    Args:
        experiment: what was run.
        manifests: by stage; ``crawl`` and ``filter`` are needed.
        evaluation: what the evaluate stage measured: a document of ``wukong.evaluate.results``, of which the model is
            shown that it stands for, with the histories under ``training``. Empty if nothing was measured.
        links: titles and addresses, for instance of the MLflow run.
        pictures: returns an image's bytes by its pair's key; ``pictures_of`` makes one.
        run: the run's name.
        docs: where the data docs are stored. A copy of them, and the dataset card, lie at ``docs/`` beside the page.
            Empty if there are none.
        decided: what was decided about the model: ``heading``, ``says``, ``against``, the run that it was compared with
            (``comparison.html`` beside the page), and ``changes``, what ``wukong.report.comparison.headlines`` returns.
        records: the records of the run's stages, which say how long each took.
        cost: what ``wukong.report.costs.shown`` returned; None or empty if nothing is shown of it.

    Returns:
        What ``render`` needs.

    Raises:
        DataError: an image that the page shows is in no shard.
    """
    filtered = manifests["filter"]
    steps = funnel(manifests["crawl"], filtered)
    thumbnail = Thumbnails(pictures)
    return {
        "experiment": experiment,
        "run": run,
        "docs": docs,
        "settings": _settings(experiment),
        "wording": wording(manifests["crawl"]),
        "funnel_heading": wording(manifests["crawl"]).heading,
        "headlines": _headlines(evaluation),
        "results": steps[0].rows,
        "funnel": bars(steps[1:]),
        "repeated": repeated(manifests.get("validate")),
        "dropped": _dropped(filtered),
        "crawl_dropped": _sorted(manifests["crawl"].dropped),
        "retrieval": [_retrieval(entry, thumbnail) for entry in tasks_of(evaluation, "retrieval")],
        "overlaps": {
            entry["task"]: said
            for entry in evaluation.get("tasks", ())
            if entry["model"] == role_of(evaluation) and (said := overlap_said(evaluation, entry))
        },
        "protocol": sentences(experiment),
        "classification": [
            {**entry, "classes": sorted(entry["classes"], key=lambda each: (-each["top1"], each["name"]))}
            for entry in tasks_of(evaluation, "classification")
        ],
        "curves": {
            stage: curves
            for stage in stages.TRAININGS
            if (curves := _curves(evaluation, stage, _measured(manifests.get(stage))))
        },
        "contacts": contact_sheet(filtered, experiment.filter.seed),
        "sources": _sources(experiment, filtered),
        "expectations": _expectations(manifests.get("validate")),
        "times": _times(records),
        "cost": cost,
        "lineage": [(stage, manifests[stage]) for stage in stages.JOBS if stage in manifests],
        "config": experiment.model_dump_json(indent=2),
        "evaluated": bool(evaluation),
        "links": links,
        "decided": decided,
    }


def render(shown: Mapping[str, Any], *, framed: bool = False) -> str:
    """Returns the report as an HTML page.

    Args:
        shown: what ``contents`` returned.
        framed: whether the page is for a frame. MLflow and the KFP UI show a page in a frame that blocks links, so it
            shows their addresses as text.
    """
    filters = {"percent": _percent, "count": lambda n: f"{n:,}", "seconds": _seconds, "chance": _chance}
    return template.fill("run_report.html.j2", {**shown, "framed": framed}, filters)


def _settings(experiment: Experiment) -> list[tuple[str, str, str]]:
    """Returns key, default and value of every setting that differs from its default or has no default."""
    named = experiment.crawl.model_dump(mode="json", include={"queries", "endpoint", "engine"}, exclude_defaults=True)
    told_apart = {"name", "about", "sources"}  # shown in other places of the page
    defaults = Experiment.model_validate({"name": experiment.name, "crawl": named})
    engine = Crawl.model_fields["engine"].default
    changes: dict[str, tuple[Any, Any]] = {
        f"crawl.{key}": (engine if key == "engine" else "", value) for key, value in named.items()
    }
    changes |= run_records.differences(
        defaults.model_dump(mode="json", exclude=told_apart), experiment.model_dump(mode="json", exclude=told_apart)
    )
    return [(key, _shown(default), _shown(value)) for key, (default, value) in changes.items()]


def _shown(value: Any) -> str:
    if isinstance(value, list | tuple):
        value = ", ".join(str(each.get("name", each)) if isinstance(each, dict) else str(each) for each in value)
    return _shorten("none" if value is None else str(value), _LONGEST)


def _measured(trained: Manifest | None) -> list[dict[str, Any]]:
    """Returns what a training stage measured of its machine in each epoch. It is not a part of the stage's manifest."""
    uri = storage.join(trained.uri, "measured.json") if trained else ""
    return list(storage.read_json(uri)) if uri and storage.exists(uri) else []


def _headlines(evaluation: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns the main number of each test set and each task, what it is, and its chance."""
    headlines = []
    for entry in tasks_of(evaluation, "retrieval"):
        first, tenth = (entry["results"][f"text_to_image_r{k}"]["value"] for k in (1, 10))
        what = _("text → image R@10 of {images:,} pictures; R@1 {percent}").format(
            images=entry["sizes"]["images"], percent=_percent(first)
        )
        chance = entry["chance"]["text_to_image_r10"]
        headlines.append({"title": entry["title"], "what": what, "value": tenth, "chance": chance})
    for entry in tasks_of(evaluation, "classification"):
        what = _("zero-shot top-1 of {classes:,} classes").format(classes=entry["sizes"]["classes"])
        value = entry["results"]["top1"]["value"]
        headlines.append({"title": entry["title"], "what": what, "value": value, "chance": entry["chance"]["top1"]})
    return headlines


def _dropped(filtered: Manifest) -> list[dict[str, Any]]:
    """Returns each reason with its number of pairs and a few captions, the most frequent reason first."""
    examples: dict[str, list[str]] = {}
    wanted = {reason for reason, rows in filtered.dropped.items() if rows} - {*rules.never_shown()}
    for uri in filtered.part_uris("dropped/", ".parquet"):
        if all(len(examples.get(reason, ())) >= _DROPPED_EXAMPLES for reason in wanted):
            break
        table = pl.DataFrame(storage.read_table(uri, ["caption", "dropped_by"])).unique(maintain_order=True)
        table = table.filter(~pl.col("dropped_by").is_in(rules.never_shown()))
        for (reason,), rows in table.group_by("dropped_by", maintain_order=True):
            known = examples.setdefault(str(reason), [])
            new = (text for text in rows["caption"] if text not in known)
            known += islice(new, _DROPPED_EXAMPLES - len(known))
    return [
        {"reason": reason, "rows": rows, "examples": [_shorten(text) for text in examples.get(reason, ())]}
        for reason, rows in _sorted(filtered.dropped)
    ]


def _sorted(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    return sorted(((name, rows) for name, rows in counts.items() if rows), key=lambda entry: (-entry[1], entry[0]))


def _shorten(text: str, limit: int = 40) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _retrieval(entry: Mapping[str, Any], thumbnail: Thumbnails) -> dict[str, Any]:
    examples = []
    # The shards that the report reads have the pictures of hold-outs; those of other sets are on the evaluation's page.
    for example in _shown_queries(entry["examples"]) if entry["split"] == HOLDOUT else ():
        shown = [{**picture, "src": thumbnail(picture["image"])} for picture in example["images"]]
        examples.append({**example, "pictures": shown})
    return {**entry, "directions": {d: t for d, t in _DIRECTIONS.items() if f"{d}_r1" in entry["results"]}} | {
        "examples": examples
    }


def _shown_queries(examples: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Returns a few queries; the found ones stand first among the examples, so both ends are taken."""
    return [*examples[: _RETRIEVALS // 2], *examples[_RETRIEVALS // 2 :][-(_RETRIEVALS - _RETRIEVALS // 2) :]]


def _curves(evaluation: Mapping[str, Any], stage: str, measured: Sequence[Mapping[str, Any]]) -> list[Curve]:
    by_epoch = {row["epoch"]: row for row in measured}
    history = [{**row, **by_epoch.get(row.get("epoch"), {})} for row in evaluation.get("training", {}).get(stage) or []]
    names = [name for name, value in (history[0] if history else {}).items() if isinstance(value, int | float)]
    curves = []
    for name in names:
        values = [float(row[name]) for row in history if name in row and math.isfinite(row[name])]
        if name in ("epoch", "step", "seconds") or len(values) < 2:
            continue
        low, high = min(values), max(values)
        span = (high - low) or 1.0
        points = (
            f"{320 * step / (len(values) - 1):.1f},{112 - 104 * (value - low) / span:.1f}"
            for step, value in enumerate(values)
        )
        curves.append(
            Curve(_CURVES.get(name, name.replace("_", " ")), " ".join(points), values[0], values[-1], len(values))
        )
    return curves


def _sources(experiment: Experiment, filtered: Manifest) -> list[dict[str, Any]]:
    """Returns the sources that the experiment names, with the number of pairs kept of each."""
    counts: Counter[str] = Counter()
    if experiment.sources:
        for uri in shard_tables(filtered):
            for url in storage.read_table(uri, ["url"])["url"].to_pylist():
                counts.update(s.name for s in experiment.sources if fnmatch.fnmatchcase(url, s.pattern))
    return [{"source": source, "pairs": counts[source.name]} for source in experiment.sources]


def _expectations(validated: Manifest | None) -> list[dict[str, Any]]:
    if validated is None:
        return []
    found = storage.read_json(*validated.file("results.json"))["expectations"]
    return [{**each, "observed": _observed(each["observed"])} for each in found]


def _observed(said: str) -> str:
    """Returns what the validation wrote as a text of the catalogue."""
    if found := re.fullmatch(r"(?P<unexpected>\S+) of (?P<elements>\S+) rows \((?P<percent>\S+) %\)", said):
        return _("{unexpected} of {elements} rows ({percent} %)").format(**found.groupdict())
    if found := re.fullmatch(r"(?P<count>\S+) columns", said):
        return _("{count} columns").format(**found.groupdict())
    return said


def _times(records: Sequence[Record]) -> list[dict[str, Any]]:
    seconds = {
        _("{stage} (reused)").format(stage=record.stage) if record.reused else record.stage: record.seconds
        for record in sorted(records, key=lambda record: [*stages.JOBS, record.stage].index(record.stage))
        if record.stage in stages.JOBS
    }
    longest = max(seconds.values(), default=1) or 1
    return [{"stage": stage, "seconds": value, "width": 100 * value / longest} for stage, value in seconds.items()]


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _chance(value: float) -> str:
    return f"{100 * value:.0f} %" if value >= 0.1 else f"{100 * value:.2g} %"


def _seconds(value: float) -> str:
    return f"{value:.1f} s" if value < 60 else f"{int(value // 60)} min {int(value % 60):02d} s"
