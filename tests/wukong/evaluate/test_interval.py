import importlib.util
import math
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from wukong.errors import DataError
from wukong.evaluate import interval, paired
from wukong.evaluate.answers import Scores

SIMULATIONS = 100
ERRORS = 4.0  # standard errors of a hundred simulations, as there are so many cases


@pytest.fixture(scope="module")
def coverage() -> ModuleType:
    """The benchmark of coverage as a module."""
    path = Path(__file__).parents[3] / "benchmarks" / "eval" / "coverage.py"
    spec = importlib.util.spec_from_file_location("coverage_bench", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look for it there
    spec.loader.exec_module(module)
    return module


def test_intervals_hold_the_truth_and_verdicts_are_wrong_as_rarely_as_pages_promise(coverage: ModuleType) -> None:
    """A small run of the benchmark, whose cases are many; what is allowed is wider by the simulation's error."""
    for seed, case in enumerate(coverage.cases(), coverage.FIRST_SEED):
        if "fluent-style" in case.title or "1,000 images, 5" in case.title:
            continue  # they take longest, and are like others
        for name, share in coverage.measure(case, SIMULATIONS, seed).items():
            assert coverage.is_reached(case, share, SIMULATIONS, ERRORS), (case.title, name, share)


def difference(first: np.ndarray, second: np.ndarray) -> interval.Interval:
    """The first model's result less the second's, on the same units."""
    one, other = (
        Scores(("top1",), values[:, None].astype(float), np.ones((len(values), 1)), np.ones((1, 1)))
        for values in (first, second)
    )
    return paired.differences(other, [one])[0]["top1"]


@given(st.integers(1, 3000), st.floats(0, 1), st.sampled_from([0.8, 0.9, 0.95, 0.9999]))
def test_of_equal_units_the_interval_is_wilsons_and_exact_where_answers_are_equal(
    units: int, share: float, level: float
) -> None:
    right = round(share * units)
    method = "wilson" if 0 < right < units else "exact"
    known = stats.binomtest(right, units).proportion_ci(level, method=method)
    (found,) = interval.of(np.arange(units) < right, level=level)
    assert (found.low, found.high) == pytest.approx((known.low, known.high), abs=1e-9)
    assert (found.value, found.units) == (pytest.approx(right / units), units)
    # Answers that a unit has together are one answer.
    assert interval.of(5.0 * (np.arange(units) < right), np.full(units, 5.0), level=level)[0].high == found.high


@pytest.mark.parametrize("units", [300, 1200])
def test_of_many_units_intervals_are_those_of_scipys_bootstrap(units: int) -> None:
    numbers = np.random.default_rng(6)
    easy = numbers.beta(2, 3, units)
    hits = (numbers.random((units, 3, 5)) < easy[:, None, None]).mean(2)
    second = (numbers.random((units, 5)) < easy[:, None]).mean(1)
    sizes = numbers.geometric(0.4, units)
    options = {"n_resamples": 4_000, "rng": numbers}
    assert_alike(interval.of(hits[:, 0])[0], stats.bootstrap((hits[:, 0],), np.mean, **options))

    def ratio(right: np.ndarray, of: np.ndarray, axis: int) -> np.ndarray:
        return np.asarray(right.sum(axis) / of.sum(axis))

    known = stats.bootstrap((hits[:, 0] * sizes, sizes), ratio, paired=True, **options)
    assert_alike(interval.of(hits[:, 0] * sizes, sizes)[0], known)
    known = stats.bootstrap((hits[:, 0] - second,), np.mean, **options)
    assert_alike(difference(hits[:, 0], second), known)


def assert_alike(found: interval.Interval, known: Any) -> None:
    low, high = known.confidence_interval
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.06 * (high - low))


@given(st.integers(0, 12), st.integers(0, 12), st.integers(0, 400))
def test_a_difference_is_more_than_noise_only_where_mcnemars_exact_test_says_so(won: int, lost: int, same: int) -> None:
    first = np.repeat([True, False, True], [won, lost, same])
    second = np.repeat([False, True, True], [won, lost, same])
    if not len(first):
        return
    found = difference(first, second)
    assert found.low <= found.value <= found.high
    if interval.mcnemar(first, second).p > 0.05 or len(first) < 6:
        assert found.low <= 0 <= found.high


@pytest.mark.parametrize("units", [12, 40, 150, 368])
def test_equal_answers_to_few_queries_do_not_show_that_models_are_equal(units: int) -> None:
    right = np.arange(units) % 2 == 0
    found = difference(right, right)
    none = stats.binomtest(0, units).proportion_ci()
    assert (found.value, found.low, found.high) == (0, pytest.approx(-none.high), pytest.approx(none.high))


def test_an_image_alone_in_its_class_does_not_make_a_mean_over_classes_sure() -> None:
    single = interval.mean_per_class([1] * 12 + [0] * 8, range(20))
    (plain,) = interval.of([1] * 12 + [0] * 8)
    assert (single.value, single.low, single.high) == (0.6, pytest.approx(plain.low), pytest.approx(plain.high))
    several = interval.mean_per_class([1] * 24 + [0] * 16, np.repeat(np.arange(20), 2))
    assert several.low < 0.58 and several.high > 0.62, "each class is all right or all wrong"
    none = stats.binomtest(50, 50).proportion_ci()
    both = interval.mean_per_class(np.ones(50), np.arange(50) % 5)
    assert (both.low, both.high) == (pytest.approx(none.low), 1.0)


def test_one_unit_and_very_uneven_units_have_an_interval_too() -> None:
    (one,) = interval.of([2.0], [5.0])
    assert 0 < one.low < one.value == 0.4 < one.high < 1
    (uneven,) = interval.of([0.0, 0.0, 90.0], [1.0, 1.0, 90.0])
    assert 0 <= uneven.low <= uneven.value <= uneven.high <= 1
    assert uneven.high - uneven.low > 0.6, "it is one answer, nearly"


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


@pytest.mark.parametrize(
    ("sums", "weights", "told"),
    [
        ([], None, "at least one"),
        ([1.0, math.nan], None, "not finite"),
        ([0.0, 0.0], [0.0, 0.0], "share of nothing"),
        ([2.0], [1.0], "more right answers than answers"),
        ([-1.0], None, "fewer than none"),
    ],
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
