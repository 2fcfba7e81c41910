"""Drift against the definition of the Jensen-Shannon divergence by entropies."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wukong.report.statistics import Statistics
from wukong.validate.drift import drift

COUNTS = st.lists(st.integers(0, 50), min_size=21, max_size=21)


def of_sides(counts):
    return Statistics(pairs=sum(counts), sides=np.array(counts))


@given(COUNTS, COUNTS)
@settings(deadline=None)
def test_drift_is_the_divergence_of_the_definition(one, other):
    if not sum(one) or not sum(other):
        return
    a, b = of_sides(one), of_sides(other)
    p, q = np.array(one) / sum(one), np.array(other) / sum(other)

    def entropy(shares):
        return -sum(share * math.log2(share) for share in shares if share)

    expected = entropy((p + q) / 2) - (entropy(p) + entropy(q)) / 2
    assert drift(a, b)["sides"] == pytest.approx(expected, abs=1e-9)
    assert drift(b, a)["sides"] == pytest.approx(expected, abs=1e-9)
    assert drift(a, a)["sides"] == pytest.approx(0, abs=1e-12)
    assert drift(a, b)["tokens"] == 0


def test_sets_that_share_nothing_are_one_bit_apart():
    one, other = [0] * 21, [0] * 21
    one[2], other[8] = 5, 7
    assert drift(of_sides(one), of_sides(other))["sides"] == 1
    assert drift(of_sides(one), Statistics())["sides"] == 1


def test_sets_that_hardly_differ_are_no_error():
    counts = [10**8 + n for n in range(21)]
    more = [count * 7 for count in counts]
    more[3] += 1
    assert 0 <= drift(of_sides(counts), of_sides(more))["sides"] < 1e-12
