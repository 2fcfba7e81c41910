"""Planning: duplicates are merged like by a naive oracle, parts do not depend on the order, reading is limited."""

import itertools
import random
from pathlib import Path

import polars as pl
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wukong.crawl import found, plan
from wukong.crawl.found import FOUND, FoundRow, as_table, write_found
from wukong.crawl.url import key_of
from wukong.curate import exchange
from wukong.store import storage

results = st.lists(
    st.tuples(st.integers(0, 30), st.sampled_from("甲乙丙丁"), st.text(max_size=3), st.one_of(st.none(), st.just("p"))),
    max_size=80,
)


def rows_of(drawn: list[tuple[int, str, str, str | None]]) -> list[FoundRow]:
    return [
        (key_of(f"http://a/{number}"), f"http://a/{number}", caption, query, order, page)
        for order, (number, query, caption, page) in enumerate(drawn)
    ]


def naive(rows: list[FoundRow]) -> list[dict]:
    """Merge in the simplest way."""
    merged: dict[str, dict] = {}
    captions: dict[str, dict[str, dict]] = {}
    for key, url, caption, query, _, page in sorted(rows, key=lambda row: row[4]):
        row = merged.setdefault(key, {"key": key, "url": url, "caption": caption, "queries": [], "page_url": page})
        if query not in row["queries"]:
            row["queries"].append(query)
        captions.setdefault(key, {}).setdefault(caption, {"caption": caption, "count": 0, "query": query})["count"] += 1
    for key, row in merged.items():
        kept = captions[key]
        if any(len(caption) <= found.MAX_CAPTION for caption in kept):
            kept = {caption: entry for caption, entry in kept.items() if len(caption) <= found.MAX_CAPTION}
        first, *others = kept.values()
        row["caption"], row["captions"], room = first["caption"], [first], found.MAX_CAPTION
        for entry in sorted(others, key=lambda each: -each["count"]):  # a stable sort: earlier ones first
            room -= len(entry["caption"])
            if entry["caption"] and room >= 0:
                row["captions"].append(entry)
        if len(row["captions"]) == 1:
            row["captions"] = None
    return [merged[key] for key in sorted(merged)]


@given(results, st.randoms(), st.sampled_from([1, 3, found.MAX_CAPTION]))
def test_duplicates_are_merged_and_all_their_captions_are_kept(drawn, order: random.Random, room: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(found, "MAX_CAPTION", room)
        patch.setattr(plan, "MAX_CAPTION", room)
        rows = rows_of(drawn)
        expected = naive(rows)
        shuffled = list(rows)
        order.shuffle(shuffled)
        merged = plan.merge(pl.DataFrame(as_table(shuffled)))
    assert merged.to_pylist() == expected
    assert plan.with_several(merged) == sum(row["captions"] is not None for row in expected)


@given(results, st.integers(1, 7), st.integers(1, 9), st.randoms())
@settings(max_examples=30, deadline=None)
def test_ranges_cover_every_url_once_in_any_order_of_files(tmp_path_factory, drawn, ranges, files, order) -> None:
    folder = tmp_path_factory.mktemp("plan")
    rows = rows_of(drawn)
    expected = naive(rows)
    order.shuffle(rows)
    uris = []
    for number in range(files):
        uris.append(storage.from_path(folder / f"{number}.parquet"))
        write_found(uris[-1], as_table(rows[number::files]))
    order.shuffle(uris)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exchange, "FAN", 3)
        edges = plan.edges(ranges)
        files_of = [exchange.File(uri, len(rows) // files) for uri in uris]
        rounds, spans = exchange.rounds(files_of, edges, storage.from_path(folder / "merged"), 30)
        for merge in itertools.chain.from_iterable(rounds):
            exchange.merge(merge)
    planned = [
        row for index in range(ranges) for row in plan.merge(exchange.source(spans, edges, index).read()).to_pylist()
    ]
    assert planned == expected


@given(st.integers(1, 3000), st.integers(1, 500))
def test_parts_are_even_and_within_the_limit(urls: int, size: int) -> None:
    sizes = plan.part_sizes(urls, size)
    assert sum(sizes) == urls
    assert max(sizes) <= size
    assert max(sizes) - min(sizes) <= 1


def test_key_ranges_have_no_gaps() -> None:
    for count in (1, 3, 7, 256, 332):
        edges = plan.edges(count)
        assert len(edges) == count - 1
        assert [int(edge, 16) for edge in edges] == [n * 16**8 // count for n in range(1, count)]
        assert all(len(edge) == 8 for edge in edges)


def test_parts_can_be_read_back_with_their_key_bounds(tmp_path: Path) -> None:
    rows = rows_of([(number, "甲", "图", None) for number in range(25)])
    planned = plan.merge(pl.DataFrame(as_table(rows)))
    uri = storage.from_path(tmp_path / "0.parquet")
    parts = plan.write_range(uri, planned, 10)
    read = [plan.read_part(uri, group).to_pylist() for group in range(len(parts))]
    assert [row for part in read for row in part] == planned.to_pylist()
    assert parts == [(len(part), part[0]["key"], part[-1]["key"]) for part in read]


def test_a_range_reads_only_the_row_groups_it_needs(tmp_path: Path, monkeypatch) -> None:
    rows = rows_of([(number, "甲", "图", None) for number in range(40_000)])
    uri = storage.from_path(tmp_path / "0.parquet")
    write_found(uri, as_table(rows))
    groups = pq.ParquetFile(tmp_path / "0.parquet").num_row_groups
    assert groups >= 4
    read: list[int] = []
    original = pq.ParquetFile.read_row_groups
    monkeypatch.setattr(pq.ParquetFile, "read_row_groups", lambda self, i: read.extend(i) or original(self, i))
    (edge,) = plan.edges(20)[:1]
    rows = exchange.Source((uri,), None, edge).read()
    assert len(read) == 1
    assert 0 < len(rows) < 8_192
    assert rows["key"].max() < edge


def test_no_results() -> None:
    assert plan.merge(pl.DataFrame(FOUND.empty_table())).num_rows == 0
    assert plan.merge(exchange.Source((), None, None).read()).num_rows == 0
