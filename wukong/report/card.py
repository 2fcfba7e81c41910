"""The dataset card: one HTML page that describes a set of pairs. It needs no network, and in English no script.

It shows this set's numbers beside table 2 of the paper, histograms, a word cloud as in figure 3, the funnel, the rules
with what they removed, what was not checked, random pairs, sources and licences. The operator's card, that of the gate,
also shows dropped pictures, blurred. What the page shows is stored as data too (``card.json``), so that the page can be
made again without some of its pairs.
"""

import math
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

import polars as pl
from pydantic import BaseModel, ConfigDict, ValidationError

from wukong.config.experiment import Experiment, Source
from wukong.data.schema import MORE_CAPTIONS
from wukong.errors import DataError
from wukong.report import blurred, checks, gallery, template
from wukong.report.blurred import Dropped
from wukong.report.checks import Applied
from wukong.report.funnel import Bar, Step, bars, funnel, wording
from wukong.report.near_duplicates import Curve, curve
from wukong.report.removed import Removed
from wukong.report.statistics import PAPER, Counts, Statistics
from wukong.runtime.language import _, chinese_of, restored
from wukong.store import damage, manifest, storage
from wukong.store.manifest import Manifest

PATH = "docs/card.html"
"""Where a stage stores the page. ``docs/`` is logged to MLflow."""

DATA_PATH = "card.json"
"""Where a stage stores what the page shows. It is not a part of the stage's manifest."""

_CLOUD_WIDTH, _CLOUD_HEIGHT = 1000, 420
_CLOUD_WORDS = 160
_LARGEST, _SMALLEST = 84.0, 11.0
_LABELS = 4


@dataclass(frozen=True)
class Word:
    """A word of the cloud.

    Attributes:
        text: the word.
        x: horizontal middle of the word, in units of the drawing.
        y: vertical middle.
        size: font size.
        shade: number of its colour, 0 to 4.
    """

    text: str
    x: float
    y: float
    size: float
    shade: int


@dataclass(frozen=True)
class Histogram:
    """A histogram, ready to be drawn in a box of 100 x 100 units.

    Attributes:
        title: what is counted.
        bars: left edge, height and label of each bar.
        width: width of a bar.
        labels: middle and text of each label of the axis.
    """

    title: str
    bars: tuple[tuple[float, float, str], ...]
    width: float
    labels: tuple[tuple[float, str], ...]


@dataclass(frozen=True)
class Pair:
    """A pair that the card shows.

    Attributes:
        key: the pair's key.
        src: a small image as a data URI.
        caption: the caption.
    """

    key: str
    src: str
    caption: str


class Card(BaseModel):
    """Everything that a dataset card shows.

    Attributes:
        title: the set's name.
        about: what the data are, in a sentence or two.
        table: name, this set's value and the paper's value of each number.
        histograms: distributions.
        cloud: the word cloud.
        funnel: steps from query to pair.
        funnel_heading: the heading over the funnel.
        pairs: random pairs.
        sources: where the images come from, with their licences.
        facts: further names and values, for instance digests.
        docs: address of the data docs relative to the page; empty if there are none.
        rules: the rules that were on.
        found: what was found that a reader of numbers must know, as sentences.
        unchecked: what was not looked for, as sentences.
        dropped: dropped pictures, blurred.
        near: how many pairs go as near duplicates at each threshold; None where their vectors were not compared.
        chinese: the Chinese of these sentences that have fields, by the English.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    title: str
    about: str
    table: tuple[tuple[str, str, str], ...]
    histograms: tuple[Histogram, ...]
    cloud: tuple[Word, ...]
    funnel: tuple[Bar, ...]
    funnel_heading: str
    pairs: tuple[Pair, ...]
    sources: tuple[Source, ...]
    facts: tuple[tuple[str, str], ...]
    docs: str
    rules: tuple[Applied, ...] = ()
    found: tuple[str, ...] = ()
    unchecked: tuple[str, ...] = ()
    dropped: tuple[Dropped, ...] = ()
    near: Curve | None = None
    chinese: dict[str, str] = {}

    def shows_any(self, keys: Set[str]) -> bool:
        """Returns whether the card shows a picture of one of some pairs."""
        return not keys.isdisjoint([*(pair.key for pair in self.pairs), *(each.key for each in self.dropped)])

    def without(self, keys: Set[str]) -> "Card":
        """Returns the card without the pairs of some keys. Its numbers stay as they are."""
        pairs = tuple(pair for pair in self.pairs if pair.key not in keys)
        dropped = tuple(each for each in self.dropped if each.key not in keys)
        return self.model_copy(update={"pairs": pairs, "dropped": dropped})


def make(
    title: str,
    statistics: Statistics,
    steps: Sequence[Step],
    pairs: Sequence[Mapping[str, str]],
    facts: Mapping[str, str],
    about: str = "",
    sources: Sequence[Source] = (),
    funnel_heading: str = "From query to pair",
    docs: str = "",
) -> Card:
    """Make the card of a set from its numbers.

    Args:
        title: the set's name.
        statistics: counts over its pairs.
        steps: the funnel; its first step is not drawn.
        pairs: random pairs, each with ``key``, ``src`` (data URI) and ``caption``.
        facts: further names and values.
        about: what the data are.
        sources: where the images come from.
        funnel_heading: the heading over the funnel.
        docs: address of the data docs relative to the page; empty if there are none.
    """
    return Card(
        title=title,
        about=about,
        table=_table(statistics),
        histograms=(
            _histogram(_("shorter side, pixels"), statistics.sides, lambda n: f"{100 * n}"),
            _histogram(_("long side / short side"), statistics.ratios, lambda n: f"{1 + n / 10:.1f}"),
            _histogram(_("caption length"), statistics.lengths, str),
            _histogram(_("tokens a caption"), _without_tail(statistics.tokens, 48), str),
        ),
        cloud=tuple(cloud(statistics.words)),
        funnel=tuple(bars(steps[1:])),
        funnel_heading=funnel_heading,
        pairs=tuple(Pair(**pair) for pair in pairs),
        sources=tuple(sources),
        facts=tuple(facts.items()),
        docs=docs,
    )


def of(
    experiment: Experiment,
    filtered: Manifest,
    counted: Statistics,
    more_steps: Sequence[Step] = (),
    shown: Callable[[pl.DataFrame], pl.Series] | None = None,
    docs: str = "",
    removed: Removed | None = None,
) -> Card:
    """Make the card of a filtered set, with its funnel, its rules, its sources and random pairs from its shards.

    Args:
        experiment: its name, its ``about``, its sources, the seed of its filter and its licence are used.
        filtered: the filter stage's manifest.
        counted: counts over the pairs that the card describes.
        more_steps: steps of the funnel after the filter's.
        shown: tells which rows may be shown as examples; by default all.
        docs: address of the data docs relative to the page; empty if there are none.
        removed: counts over the pairs that the filter dropped, and of which pictures blurred examples are shown; None
            where nobody counted them.
    """
    crawl = manifest.load(filtered.parents[0].uri)
    facts = {"crawl": crawl.digest, "filter": filtered.digest}
    if MORE_CAPTIONS in filtered.counts:
        facts[_("pairs with several captions")] = f"{filtered.counts[MORE_CAPTIONS]:,}"
    if experiment.release.licence:
        facts[_("licence of the list of URLs and captions")] = experiment.release.licence
    made = make(
        experiment.name,
        counted,
        [*funnel(crawl, filtered), *more_steps],
        gallery.contact_sheet(filtered, experiment.filter.seed, shown=shown),
        facts,
        experiment.about,
        experiment.sources,
        wording(crawl).heading,
        docs,
    )
    removed = removed or Removed()
    found, unchecked = checks.found(filtered), checks.unchecked(filtered)
    return made.model_copy(
        update={
            "rules": checks.applied(filtered, removed),
            "found": found,
            "unchecked": unchecked,
            "chinese": chinese_of([found, unchecked]),
            "dropped": tuple(blurred.examples(crawl, removed.chosen())),
            "near": curve(filtered),
        }
    )


def render(card: Card, docs_at: str = "") -> str:
    """Returns the card as an HTML page.

    Args:
        card: what it shows.
        docs_at: address of the data docs, to be shown as text instead of a link. MLflow and the KFP UI show a page in a
            frame, where a link to a file beside the page leads nowhere.
    """
    values = {"card": card, "cloud_box": (_CLOUD_WIDTH, _CLOUD_HEIGHT), "docs_at": docs_at}
    return template.fill("dataset_card.html.j2", values)


def write(stage_uri: str, card: Card) -> None:
    """Store a card with a stage's output: first its data (``card.json``), then its page (``docs/card.html``)."""
    storage.write_json(storage.join(stage_uri, DATA_PATH), card.model_dump(mode="json"))
    storage.write_bytes(storage.join(stage_uri, PATH), render(card).encode())


def read(stage_uri: str) -> Card:
    """Read the data of a stage's card.

    Raises:
        DataError: the file is damaged.
        StorageError: there is none.
    """
    uri = storage.join(stage_uri, DATA_PATH)
    try:
        card = Card.model_validate(storage.read_json(uri))
    except ValidationError as error:
        raise DataError(f"{uri} does not hold a dataset card: {error}; {damage.remedy(uri)}") from error
    said = {name: tuple(restored(getattr(card, name), card.chinese)) for name in ("found", "unchecked")}
    return card.model_copy(update=said)


def page_for_frame(stage_uri: str) -> str:
    """Returns a stored card as a page for a frame (MLflow, the KFP UI), where a link to the data docs does not work.

    Args:
        stage_uri: the prefix that the stage's files lie under.
    """
    card = read(stage_uri)
    return render(card, docs_at=storage.join(stage_uri, "docs", card.docs) if card.docs else "")


def cloud(words: Mapping[str, int], limit: int = _CLOUD_WORDS) -> list[Word]:
    """Place the most frequent words, the largest in the middle. No word overlaps another one or the edge.

    A Chinese character is as wide as it is high, so a word's box follows from its font size, and no font is needed.

    Args:
        words: number of occurrences of each word.
        limit: how many words at most.
    """
    ranked = sorted(words.items(), key=lambda entry: (-entry[1], entry[0]))[:limit]
    placed: list[Word] = []
    boxes: list[tuple[float, float, float, float]] = []
    for rank, (text, count) in enumerate(ranked):
        share = math.sqrt(count / ranked[0][1])
        size = max(_SMALLEST, min(_LARGEST * share, 0.8 * _CLOUD_WIDTH / len(text)))
        size = math.floor(10 * size) / 10  # rounded as it is drawn, so that the box fits the drawn word
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
    """Returns the first free box on a spiral from the middle outwards (left, top, right, bottom), or None."""
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


def _table(statistics: Statistics) -> tuple[tuple[str, str, str], ...]:
    return (
        (_("image-text pairs"), f"{statistics.pairs:,}", f"{PAPER['pairs']:,}"),
        (_("unique tokens"), f"{statistics.unique_tokens:,}", f"{PAPER['unique_tokens']:,}"),
        (_("tokens a caption: mean"), f"{statistics.token_mean:.1f}", f"{PAPER['mean']:.0f}"),
        (_("standard deviation"), f"{statistics.token_sd:.1f}", f"{PAPER['sd']:.0f}"),
        (_("median"), f"{statistics.token_median:.0f}", f"{PAPER['median']:.0f}"),
    )


def _without_tail(counts: Counts, bins: int) -> Counts:
    """Returns the first bins of a histogram; the last of them holds all that follow too."""
    head = counts[:bins].copy()
    head[-1] += counts[bins:].sum()
    return head


def _histogram(title: str, counts: Counts, label: Any) -> Histogram:
    """Make a histogram. The label of its last bar ends with ``+``: the bar counts all larger values too."""
    most = max(1, int(counts.max()))
    width = 100 / len(counts)
    bars = tuple(
        (
            width * bin_number,
            100 * int(count) / most,
            f"{label(bin_number)}{'+' if bin_number == len(counts) - 1 else ''}: {count:,}",
        )
        for bin_number, count in enumerate(counts)
    )
    step = max(1, (len(counts) - 1) // _LABELS)
    labels = tuple((width * (bin_number + 0.5), label(bin_number)) for bin_number in range(0, len(counts), step))
    return Histogram(title, bars, width, labels)
