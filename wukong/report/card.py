"""The dataset card: table 2 beside the paper's, distributions, the word cloud of figure 3, random pairs, the funnel.

One HTML page that needs neither network nor script. The words are drawn as text, so their glyphs are real ones.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jinja2
import polars as pl

from wukong import manifest
from wukong.config import Experiment, Source
from wukong.manifest import Manifest
from wukong.report import gallery
from wukong.report.funnel import Step, funnel, wording
from wukong.report.statistics import PAPER, Counts, Statistics

PATH = "docs/card.html"
"""Where a stage leaves the card; what lies under ``docs/`` goes to MLflow."""

_CLOUD_WIDTH, _CLOUD_HEIGHT = 1000, 420
_CLOUD_WORDS = 160
_LARGEST, _SMALLEST = 84.0, 11.0
_LABELS = 4


@dataclass(frozen=True)
class Word:
    """A word of the cloud: the middle of its line and its size, in units of the drawing; ``shade`` from 0 to 4."""

    text: str
    x: float
    y: float
    size: float
    shade: int


@dataclass(frozen=True)
class Histogram:
    """A drawn distribution: bars as (x, height) in percent of its box, and labels as (x, text)."""

    title: str
    bars: tuple[tuple[float, float, str], ...]
    width: float
    labels: tuple[tuple[float, str], ...]


def render(
    title: str,
    statistics: Statistics,
    steps: Sequence[Step],
    contacts: Sequence[Mapping[str, str]],
    facts: Mapping[str, str],
    about: str = "",
    sources: Sequence[Source] = (),
    funnel_heading: str = "From query to pair",
    docs: str = "",
) -> str:
    """Make the card.

    Args:
        title: the set's name.
        statistics: counts over its pairs.
        steps: the funnel.
        contacts: random pairs, ``key``, ``src`` (data URI) and ``caption`` each.
        facts: further lines, for instance digests.
        about: what the data are, in a sentence or two.
        sources: where the pictures come from, with their licences.
        funnel_heading: what the funnel is called.
        docs: address of the data docs as seen from the card; empty where there are none beside it.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("wukong.report", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    most = max(step.rows for step in steps[1:]) or 1
    return environment.get_template("card.html.j2").render(
        title=title,
        about=about,
        table=_table(statistics),
        histograms=[
            _draw("shorter side, pixels", statistics.sides, lambda n: f"{100 * n}"),
            _draw("long side / short side", statistics.ratios, lambda n: f"{1 + n / 10:.1f}"),
            _draw("caption length", statistics.lengths, str),
            _draw("tokens a caption", _without_tail(statistics.tokens, 48), str),
        ],
        cloud=cloud(statistics.words),
        cloud_box=(_CLOUD_WIDTH, _CLOUD_HEIGHT),
        funnel=[
            {"step": step, "width": 100 * step.rows / most, "lost": 100 * step.lost / most if number else 0}
            for number, step in enumerate(steps[1:])
        ],
        contacts=contacts,
        facts=facts,
        sources=sources,
        funnel_heading=funnel_heading,
        docs=docs,
    )


def of(
    experiment: Experiment,
    filtered: Manifest,
    counted: Statistics,
    more_steps: Sequence[Step] = (),
    shown: Callable[[pl.DataFrame], pl.Series] | None = None,
    docs: str = "",
) -> str:
    """Make the card of a filtered set: ``render`` with its funnel, its sources and random pairs from its shards.

    Args:
        experiment: its name, its ``about``, its sources and its seed are used.
        filtered: the filter stage's manifest.
        counted: counts over the pairs that the card is of.
        more_steps: of the funnel, after the filter's.
        shown: tells which rows may be shown as examples; without it, all.
        docs: address of the data docs as seen from the card; empty where there are none beside it.
    """
    crawl = manifest.load(filtered.parents[0].uri)
    facts = {"crawl": crawl.digest, "filter": filtered.digest}
    if experiment.release.licence:
        facts["licence of the list of URLs and captions"] = experiment.release.licence
    thumbnail = gallery.Thumbnails(gallery.pictures_of(filtered))
    contacts = gallery.contact_sheet(filtered, thumbnail, experiment.seed, shown=shown)
    steps = [*funnel(crawl, filtered), *more_steps]
    return render(
        experiment.name,
        counted,
        steps,
        contacts,
        facts,
        experiment.about,
        experiment.sources,
        wording(crawl).heading,
        docs,
    )


def cloud(words: Mapping[str, int], limit: int = _CLOUD_WORDS) -> list[Word]:
    """Lay out the most frequent words, largest in the middle; none overlaps another or the edge.

    A Chinese character is as wide as it is high, so places follow from sizes without a font at hand.
    """
    ranked = sorted(words.items(), key=lambda entry: (-entry[1], entry[0]))[:limit]
    placed: list[Word] = []
    boxes: list[tuple[float, float, float, float]] = []
    for rank, (text, count) in enumerate(ranked):
        share = math.sqrt(count / ranked[0][1])
        size = max(_SMALLEST, min(_LARGEST * share, 0.8 * _CLOUD_WIDTH / len(text)))
        size = math.floor(10 * size) / 10  # as it is drawn: the place must be that of the word as drawn
        box = _free_place(boxes, size * len(text), size * 1.12)
        if box is None:
            continue
        boxes.append(box)
        middle = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
        placed.append(Word(text, round(middle[0], 1), round(middle[1], 1), size, rank % 5))
    return placed


def _free_place(
    boxes: Sequence[tuple[float, float, float, float]], width: float, height: float
) -> tuple[float, float, float, float] | None:
    """The first free place on a spiral from the middle outwards."""
    for turn in range(3000):
        angle, radius = 0.35 * turn, 0.16 * turn
        x = _CLOUD_WIDTH / 2 + 2.1 * radius * math.cos(angle) - width / 2
        y = _CLOUD_HEIGHT / 2 + radius * math.sin(angle) - height / 2
        box = (x, y, x + width, y + height)
        inside = box[0] >= 0 and box[1] >= 0 and box[2] <= _CLOUD_WIDTH and box[3] <= _CLOUD_HEIGHT
        if inside and not any(
            box[0] < other[2] and other[0] < box[2] and box[1] < other[3] and other[1] < box[3] for other in boxes
        ):
            return box
    return None


def _table(statistics: Statistics) -> list[tuple[str, str, str]]:
    return [
        ("image-text pairs", f"{statistics.pairs:,}", f"{PAPER['pairs']:,}"),
        ("unique tokens", f"{statistics.unique_tokens:,}", f"{PAPER['unique_tokens']:,}"),
        ("tokens a caption: mean", f"{statistics.token_mean:.1f}", f"{PAPER['mean']:.0f}"),
        ("standard deviation", f"{statistics.token_sd:.1f}", f"{PAPER['sd']:.0f}"),
        ("median", f"{statistics.token_median:.0f}", f"{PAPER['median']:.0f}"),
    ]


def _without_tail(counts: Counts, bins: int) -> Counts:
    head = counts[:bins].copy()
    head[-1] += counts[bins:].sum()
    return head


def _draw(title: str, counts: Counts, label: Any) -> Histogram:
    """Draw a histogram; its last bin is labelled as holding what lies beyond."""
    most = max(1, int(counts.max()))
    width = 100 / len(counts)
    bars = tuple(
        (width * place, 100 * int(count) / most, f"{label(place)}{'+' if place == len(counts) - 1 else ''}: {count:,}")
        for place, count in enumerate(counts)
    )
    step = max(1, (len(counts) - 1) // _LABELS)
    labels = tuple((width * (place + 0.5), label(place)) for place in range(0, len(counts), step))
    return Histogram(title, bars, width, labels)
