"""Counts of captions over parts, by counting them one by one."""

from collections import Counter

import numpy as np
import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st

from wukong.curate import caption_counts
from wukong.curate.caption_counts import hashes, merge


@given(st.lists(st.lists(st.sampled_from(["猫", "狗", "查看源网页", "Cat", "cat", " CAT"]), max_size=40), max_size=6))
@settings(deadline=None)
def test_counts_are_exact_over_parts(parts):
    counts = merge(*(hashes(pl.Series(part, dtype=pl.String)) for part in parts))
    expected = Counter(text.strip().lower() for part in parts for text in part)
    for part in parts:
        found = counts.of(hashes(pl.Series(part, dtype=pl.String)))
        assert found.tolist() == [expected[text.strip().lower()] for text in part]


def test_the_counts_of_ranges_are_joined_to_those_of_the_whole():
    captions = pl.Series([f"第{n * n % 700}号 CAT" for start in (0, 300, 5000) for n in range(start, start + 400)])
    values, middle = hashes(captions), np.uint64(2**63)
    counts = caption_counts.join([merge(values[values < middle]), merge(values[values >= middle])])
    expected = Counter(text.lower() for text in captions)
    assert counts.of(hashes(pl.Series(list(expected)))).tolist() == list(expected.values())
    assert (np.diff(counts.hashes.astype(object)) > 0).all()
    assert len(merge().hashes) == 0
