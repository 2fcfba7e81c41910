import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from wukong.errors import DataError
from wukong.evaluate import interval, paired
from wukong.evaluate.answers import Scores

SIMULATIONS = 1000
"""In 500, a true coverage of 95 % is measured only to one per cent (standard error)."""


@pytest.mark.parametrize(("truth", "units"), [(0.153, 400), (0.801, 400), (0.0417, 300), (0.413, 50)])
def test_95_of_100_intervals_of_a_share_hold_the_true_value(truth: float, units: int) -> None:
    numbers = np.random.default_rng(1)
    held = 0
    for seed in range(SIMULATIONS):
        (found,) = interval.of(numbers.random(units) < truth, resamples=500, seed=seed)
        held += found.low <= truth <= found.high
    assert 0.93 <= held / SIMULATIONS <= 0.97


def test_95_of_100_intervals_hold_where_captions_of_an_image_are_hit_together() -> None:
    numbers = np.random.default_rng(2)
    held = naive = 0
    for seed in range(SIMULATIONS):
        easy = numbers.beta(0.6, 0.9, 300)  # the mean is 0.4; five captions of an image share it
        hits = numbers.random((300, 5)) < easy[:, None]
        (found,) = interval.of(hits.sum(1), np.full(300, 5), resamples=500, seed=seed)
        (apart,) = interval.of(hits.ravel(), resamples=500, seed=seed)
        held += found.low <= 0.4 <= found.high
        naive += apart.low <= 0.4 <= apart.high
    assert 0.93 <= held / SIMULATIONS <= 0.97
    assert naive / SIMULATIONS < 0.85  # as if captions were independent: too narrow


@pytest.mark.parametrize("images", [5, 40])
def test_95_of_100_intervals_of_the_mean_per_class_hold(images: int) -> None:
    numbers = np.random.default_rng(3)
    labels = np.repeat(np.arange(20), numbers.integers(images, 2 * images, 20))
    truth = numbers.uniform(0.2, 0.8, 20)
    held = 0
    for seed in range(SIMULATIONS):
        hits = numbers.random(len(labels)) < truth[labels]
        found = interval.mean_per_class(hits, labels, resamples=500, seed=seed)
        held += found.low <= truth.mean() <= found.high
    assert 0.93 <= held / SIMULATIONS <= 0.97


def difference(first: np.ndarray, second: np.ndarray, **options: int) -> interval.Interval:
    """The first model's result less the second's, on the same units."""
    one, other = (
        Scores(("top1",), values[:, None].astype(float), np.ones((len(values), 1)), np.ones((1, 1)))
        for values in (first, second)
    )
    return paired.differences(other, [one], **options)[0]["top1"]


def test_95_of_100_intervals_of_a_paired_difference_hold() -> None:
    numbers = np.random.default_rng(4)
    held, narrower = 0, 0
    for seed in range(SIMULATIONS):
        hard = numbers.random(300)
        first, second = hard < 0.5, hard + numbers.normal(0, 0.1, 300) < 0.4
        found = difference(first, second, resamples=500, seed=seed)
        held += found.low <= 0.1 <= found.high  # 0.5 less the integral below
        alone = [interval.of(each, resamples=500, seed=seed)[0] for each in (first, second)]
        narrower += found.high - found.low < math.hypot(*(each.high - each.low for each in alone))
    # P(hard + noise < 0.4) for hard uniform on [0, 1]: the integral of the normal's distribution function.
    x = np.linspace(0, 1, 100_001)
    assert np.trapezoid(stats.norm.cdf((0.4 - x) / 0.1), x) == pytest.approx(0.4, abs=1e-4)
    assert 0.93 <= held / SIMULATIONS <= 0.97
    assert narrower == SIMULATIONS


@given(st.integers(2, 60), st.integers(0, 100))
def test_draws_over_distinct_rows_have_the_moments_of_draws_of_units(units: int, seed: int) -> None:
    numbers = np.random.default_rng(seed)
    values = numbers.integers(0, 3, units).astype(float)
    drawn = interval._drawn(interval._rows(values, None), 4000, seed)[:, 0]
    error = values.std() / math.sqrt(units)
    assert drawn.mean() == pytest.approx(values.mean(), abs=6 * error / math.sqrt(4000) + 1e-9)
    assert drawn.std() == pytest.approx(error, rel=0.1, abs=1e-9)


@pytest.mark.parametrize("units", [12, 80])
def test_the_interval_is_scipys(units: int) -> None:
    values = np.random.default_rng(5).exponential(size=units)
    (found,) = interval.of(values, resamples=40_000)
    rng = np.random.default_rng(1)
    expected = stats.bootstrap(
        (values,), np.mean, confidence_level=expanded(units), n_resamples=40_000, method="BCa", rng=rng
    )
    assert_alike(found, expected.confidence_interval)


def test_the_intervals_of_a_mean_and_of_a_difference_are_scipys() -> None:
    numbers = np.random.default_rng(6)
    hits = numbers.exponential(size=(60, 3)) * numbers.exponential(size=(60, 1))  # not on a lattice of few values
    shares = numbers.exponential(size=(40, 1))

    def overall(one: np.ndarray, two: np.ndarray, three: np.ndarray, axis: int) -> np.ndarray:
        return (one.mean(axis) + two.mean(axis) + three.mean(axis)) / 3

    found = interval.with_mean([(hits, np.ones_like(hits))], resamples=40_000)[1]
    rng = np.random.default_rng(1)
    expected = stats.bootstrap(
        hits.T, overall, paired=True, confidence_level=expanded(60), n_resamples=40_000, method="BCa", rng=rng
    )
    assert found.value == pytest.approx(hits.mean())
    assert_alike(found, expected.confidence_interval)

    found = interval.with_mean([(hits[:, :1], np.ones((60, 1))), (shares, np.ones((40, 1)))], resamples=40_000)[1]
    expected = stats.bootstrap(
        (hits[:, 0], shares[:, 0]), lambda a, b, axis: (a.mean(axis) + b.mean(axis)) / 2,
        confidence_level=expanded(40), n_resamples=40_000, method="BCa", rng=rng,
    )  # fmt: skip
    assert found.units == 100
    assert_alike(found, expected.confidence_interval)

    found = difference(hits[:, 0], hits[:, 1], resamples=40_000)
    expected = stats.bootstrap(
        hits[:, :2].T, lambda a, b, axis: a.mean(axis) - b.mean(axis),
        paired=True, confidence_level=expanded(60), n_resamples=40_000, method="BCa", rng=rng,
    )  # fmt: skip
    assert_alike(found, expected.confidence_interval)


def expanded(units: int) -> float:
    """The level of the plain interval that is as wide as one of 95 % corrected for few units (Hesterberg, 2015)."""
    return 1 - 2 * float(stats.norm.cdf(math.sqrt(units / (units - 1)) * stats.t.ppf(0.025, units - 1)))


def assert_alike(found: interval.Interval, expected: Any) -> None:
    width = expected.high - expected.low
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.04 * width)


def test_one_unit_and_very_uneven_units_have_an_interval_too() -> None:
    (one,) = interval.of([2.0], [5.0])
    assert (one.low, one.value, one.high) == (0.4, 0.4, 0.4)
    (uneven,) = interval.of([0.0, 0.0, 1.0])
    assert 0.0 <= uneven.low <= uneven.value <= uneven.high <= 1.0
    assert interval.with_mean([([1.0] * 3, [1.0] * 3), ([1.0], [1.0])])[1] == interval.of([1.0] * 3)[0]


def test_one_draw_gives_the_results_and_their_mean() -> None:
    numbers = np.random.default_rng(3)
    hits, shares = (numbers.random((80, 2)) < 0.3).astype(float), numbers.random((50, 3))
    samples = [(hits, np.ones_like(hits)), (shares, np.ones_like(shares))]
    each, mean = interval.with_mean(samples, seed=5)
    assert each == [*interval.of(hits, seed=5), *interval.of(shares, seed=6)]
    assert mean.value == pytest.approx(np.mean([one.value for one in each]))


def test_where_all_answers_are_equal_the_interval_is_exact() -> None:
    (perfect,) = interval.of(np.ones(50))
    (nothing,) = interval.of(np.zeros(50))
    exact = stats.binomtest(50, 50).proportion_ci(0.95)
    assert (perfect.value, perfect.low, perfect.high) == (1.0, pytest.approx(exact.low), 1.0)
    assert (nothing.value, nothing.low, nothing.high) == (0.0, 0.0, pytest.approx(1 - exact.low))
    both = interval.mean_per_class(np.ones(50), np.arange(50) % 5)
    assert (both.low, both.high) == (pytest.approx(exact.low), 1.0)


@given(st.integers(0, 40), st.integers(0, 40), st.integers(0, 9))
def test_mcnemar_is_the_two_sided_binomial_test(only_first: int, only_second: int, both: int) -> None:
    first = [True] * only_first + [False] * only_second + [True] * both
    second = [False] * only_first + [True] * only_second + [True] * both
    found = interval.mcnemar(first, second)
    assert (found.only_first, found.only_second, found.exact) == (only_first, only_second, True)
    expected = stats.binomtest(only_first, only_first + only_second).pvalue if only_first + only_second else 1.0
    assert found.p == pytest.approx(expected)


def test_mcnemar_of_many_items_is_chi_square() -> None:
    found = interval.mcnemar([True] * 800 + [False] * 700, [False] * 800 + [True] * 700)
    assert not found.exact
    assert found.p == pytest.approx(stats.chi2.sf(99**2 / 1500, 1))
    assert found.p == pytest.approx(stats.binomtest(700, 1500).pvalue, rel=0.02)


def test_the_same_seed_gives_the_same_interval() -> None:
    hits = np.random.default_rng(0).random((99, 7)).sum(1)
    assert interval.of(hits, seed=3) == interval.of(hits, seed=3) != interval.of(hits, seed=4)


@pytest.mark.parametrize(
    ("sums", "weights", "told"),
    [([], None, "at least one"), ([1.0, math.nan], None, "not finite"), ([0.0, 0.0], [0.0, 0.0], "share of nothing")],
)
def test_what_has_no_result_is_refused(sums: list[float], weights: list[float] | None, told: str) -> None:
    with pytest.raises(DataError, match=told):
        interval.of(sums, weights)


def test_models_that_were_measured_on_other_items_are_not_compared() -> None:
    with pytest.raises(DataError, match="same items"):
        interval.mcnemar([True, False], [True])
    with pytest.raises(DataError, match="other queries"):
        difference(np.ones(2), np.ones(1))
    with pytest.raises(DataError, match="class 1 has no image"):
        interval.mean_per_class([1, 0], [0, 2])
