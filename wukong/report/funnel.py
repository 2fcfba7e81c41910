"""The funnel from query to pair: how many rows are left after each step, for reports and the command line."""

from collections.abc import Sequence
from dataclasses import dataclass

from wukong.curate.rules import HELD_BACK, REGISTRY
from wukong.curate.split import TRAIN
from wukong.manifest import Manifest

_HELD_BACK_TITLE = "trained on or tested"


@dataclass(frozen=True)
class Step:
    """One step of the funnel.

    Attributes:
        name: the rule's or stage's name.
        title: what the rows that are left have in common.
        rows: how many are left after this step.
        lost: how many the step left out.
    """

    name: str
    title: str
    rows: int
    lost: int


@dataclass(frozen=True)
class Bar:
    """A step, drawn as a bar.

    Attributes:
        step: the step.
        width: length of the bar for the rows left after it, in percent of the longest bar.
        lost: length of the part for the rows left out, in percent.
    """

    step: Step
    width: float
    lost: float


@dataclass(frozen=True)
class Wording:
    """What a crawl's input is called: words to search, a list of URLs, or pictures of one's own.

    Attributes:
        heading: what the whole funnel is called.
        results: its first step.
        counted: the sentence that begins with how many there were; ``{}`` is the number.
        origin: what the run was made from.
    """

    heading: str
    results: str
    counted: str
    origin: str


_SEARCHED = Wording(
    "From query to pair", "search results", "The queries gave {} search results", "a list of Chinese words"
)
_WORDINGS = {
    "urls": Wording("From list to pair", "rows of the list", "The list has {} rows", "a list of URLs"),
    "files": Wording("From picture to pair", "pictures named", "The data name {} pictures", "pictures of one's own"),
}


def wording(crawl: Manifest) -> Wording:
    """How to speak of a crawl's input, by its engine."""
    return _WORDINGS.get(str(crawl.config.get("engine")), _SEARCHED)


def funnel(crawl: Manifest, filtered: Manifest) -> list[Step]:
    """Give the steps in order: search results or rows of a list, distinct URLs, downloaded, after each rule, split."""
    urls, pairs = crawl.counts.get("urls", 0), filtered.counts["pairs"]
    results = crawl.counts.get("results", urls)
    steps = [
        Step("results", wording(crawl).results, results, 0),
        Step("urls", "distinct URLs", urls, results - urls),
        Step("downloaded", "pictures downloaded", pairs, urls - pairs),
    ]
    rows = pairs
    titles = {rule.name: rule.title for rule in REGISTRY if not rule.optional or rule.name in filtered.dropped}
    for name, title in {**titles, HELD_BACK: _HELD_BACK_TITLE}.items():
        lost = filtered.dropped.get(name, 0)
        rows -= lost
        steps.append(Step(name, title, rows, lost))
    train = filtered.counts[TRAIN]
    return [*steps, Step(TRAIN, "trained on; the others are test sets", train, rows - train)]


def bars(steps: Sequence[Step]) -> list[Bar]:
    """Draw steps as bars. The first one shows no rows left out, for they were never in the drawing."""
    most = max(step.rows for step in steps) or 1
    return [
        Bar(step, 100 * step.rows / most, 100 * step.lost / most if number else 0) for number, step in enumerate(steps)
    ]
