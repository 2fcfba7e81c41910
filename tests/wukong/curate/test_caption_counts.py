"""Counts of captions over parts, by counting them one by one."""

from collections import Counter

import numpy as np
import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st

from wukong.curate.caption_counts import CaptionCounts, counted, hashes, repeated


@given(
    st.lists(st.lists(st.sampled_from(["猫", "狗", "查看源网页", "Cat", "cat", " CAT"]), max_size=40), max_size=6),
    st.integers(1, 3),
)
@settings(deadline=None)
def test_counts_are_exact_over_groups_of_parts(parts, size):
    groups = [parts[first : first + size] for first in range(0, len(parts), size)]
    asked = [
        counted(*(hashes(pl.Series(part, dtype=pl.String)) for part in group)).with_columns(group=pl.lit(number))
        for number, group in enumerate(groups)
    ]
    answers = repeated(pl.concat(asked)) if asked else None
    expected = Counter(text.strip().lower() for part in parts for text in part)
    for number, group in enumerate(groups):
        counts = CaptionCounts.of_rows(answers.filter(group=number))
        for part in group:
            found = counts.of(hashes(pl.Series(part, dtype=pl.String)))
            assert found.tolist() == [expected[text.strip().lower()] for text in part]


def test_only_what_is_repeated_is_answered():
    captions = pl.Series([f"第{n * n % 700}号 CAT" for start in (0, 300, 5000) for n in range(start, start + 400)])
    once = pl.Series(["只有一次"])
    asked = pl.concat([counted(hashes(captions)), counted(hashes(captions)), counted(hashes(once))])
    answers = repeated(asked)
    expected = Counter(text.lower() for text in captions)
    assert len(answers) == 2 * len(expected)
    counts = CaptionCounts.of_rows(answers.unique("hash"))
    assert counts.of(hashes(pl.Series(list(expected)))).tolist() == [2 * count for count in expected.values()]
    assert counts.of(hashes(once)).tolist() == [1]
    assert (np.diff(counts.hashes.astype(object)) > 0).all()
    assert repeated(counted()).is_empty()
