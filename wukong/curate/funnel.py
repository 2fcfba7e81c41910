"""The funnel from query to pair: how many rows are left after each step, for reports and the command line."""

from dataclasses import dataclass

from wukong.curate.rules import HELD_BACK, PICTURE_RULES, RULES
from wukong.curate.split import TRAIN
from wukong.manifest import Manifest

_TITLES = {
    "size": "sides over the minimum",
    "aspect_ratio": "aspect ratio within the limit",
    "meaningless": "caption says something",
    "language": "caption is Chinese",
    "length": "caption of the right length",
    "frequency": "caption not too frequent",
    "sensitive": "no sensitive word",
    "similarity": "caption fits the picture, by a model",
    "duplicate_image": "picture not seen before",
    HELD_BACK: "trained on or tested",
}


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


def of_list(crawl: Manifest) -> bool:
    """Whether a crawl was of a list of URLs, without any search."""
    return crawl.config.get("engine") == "urls"


def heading(crawl: Manifest) -> str:
    """What a funnel of this crawl is called."""
    return "From list to pair" if of_list(crawl) else "From query to pair"


def funnel(crawl: Manifest, filtered: Manifest) -> list[Step]:
    """Give the steps in order: search results or rows of a list, distinct URLs, downloaded, after each rule, split."""
    urls, pairs = crawl.counts.get("urls", 0), filtered.counts["pairs"]
    results = crawl.counts.get("results", urls)
    steps = [
        Step("results", "rows of the list" if of_list(crawl) else "search results", results, 0),
        Step("urls", "distinct URLs", urls, results - urls),
        Step("downloaded", "pictures downloaded", pairs, urls - pairs),
    ]
    rows = pairs
    for rule in (*RULES, *(rule for rule in PICTURE_RULES if rule in filtered.dropped), HELD_BACK):
        lost = filtered.dropped.get(rule, 0)
        rows -= lost
        steps.append(Step(rule, _TITLES[rule], rows, lost))
    train = filtered.counts[TRAIN]
    return [*steps, Step(TRAIN, "trained on; the others are test sets", train, rows - train)]
