"""The exchange against rows in one list: each range gets its rows, and files are opened as often as there are some."""

import itertools
from collections import Counter

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wukong.curate import exchange
from wukong.curate.exchange import File
from wukong.errors import StorageError
from wukong.store import storage

EDGES = [key + step for ranges in (3, 17) for key in exchange.edges(2**64, ranges) for step in (-1, 0)]
KEY = st.integers(0, 2**64 - 1) | st.integers(0, 3) | st.just(2**64 - 1) | st.sampled_from(EDGES)


def ranges_of(files, edges, folder, rows, fan=None):
    """Do all merges, and read each range."""
    rounds, spans = exchange.rounds(files, edges, folder, rows, fan)
    for merges in rounds:
        for merge in reversed(merges):
            exchange.merge(merge)
    assert [span.first for span in spans] == [0, *(span.after for span in spans[:-1])]
    assert spans[-1].after == len(edges) + 1
    assert max(len(span.files) for span in spans) <= (fan or exchange.FAN)
    return [exchange.source(spans, edges, number).read() for number in range(len(edges) + 1)]


@given(
    st.lists(st.lists(KEY, max_size=20), min_size=1, max_size=17), st.sampled_from([1, 3, 17]), st.integers(2, 5),
    st.integers(1, 60), st.sampled_from([None, 1]),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_each_range_gets_its_rows_from_any_number_of_files(tmp_path_factory, written, ranges, fan, rows, last) -> None:
    folder = storage.from_path(tmp_path_factory.mktemp("exchange"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exchange, "FAN", fan)
        patch.setattr(exchange, "_ROW_GROUP", 3)
        files = []
        for number, keys in enumerate(written):
            table = pl.DataFrame({"key": keys, "file": [number] * len(keys)}, {"key": pl.UInt64, "file": pl.UInt8})
            files.append(exchange.write(f"{folder}/{number}.parquet", table))
        edges = exchange.edges(2**64, ranges)
        found = ranges_of(files, edges, f"{folder}/merged", rows, last)
    bounds = [0, *edges, 2**64]
    for table, (low, high) in zip(found, itertools.pairwise(bounds), strict=True):
        expected = [(key, number) for number, keys in enumerate(written) for key in keys if low <= key < high]
        assert Counter(table.iter_rows()) == Counter(expected)


def test_keys_can_be_texts_as_well(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(exchange, "FAN", 2)
    folder = storage.from_path(tmp_path)
    keys = [f"{number * 7919 % 65536:04x}" for number in range(500)]
    files = [exchange.write(f"{folder}/{n}.parquet", pl.DataFrame({"key": keys[n::9]})) for n in range(9)]
    edges = ["4", "4fff", "c000"]
    found = ranges_of(files, edges, f"{folder}/merged", 100)
    bounds = ["", *edges, "g"]
    expected = [sorted(key for key in keys if low <= key < high) for low, high in itertools.pairwise(bounds)]
    assert [table["key"].sort().to_list() for table in found] == expected


@pytest.mark.parametrize(("rows", "most"), [(100_000, 4_000_000), (400_000, 4_000_000), (250_000, 1_000_000)])
def test_files_are_opened_as_often_as_there_are_rows_whatever_their_number(rows, most) -> None:
    opened = {}
    for count in (100, 1_000, 10_000, 100_000):
        files = [File(f"file:///{number}", rows) for number in range(count)]
        edges = exchange.edges(2**64, count * rows // 2_000_000)
        rounds, spans = exchange.rounds(files, edges, "file:///merged", most)
        merges = [merge for merges in rounds for merge in merges]
        assert max(len(merge.source.files) for merge in merges) <= exchange.FAN
        reads = sum((span.after - span.first) * len(span.files) for span in spans)
        opened[count] = (sum(len(merge.source.files) + 1 for merge in merges) + reads) / count
    assert max(opened.values()) < 25, opened
    assert opened[100_000] < 1.5 * opened[10_000], "it grows as the logarithm of the number at most"


def test_a_merge_holds_no_more_rows_where_there_are_more_files() -> None:
    for count in (100, 5_000, 250_000):
        files = [File(f"file:///{number}", 100_000) for number in range(count)]
        held = Counter()
        known = {file.uri: (file.rows, 1.0) for file in files}
        edges = exchange.edges(2**64, count // 20)
        rounds, _ = exchange.rounds(files, edges, "file:///merged", 4_000_000)
        for merges in rounds:
            for merge in merges:
                low, high = merge.source.low or 0, merge.source.high or 2**64
                share = (high - low) / 2**64
                held[merge.target] = sum(known[uri][0] * share / known[uri][1] for uri in merge.source.files)
                known[merge.target] = held[merge.target], share
        assert max(held.values()) < 4_400_000


def test_equal_rows_give_equal_bytes(tmp_path) -> None:
    rows = pl.DataFrame({"key": [n * n % 7 for n in range(30_000)], "row": range(30_000)})
    written = [exchange.write(storage.from_path(tmp_path / f"{n}.parquet"), rows) for n in range(3)]
    assert len({storage.read_bytes(file.uri) for file in written}) == 1


def test_a_file_that_is_no_table_is_named(tmp_path) -> None:
    uri = storage.from_path(tmp_path / "x.parquet")
    storage.write_bytes(uri, b"no table at all")
    with pytest.raises(StorageError, match=r"x\.parquet is not a readable Parquet file"):
        exchange.Source((uri,), None, None).read()
