"""Files of buckets: what is read back, what is recognised as cut short, and the plan of the rounds."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wukong.curate import bucket_files
from wukong.curate.bucket_files import Buckets, File, Segments, Span
from wukong.store import storage

BUCKETS = Buckets({"test": np.array([0, 50]), "train": np.array([0, 10, 60])})


def pairs(seed: int) -> pl.DataFrame:
    generator = np.random.default_rng(seed)
    return pl.DataFrame(
        {
            "key": [f"{seed}-{n}" for n in range(40)],
            "split": generator.choice(["test", "train"], 40),
            "position": generator.integers(0, 100, 40),
            "picture": [generator.bytes(n) for n in range(40)],
        }
    )


def test_each_segment_holds_the_pairs_of_its_buckets(tmp_path: Path) -> None:
    tables, segments = [pairs(0), pairs(1)], Segments(0, 2, 3)
    file = bucket_files.write(storage.from_path(tmp_path / "0"), tables, BUCKETS, segments)
    whole = pl.concat(tables)
    first = {"test": [0, 50], "train": [0, 10, 60]}
    numbers = [
        2 * (row["split"] == "train") + sum(row["position"] >= start for start in first[row["split"]]) - 1
        for row in whole.to_dicts()
    ]
    for number in range(3):
        (table,) = bucket_files.read([file.places(number)])
        wanted = whole.filter(pl.Series([bucket // 2 == number for bucket in numbers]))
        assert table.sort("key").equals(wanted.sort("key"))


def test_a_file_that_is_cut_short_is_not_complete(tmp_path: Path) -> None:
    uri, segments = storage.from_path(tmp_path / "0"), Segments(0, 1, 5)
    assert bucket_files.complete(uri, segments) is None
    file = bucket_files.write(uri, [pairs(0)], BUCKETS, segments)
    again = bucket_files.complete(uri, segments)
    assert again is not None
    assert (again.ends == file.ends).all()
    data = storage.read_bytes(uri)
    for size in (0, 7, len(data) // 2, len(data) - 8, len(data) - 1):
        storage.write_bytes(uri, data[:size])
        assert bucket_files.complete(uri, segments) is None, size


@given(st.integers(1, 3000), st.integers(2, 40), st.integers(1, 30))
def test_every_round_narrows_the_segments_until_each_holds_one_bucket(buckets: int, fan: int, files: int) -> None:
    widths = bucket_files.rounds(buckets, fan)
    assert widths[-1] == 1
    segments = bucket_files.first_round(buckets, widths[0])
    assert segments.count <= fan
    spans = [Span(segments, [File(str(n), np.arange(segments.count + 1)[None] * 10) for n in range(min(files, 3))])]
    for width in widths[1:2]:
        groups = [group for span in spans for group in bucket_files.next_round(span, buckets, width, 25)]
        assert all(len(each.places) <= 2 for group in groups for each in group)
        held = [group[0].segments for group in groups]
        assert max(each.count for each in held) <= fan
        covered = [(each.first, min(each.first + each.width * each.count, buckets)) for each in held]
        assert [low for low, _ in covered] == [0, *(high for _, high in covered[:-1])]
        assert covered[-1][1] == buckets


@pytest.mark.parametrize(
    ("buckets", "widths"), [(1, [1]), (32, [1]), (33, [6, 1]), (1024, [32, 1]), (1025, [121, 11, 1])]
)
def test_rounds_are_as_few_as_possible_and_even(buckets: int, widths: list[int]) -> None:
    assert bucket_files.rounds(buckets, 32) == widths
