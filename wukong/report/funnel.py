"""The funnel from query to pair: the rows left after each step, for reports and the command line."""

from collections.abc import Sequence
from dataclasses import dataclass

from wukong.crawl import engines
from wukong.crawl.source import SEARCHED, Wording
from wukong.curate.rule import HELD_BACK
from wukong.curate.rules import REGISTRY
from wukong.curate.split import TRAIN
from wukong.runtime.language import _
from wukong.store.manifest import Manifest

_HELD_BACK_TITLE = _("trained on or tested")


@dataclass(frozen=True)
class Step:
    """One step of the funnel.

    Attributes:
        name: the name of a rule or of a count.
        title: what is true of the rows that are left, in words.
        rows: number of rows left after this step.
        lost: number of rows that the step left out.
    """

    name: str
    title: str
    rows: int
    lost: int


@dataclass(frozen=True)
class Bar:
    """A step of the funnel, drawn as a bar.

    Attributes:
        step: the step.
        width: length of the bar, in percent of the first step's.
        lost: length of its lighter end, for the rows left out, in the same percent.
    """

    step: Step
    width: float
    lost: float


def wording(crawl: Manifest) -> Wording:
    """Returns the words for a crawl's input."""
    source = engines.REGISTRY.get(str(crawl.config.get("engine")))
    return source.wording if source else SEARCHED


def funnel(crawl: Manifest, filtered: Manifest) -> list[Step]:
    """Returns the steps in order: results of the input, distinct URLs, downloaded images, each rule, the split.

    Args:
        crawl: manifest of the crawl stage.
        filtered: manifest of the filter stage.
    """
    urls, pairs = crawl.counts.get("urls", 0), filtered.counts["pairs"]
    results = crawl.counts.get("results", urls)
    steps = [
        Step("results", wording(crawl).results, results, 0),
        Step("urls", _("distinct URLs"), urls, results - urls),
        Step("downloaded", _("pictures downloaded"), pairs, urls - pairs),
    ]
    rows = pairs
    titles = {rule.name: rule.title for rule in REGISTRY if not rule.optional or rule.name in filtered.dropped}
    for name, title in {**titles, HELD_BACK: _HELD_BACK_TITLE}.items():
        lost = filtered.dropped.get(name, 0)
        rows -= lost
        steps.append(Step(name, title, rows, lost))
    train = filtered.counts[TRAIN]
    return [*steps, Step(TRAIN, _("trained on; the others are test sets"), train, rows - train)]


def repeated(validated: Manifest | None) -> str:
    """Returns what a reader should know of pairs that repeat others; empty if there are none, or nobody counted them.

    Args:
        validated: manifest of the validate stage; None if it was not done.
    """
    count = validated.counts.get("repeated_pairs", 0) if validated is not None else 0
    if not count:
        return ""
    return _(
        "Pairs with the picture and the caption of another pair: {count:,} (filter.duplicate_images: equal "
        "leaves them out)"
    ).format(count=count)


def bars(steps: Sequence[Step]) -> list[Bar]:
    """Returns steps as bars. The first one has no lighter end: the longest bar is the rows left after that step."""
    most = max(step.rows for step in steps) or 1
    return [
        Bar(step, 100 * step.rows / most, 100 * step.lost / most if number else 0) for number, step in enumerate(steps)
    ]
