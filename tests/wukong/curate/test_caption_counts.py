"""Counts of captions over parts, by counting them one by one."""

from collections import Counter

import numpy as np
import polars as pl
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from wukong.curate import caption_counts
from wukong.curate.caption_counts import hashes, merge
from wukong.store import storage


@given(st.lists(st.lists(st.sampled_from(["猫", "狗", "查看源网页", "Cat", "cat", " CAT"]), max_size=40), max_size=6))
@settings(deadline=None)
def test_counts_are_exact_over_parts(parts):
    counts = merge(*(hashes(pl.Series(part, dtype=pl.String)) for part in parts))
    expected = Counter(text.strip().lower() for part in parts for text in part)
    for part in parts:
        found = counts.of(hashes(pl.Series(part, dtype=pl.String)))
        assert found.tolist() == [expected[text.strip().lower()] for text in part]


def test_one_machine_counts_what_the_ranges_of_many_do(tmp_path):
    parts = [[f"第{n * n % 700}号 CAT" for n in range(start, start + 400)] for start in (0, 300, 5000)]
    files = [storage.from_path(tmp_path / f"{number}.parquet") for number in range(len(parts))]
    for file, part in zip(files, parts, strict=True):
        storage.write_table(file, pa.table({"caption": part}))
    counts = caption_counts.count(files)
    expected = Counter(text.lower() for part in parts for text in part)
    assert counts.of(hashes(pl.Series(list(expected)))).tolist() == list(expected.values())
    assert (np.diff(counts.hashes.astype(object)) > 0).all()
    assert len(caption_counts.count([]).hashes) == 0
