"""What rules removed: by kind and source as a plain loop counts it, and which pictures may be shown."""

import dataclasses
import fnmatch
from collections import Counter
from typing import Any

import polars as pl
import pytest

from wukong.config.experiment import Source
from wukong.config.filter import Filter
from wukong.curate.pairs import DROPPED
from wukong.curate.rules import REGISTRY
from wukong.errors import DataError
from wukong.report import removed
from wukong.report.removed import Removed
from wukong.store import storage
from wukong.store.manifest import Stage

SOURCES = (Source(name="stamps", pattern="*/stamps/*"), Source(name="all of a", pattern="http://a.cn/*"))
WORDS = ["色情图片网站", "赌博平台网址", "网上赌博", "一只猫"]


def dropped(count: int, reasons: list[str], start: int = 0) -> pl.DataFrame:
    empty = pl.DataFrame(DROPPED.empty_table())
    hosts = ["http://a.cn/stamps/", "http://a.cn/", "http://b.cn/stamps/", "http://b.cn/"]
    rows: list[dict[str, Any]] = [
        {
            "key": f"{number:020x}",
            "url": f"{hosts[number % 4]}{number}.jpg",
            "caption": WORDS[number % len(WORDS)],
            "usage": "noai" if number % 2 else None,
            "dropped_by": reasons[number % len(reasons)],
        }
        for number in range(start, start + count)
    ]
    return pl.concat([empty, pl.DataFrame(rows, schema_overrides={"usage": pl.String})], how="diagonal_relaxed")


def test_pairs_are_counted_by_rule_and_source() -> None:
    table = dropped(50, ["size", "size", "length", "held_back"])
    found = removed.count(table, Filter(), SOURCES).sources
    expected: dict[str, Counter[str]] = {"size": Counter(), "length": Counter()}
    for row in table.iter_rows(named=True):
        if row["dropped_by"] != "held_back":  # no rule drops those
            names = [each.name for each in SOURCES if fnmatch.fnmatchcase(row["url"], each.pattern)]
            expected[row["dropped_by"]].update(names or [removed.ELSEWHERE])
    assert found == expected
    assert removed.count(table, Filter(), ()).sources == {}


def test_sensitive_words_are_counted_by_category_and_objections_by_statement() -> None:
    table = dropped(8, ["sensitive"])
    found = removed.count(table, Filter(), SOURCES)
    assert sum(found.kinds["sensitive"].values()) == 6  # a cat is none
    assert found.kinds["sensitive"]["gambling"] == 4
    assert removed.count(dropped(8, ["usage"]), Filter(), ()).kinds == {"usage": {"noai": 4}}


def test_the_sum_of_tables_is_the_count_of_all_and_is_read_as_it_was_stored(tmp_path: Any) -> None:
    reasons = ["size", "sensitive", "length", "sensitive"]
    tables = [dropped(40, reasons, start) for start in (0, 40, 80)]
    whole = removed.merge(removed.count(table, Filter(), SOURCES) for table in tables)
    assert whole == removed.count(pl.concat(tables), Filter(), SOURCES)
    stage = Stage(storage.from_path(tmp_path), "validate", {})
    uri = stage.path(removed.PATH)
    storage.write_json(uri, whole.as_json())
    assert removed.read(stage.commit([stage.describe(removed.PATH)])) == dataclasses.replace(whole, candidates={})
    assert "0000" not in storage.read_bytes(uri).decode(), "no key is stored"
    assert removed.read(stage.commit([])) == removed.Removed(), "a gate of an earlier version counted nothing"
    storage.write_json(uri, {"kinds": 3})
    with pytest.raises(DataError, match=r"delete it, and .*/manifest\.json"):
        removed.read(stage.commit([stage.describe(removed.PATH)]))


def test_of_each_rule_one_is_chosen_before_a_second_of_any() -> None:
    table = pl.concat([dropped(100, ["length"]), dropped(3, ["size"], 100), dropped(1, ["sensitive"], 200)])
    chosen = removed.count(table, Filter(), ()).chosen()
    assert Counter(rule for rule, _ in chosen) == {"length": 16, "size": 3, "sensitive": 1}
    assert [rule for rule, _ in chosen] == ["size"] * 3 + ["length"] * 16 + ["sensitive"]
    assert len({key for _, key in chosen}) == removed.MOST_SHOWN == 20
    keys = {row["key"]: row["dropped_by"] for row in table.iter_rows(named=True)}
    assert all(keys[key] == rule for rule, key in chosen)
    assert removed.count(table.reverse(), Filter(), ()).chosen() == chosen, "the order of rows decides nothing"
    assert removed.count(table, Filter(seed=1), ()).chosen() != chosen
    assert Removed().chosen() == []


def test_what_must_never_be_shown_hides_all_that_was_not_compared_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Filter.model_validate({"duplicate_images": "equal", "similarity_model": "file:///m"})
    table = dropped(40, ["size", "sensitive", "similarity", "duplicate_image"])
    assert set(removed.candidates(table, settings)) == {"size", "sensitive", "similarity", "duplicate_image"}
    (rule,) = (rule for rule in REGISTRY if rule.name == "similarity")
    monkeypatch.setattr(rule, "never_shown", True)
    # Texts are judged before any picture is read: a picture that they drop may be a forbidden one.
    assert set(removed.candidates(table, settings)) == {"duplicate_image"}
    off = Filter.model_validate({"duplicate_images": "equal"})
    assert set(removed.candidates(table, off)) == {"size", "sensitive", "duplicate_image"}


def test_a_rule_that_obeys_a_list_of_forbidden_pictures_is_never_shown() -> None:
    assert all(rule.never_shown for rule in REGISTRY if rule.name == "forbidden")


def test_what_shows_a_test_picture_may_be_shown_as_it_passed_the_list_of_forbidden_ones() -> None:
    asked = {"forbidden": {"lists": ["file:///list"]}, "decontaminate": {"hashes": ["file:///set"]}}
    table = dropped(10, ["sensitive", "forbidden", "overlap"])
    assert set(removed.candidates(table, Filter.model_validate(asked))) == {"overlap"}
