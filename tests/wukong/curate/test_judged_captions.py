"""Pairs with several captions are judged caption by caption, against an oracle that takes one caption after another."""

from collections import Counter
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wukong.config.filter import Filter
from wukong.config.split import Split
from wukong.crawl.url import key_of
from wukong.curate import apply, captions, names, rules, split
from wukong.curate.caption_counts import CaptionCounts, counted, hashes
from wukong.curate.pairs import CAPTIONS, DROPPED, PAIRS, schema_of
from wukong.data.schema import CAPTIONS as CRAWLED_CAPTIONS
from wukong.data.schema import CRAWLED

TEXTS = [
    "一只猫",
    "一只狗",
    "a cat",
    "000.jpg",
    "猫" * 40,
    "",
    "王小明在公园里拍照",
    "李小红在公园里拍照",
    "免费色情影片",
]
ROW = dict.fromkeys(CRAWLED.names) | {"queries": ["词"], "engine": "test", "status": "success", "height": 300}
SETTINGS = Filter(min_side=201)
LOADED = rules.load(SETTINGS)
NO_COUNTS = CaptionCounts(np.zeros(0, np.uint64), np.zeros(0, np.int64))

drawn_captions = st.lists(
    st.tuples(st.sampled_from(TEXTS), st.integers(1, 9)), min_size=1, max_size=6, unique_by=lambda each: each[0]
)
drawn_pairs = st.lists(st.tuples(drawn_captions, st.sampled_from([100, 300])), max_size=8)


def pairs_of(drawn: list[tuple[list[tuple[str, int]], int]]) -> pl.DataFrame:
    """Pairs as the crawl hands them on; each has its captions with their counts, and a width."""
    rows = []
    for number, (texts, width) in enumerate(drawn):
        entries = [{"caption": text, "count": count, "query": f"q{place}"} for place, (text, count) in enumerate(texts)]
        row = {"url": f"http://x/{number}", "key": key_of(f"http://x/{number}"), "caption": texts[0][0], "width": width}
        rows.append(ROW | row | {"captions": entries if len(entries) > 1 else None})
    return pl.DataFrame(pa.Table.from_pylist(rows, schema=CRAWLED.append(CRAWLED_CAPTIONS)))


def judged_alone(row: dict[str, Any], text: str) -> dict[str, Any]:
    """What the filter makes of a pair that has this caption only."""
    one = pl.DataFrame(
        pa.Table.from_pylist([{name: row[name] for name in CRAWLED.names} | {"caption": text}], schema=CRAWLED)
    )
    return apply.apply_rules(one, SETTINGS, NO_COUNTS, LOADED).row(0, named=True)


def expected(row: dict[str, Any]) -> dict[str, Any]:
    """The oracle: judge each caption by itself, then keep those that are left."""
    entries = row["captions"] or [{"caption": row["caption"], "count": 1, "query": None}]
    outcomes = [(entry, judged_alone(row, entry["caption"])) for entry in entries]
    left = [each for each in outcomes if each[1]["dropped_by"] is None] or outcomes
    merged: dict[str, dict[str, Any]] = {}
    for entry, outcome in left:
        if outcome["caption"] in merged:
            merged[outcome["caption"]]["count"] += entry["count"]
            continue
        told = {
            name: outcome[name] for name in ("caption", "caption_original", "length", "caption_count", "similarity")
        }
        merged[outcome["caption"]] = told | {"count": entry["count"], "query": entry["query"]}
    first = left[0][1]
    return first | {"captions": list(merged.values()) if len(merged) > 1 else None}


@given(drawn_pairs)
@settings(deadline=None, max_examples=40)
def test_each_caption_is_judged_and_the_first_that_is_left_is_the_pairs(drawn) -> None:
    pairs = pairs_of(drawn)
    judged = apply.apply_rules(pairs, SETTINGS, NO_COUNTS, LOADED)
    assert judged.columns == [*DROPPED.names, "captions"]
    assert judged.to_dicts() == [expected(row) for row in pairs.iter_rows(named=True)]
    stored = schema_of(judged, DROPPED)
    kept = judged.filter(pl.col("dropped_by").is_null()).with_columns(dropped_by=pl.lit(""))
    assert kept.select(stored.names).to_arrow().cast(stored).schema.field("captions") == CAPTIONS


@given(drawn_pairs)
@settings(deadline=None, max_examples=40)
def test_what_is_taken_apart_and_put_together_is_the_same(drawn) -> None:
    pairs = pairs_of(drawn)
    apart = captions.apart(pairs)
    assert len(apart) == sum(len(texts) for texts, _ in drawn)
    assert apart["caption"].to_list() == [text for texts, _ in drawn for text, _ in texts]
    assert captions.together(apart).select(pairs.columns).equals(pairs)
    assert captions.several(pairs) == sum(len(texts) > 1 for texts, _ in drawn)


def test_tables_without_the_column_are_left_as_they_are() -> None:
    pairs = pairs_of([([("一只猫", 1)], 300)]).drop("captions")
    assert captions.apart(pairs) is pairs
    assert captions.together(pairs) is pairs
    assert captions.several(pairs) == 0
    assert apply.apply_rules(pairs, SETTINGS, NO_COUNTS, LOADED).columns == DROPPED.names
    assert schema_of(pairs, PAIRS) == PAIRS


def test_captions_that_differ_in_a_name_only_become_one_that_no_training_reads_the_name_of() -> None:
    texts = ["王小明在公园里拍照", "李小红在公园里拍照", "公园"]
    masked = names.mask(pl.Series(texts), SETTINGS.name_care)
    assert masked[0] == masked[1] != texts[0], "the premise"
    pairs = pairs_of([([(texts[0], 2), (texts[1], 5), (texts[2], 1)], 300)])
    (row,) = apply.apply_rules(pairs, SETTINGS, NO_COUNTS, LOADED).to_dicts()
    assert row["caption"] == masked[0] and row["caption_original"] == texts[0]
    assert [(each["caption"], each["count"]) for each in row["captions"]] == [(masked[0], 7), ("公园", 1)]


def test_a_frequent_caption_gives_way_to_the_next() -> None:
    frequent = pl.Series(["查看源网页"] * 11)
    counts = CaptionCounts.of_rows(counted(hashes(frequent)))
    pairs = pairs_of([([("查看源网页", 9), ("一只猫", 1)], 300), ([("查看源网页", 2)], 300)])
    judged = apply.apply_rules(pairs, SETTINGS, counts, LOADED)
    assert judged["caption"].to_list() == ["一只猫", "查看源网页"]
    assert judged["caption_count"].to_list() == [1, 11]
    assert judged["dropped_by"].to_list() == [None, "frequency"]
    assert judged["captions"].to_list() == [None, None], "of one that is left no list is kept"


def test_a_model_judges_each_caption_of_a_picture() -> None:
    similar = Filter(similarity_model="file:///model", min_similarity=0.5)
    pairs = pairs_of([([("一只猫", 3), ("一只狗", 2), ("一只鸟", 1)], 300), ([("一只鱼", 1)], 300)])
    judged = apply.apply_rules(pairs, similar, NO_COUNTS, LOADED)
    keys = judged["key"].to_list()
    scores = [(keys[0], "一只猫", 0.1), (keys[0], "一只狗", 0.9), (keys[0], "一只鸟", 0.7), (keys[1], "一只鱼", 0.2)]
    schema = {"key": pl.String, "caption": pl.String, "similarity": pl.Float32}
    looked, _ = apply.apply_picture_rules(judged, pl.DataFrame(scores, schema=schema, orient="row"), similar, {})
    assert looked["caption"].to_list() == ["一只狗", "一只鱼"]
    assert looked["dropped_by"].to_list() == [None, "similarity"]
    assert looked["similarity"].to_list() == pytest.approx([0.9, 0.2])
    assert [each["similarity"] for each in looked["captions"][0]] == pytest.approx([0.9, 0.7])
    assert looked["captions"][1] is None


@given(st.sampled_from([0.1 * tenth for tenth in range(1, 10)]))
@settings(deadline=None, max_examples=25)
def test_training_sees_no_caption_that_is_held_out(share: float) -> None:
    held = Split(
        held_out_captions=share,
        holdouts=[{"name": "unseen", "source": "*", "captions": "unseen"}],
    )
    words = [f"{colour}色的{animal}" for colour in "红黄蓝" for animal in "猫狗鸟"]
    pairs = pairs_of([([(words[(n + k) % 9], k + 1) for k in range(3)], 300) for n in range(9)])
    judged = apply.apply_rules(pairs, SETTINGS, NO_COUNTS, LOADED)
    none = np.zeros(0, np.uint64)
    assigned = judged.with_columns(split=split.assign(judged, held, none, none))
    left = apply.without_tested_captions(assigned, Filter(split=held))
    assert left.drop("captions").equals(assigned.drop("captions")), "the first caption stays"
    parts = {name: left.filter(pl.col("split") == name) for name in ("train", "unseen")}
    trained = Counter(captions.apart(parts["train"])["caption"])
    tested = Counter(parts["unseen"]["caption"])
    assert not trained.keys() & tested.keys()
    assert parts["unseen"]["captions"].null_count() == len(parts["unseen"])
    # Nothing else is left out: of the training pairs every caption that no test set has.
    before = Counter(captions.apart(assigned.filter(pl.col("split") == "train"))["caption"])
    assert trained == Counter({text: count for text, count in before.items() if text not in tested})
