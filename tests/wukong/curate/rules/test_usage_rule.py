"""Pictures whose owners do not want their use."""

import polars as pl
import pytest
from rule_samples import LOADED, NO_COUNTS

from wukong.config.filter import Filter
from wukong.curate import rules

SAID = {
    None: None,
    "search=y, train-ai=y": None,
    "unavailable_after=2126-12-31": None,
    "noai": "usage",
    "noimageai": "usage",
    "noindex, search=y": "usage",
    "search=n": "usage",
    "search=y, train-ai=n": "usage",
}


def judged(said: list[str | None], **settings: object) -> list[str | None]:
    captions = [f"第{number}只猫" for number in "一二三四五六七八"[: len(said)]]
    pairs = pl.DataFrame({"caption": captions, "width": 300, "height": 300, "usage": pl.Series(said, dtype=pl.String)})
    thresholds = Filter.model_validate(settings)
    return rules.decide(rules.compute(pairs, thresholds, NO_COUNTS, LOADED), thresholds).to_list()


def test_what_owners_refuse_is_dropped_and_what_they_do_not_is_kept() -> None:
    assert judged(list(SAID)) == list(SAID.values())


@pytest.mark.parametrize(
    ("refused", "kept"), [([], 8), (["train-ai=n"], 7), (["noindex", "search=n"], 6), (["noai", "noimageai"], 6)]
)
def test_the_operator_decides_what_counts(refused: list[str], kept: int) -> None:
    assert judged(list(SAID), refused_usage=refused).count(None) == kept


def test_a_crawl_that_did_not_ask_has_nothing_to_refuse() -> None:
    pairs = pl.DataFrame({"caption": ["一只猫"], "width": [300], "height": [300]})
    assert rules.decide(rules.compute(pairs, Filter(), NO_COUNTS, LOADED), Filter()).to_list() == [None]
