"""The report of a run: one HTML file that needs nothing else, neither network nor script.

Numbers stand beside chance, dropped pairs beside their reason, and everything leads back to manifests and config.
"""

import base64
import fnmatch
import io
import math
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import jinja2
import polars as pl
from PIL import Image

from wukong import storage
from wukong.config import Experiment
from wukong.curate import repack
from wukong.curate.funnel import Step, funnel
from wukong.curate.split import TRAIN
from wukong.errors import DataError
from wukong.manifest import Manifest

_THUMBNAIL = 144
_CONTACTS = 48
_CONTACT_SHARDS = 6
_DROPPED_EXAMPLES = 4
_RETRIEVALS = 5
_STAGES = ("crawl", "filter", "validate", "pretrain", "finetune", "evaluate")
_DIRECTIONS = {"text_to_image": "text → image", "image_to_text": "image → text"}

Pictures = Callable[[str], bytes]


@dataclass(frozen=True)
class Curve:
    """A line over the epochs of a training run, ready to be drawn in a box of 320 x 120 units."""

    title: str
    points: str
    first: float
    last: float
    steps: int


def render(
    experiment: Experiment,
    manifests: Mapping[str, Manifest],
    evaluation: Mapping[str, Any],
    links: Mapping[str, str],
    pictures: Pictures,
) -> str:
    """Make the report of a run.

    Args:
        experiment: what was run.
        manifests: by stage; those of ``crawl`` and ``filter`` at least.
        evaluation: what the evaluate stage found. ``retrieval`` lists hold-outs with recalls in both directions, chance
            and examples; ``classification`` lists tasks with per-class accuracies; ``training`` has the histories.
        links: titles and addresses, for instance of the MLflow run and the data docs.
        pictures: gives a picture's bytes by its pair's key; ``pictures_of`` makes one.

    Returns:
        A self-contained HTML page.

    Raises:
        DataError: a picture that is to be shown is in no shard.
    """
    filtered = manifests["filter"]
    steps = funnel(manifests["crawl"], filtered)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("wukong.evaluate", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"percent": _percent, "count": lambda n: f"{n:,}", "seconds": _seconds, "chance": _chance}
    thumbnail = _Thumbnails(pictures)
    return environment.get_template("report.html.j2").render(
        experiment=experiment,
        headlines=_headlines(evaluation),
        results=steps[0].rows,
        funnel=_bars(steps[1:]),
        dropped=_dropped(filtered),
        crawl_dropped=_sorted(manifests["crawl"].dropped),
        retrieval=[_retrieval(entry, thumbnail) for entry in evaluation.get("retrieval", ())],
        directions=_DIRECTIONS,
        classification=[_classification(entry) for entry in evaluation.get("classification", ())],
        curves={stage: curves for stage in ("pretrain", "finetune") if (curves := _curves(evaluation, stage))},
        contacts=_contacts(experiment, filtered, thumbnail),
        sources=_sources(experiment, filtered),
        expectations=_expectations(manifests.get("validate")),
        times=_times(manifests),
        lineage=[(stage, manifests[stage]) for stage in _STAGES if stage in manifests],
        config=experiment.model_dump_json(indent=2),
        links=links,
    )


def pictures_of(filtered: Manifest) -> Pictures:
    """Read pictures by key from the shards a filter stage wrote; a shard is indexed when it is first needed."""
    tars: dict[str, str] = {}
    places: dict[str, dict[str, tuple[int, int]]] = {}
    tables = iter(_smallest_first(filtered))

    def read(key: str) -> bytes:
        while key not in tars:
            uri = next(tables, None)
            if uri is None:
                raise DataError(
                    f"no shard of {filtered.uri} has the pair {key}: run the filter and evaluate stages again"
                )
            tar = uri.removesuffix(".parquet") + ".tar"
            tars.update(dict.fromkeys(storage.read_table(uri, ["key"])["key"].to_pylist(), tar))
        tar = tars[key]
        if tar not in places:
            index = repack.picture_places(tar)
            places[tar] = {row["key"]: (row["offset"], row["size"]) for row in index.to_dicts()}
        offset, size = places[tar][key]
        with storage.open_input(tar) as stream:
            stream.seek(offset)
            return bytes(stream.read(size))

    return read


class _Thumbnails:
    """Small pictures as data URIs, each made once."""

    def __init__(self, pictures: Pictures) -> None:
        self._pictures = pictures
        self._made: dict[str, str] = {}

    def __call__(self, key: str) -> str:
        if key not in self._made:
            image = Image.open(io.BytesIO(self._pictures(key))).convert("RGB")
            image.thumbnail((_THUMBNAIL, _THUMBNAIL))
            target = io.BytesIO()
            image.save(target, "JPEG", quality=80)
            self._made[key] = "data:image/jpeg;base64," + base64.b64encode(target.getvalue()).decode()
        return self._made[key]


def _smallest_first(filtered: Manifest) -> list[str]:
    """Tables of all splits' shards, hold-outs before training: those are few, and asked for most."""
    kept = [part for part in filtered.parts if part.path.endswith(".parquet") and not part.path.startswith("dropped/")]
    kept.sort(key=lambda part: (part.path.startswith(f"{TRAIN}/"), part.path))
    return [storage.join(filtered.uri, part.path) for part in kept]


def _headlines(evaluation: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One card a hold-out and task: the main number, what it is, its chance."""
    found = []
    for entry in evaluation.get("retrieval", ()):
        recall, chance = entry["text_to_image"], entry.get("chance", {}).get("text_to_image", {})
        title = entry.get("title") or entry["holdout"]
        what = f"text → image R@10 of {entry['images']:,} pictures; R@1 {_percent(recall['r1'])}"
        found.append({"title": title, "what": what, "value": recall["r10"], "chance": chance.get("r10")})
    for entry in evaluation.get("classification", ()):
        title = entry.get("title") or entry["name"]
        what = f"zero-shot top-1 of {len(entry['classes'])} classes"
        found.append({"title": title, "what": what, "value": entry["top1"], "chance": entry.get("chance")})
    return found


def _bars(steps: Sequence[Step]) -> list[dict[str, Any]]:
    most = max(step.rows for step in steps) or 1
    return [
        {"step": step, "width": 100 * step.rows / most, "lost": 100 * step.lost / most if number else 0}
        for number, step in enumerate(steps)
    ]


def _dropped(filtered: Manifest) -> list[dict[str, Any]]:
    """Every reason with its number and a few captions, most frequent reason first."""
    examples: dict[str, list[str]] = {}
    wanted = {reason for reason, rows in filtered.dropped.items() if rows}
    for uri in filtered.part_uris("dropped/", ".parquet"):
        if all(len(examples.get(reason, ())) >= _DROPPED_EXAMPLES for reason in wanted):
            break
        table = pl.DataFrame(storage.read_table(uri, ["caption", "dropped_by"])).unique(maintain_order=True)
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


def _retrieval(entry: Mapping[str, Any], thumbnail: _Thumbnails) -> dict[str, Any]:
    examples = []
    for example in list(entry.get("examples", ()))[:_RETRIEVALS]:
        shown = [
            {"src": thumbnail(p["key"]), "caption": p.get("caption", ""), "right": p["right"]}
            for p in example["pictures"]
        ]
        examples.append({"caption": example["caption"], "rank": example.get("rank"), "pictures": shown})
    return {**entry, "title": entry.get("title") or entry["holdout"], "examples": examples}


def _classification(entry: Mapping[str, Any]) -> dict[str, Any]:
    classes = sorted(entry["classes"], key=lambda each: (-each["accuracy"], each["name"]))
    return {**entry, "title": entry.get("title") or entry["name"], "classes": classes}


def _curves(evaluation: Mapping[str, Any], stage: str) -> list[Curve]:
    history = evaluation.get("training", {}).get(stage) or []
    names = [name for name, value in (history[0] if history else {}).items() if isinstance(value, int | float)]
    curves = []
    for name in names:
        values = [float(row[name]) for row in history if name in row and math.isfinite(row[name])]
        if name in ("epoch", "step", "seconds") or len(values) < 2:
            continue
        low, high = min(values), max(values)
        span = (high - low) or 1.0
        points = (
            f"{320 * place / (len(values) - 1):.1f},{112 - 104 * (value - low) / span:.1f}"
            for place, value in enumerate(values)
        )
        curves.append(Curve(name.replace("_", " "), " ".join(points), values[0], values[-1], len(values)))
    return curves


def _contacts(experiment: Experiment, filtered: Manifest, thumbnail: _Thumbnails) -> list[dict[str, str]]:
    """Training pairs at random, the same in every report of the same data."""
    generator = random.Random(experiment.seed)
    uris = filtered.part_uris(f"{TRAIN}/", ".parquet")
    chosen = sorted(generator.sample(uris, min(len(uris), _CONTACT_SHARDS)))
    table = pl.concat([pl.DataFrame(storage.read_table(uri, ["key", "caption"])) for uri in chosen])
    places = generator.sample(range(len(table)), min(len(table), _CONTACTS))
    return [{"src": thumbnail(key), "caption": caption} for key, caption in table[places].iter_rows()]


def _sources(experiment: Experiment, filtered: Manifest) -> list[dict[str, Any]]:
    """The sources that the experiment names, with the pairs kept of each."""
    counts: Counter[str] = Counter()
    if experiment.sources:
        for uri in _smallest_first(filtered):
            for url in storage.read_table(uri, ["url"])["url"].to_pylist():
                counts.update(s.name for s in experiment.sources if fnmatch.fnmatchcase(url, s.pattern))
    return [{"source": source, "pairs": counts[source.name]} for source in experiment.sources]


def _expectations(validated: Manifest | None) -> list[dict[str, Any]]:
    if validated is None:
        return []
    return list(storage.read_json(storage.join(validated.uri, "results.json"))["expectations"])


def _times(manifests: Mapping[str, Manifest]) -> list[dict[str, Any]]:
    seconds = {stage: float(manifests[stage].provenance.get("seconds", 0)) for stage in _STAGES if stage in manifests}
    longest = max(seconds.values(), default=1) or 1
    return [{"stage": stage, "seconds": value, "width": 100 * value / longest} for stage, value in seconds.items()]


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _chance(value: float) -> str:
    return f"{100 * value:.2g} %"


def _seconds(value: float) -> str:
    return f"{value:.1f} s" if value < 60 else f"{int(value // 60)} min {int(value % 60):02d} s"
