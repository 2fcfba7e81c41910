"""Confidence intervals of evaluation results by the bootstrap, and tests of the difference between two models.

A result is a ratio of sums over units: for top-1, the sum of right answers over the number of images. The unit is what
was drawn independently, an image for instance: its five captions are one unit, because they are hit or missed together.

Units with equal numbers are interchangeable. So a resample is one draw of a multinomial over the *distinct* rows of
numbers, and 2,000 resamples of 50,000 images with three answers each take milliseconds (Efron and Tibshirani, An
Introduction to the Bootstrap, chapters 13 and 14).

Intervals are BCa (bias-corrected and accelerated, section 14.3 there): the plain percentile interval covers too rarely
where a share is near 0 or 1, or where the answers of a unit hang together. Resamples of n units vary less than n new
units do, by the factor (n - 1) / n in the variance, and their spread is itself an estimate. So an interval takes more
of the resamples than its level: in place of the normal quantile, Student's one times sqrt(n / (n - 1)) (Hesterberg,
What Teachers Should Know About the Bootstrap, 2015, section 5.3).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from wukong.errors import DataError

Numbers: TypeAlias = npt.NDArray[np.float64]
RESAMPLES = 2000
LEVEL = 0.95
_EXACT_DISCORDANT = 1000
_BLOCK = 2**22
_MANY = 1000
_NORMAL = NormalDist()
_SAME = 1e-12
"""Equal results differ by rounding, because their sums are taken in another order."""


@dataclass(frozen=True)
class Interval:
    """A result with its confidence interval.

    Attributes:
        value: the result.
        low: lower end of the interval.
        high: upper end of the interval.
        level: the share of such intervals that hold the true value.
        units: number of independent units behind the result.
    """

    value: float
    low: float
    high: float
    level: float
    units: int

    def __str__(self) -> str:
        return f"{self.value:.4f} [{self.low:.4f}, {self.high:.4f}]"


@dataclass(frozen=True)
class McNemar:
    """McNemar's test of two models on the same items.

    Attributes:
        only_first: number of items that only the first model gets right.
        only_second: number of items that only the second model gets right.
        p: two-sided p-value of the hypothesis that both models are right equally often.
        exact: whether p is from the binomial distribution; otherwise from chi-square with continuity correction.
    """

    only_first: int
    only_second: int
    p: float
    exact: bool


def of(
    sums: npt.ArrayLike,
    weights: npt.ArrayLike | None = None,
    *,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> list[Interval]:
    """Compute results and their BCa intervals: each result is ``sums.sum() / weights.sum()`` over the units.

    If all units have equal numbers, the bootstrap has width 0, although the units are few. Then the interval is the
    exact one of Clopper and Pearson for 0 or n of n, where the result is a share.

    Args:
        sums: [units] or [units, results]: for instance 1 for a right answer, or the number of a unit's right answers.
        weights: the same shape: the number of a unit's answers; None for 1.
        level: the level, between 0 and 1.
        resamples: number of resamples.
        seed: the same seed gives the same interval.

    Returns:
        One interval for each result.

    Raises:
        DataError: there is no unit, a number is not finite, or a result has no weight.
    """
    rows = _rows(sums, weights)
    drawn = _drawn(rows, resamples, seed)
    return [_interval(rows, column, drawn[:, column], level) for column in range(drawn.shape[1])]


def with_mean(
    samples: Sequence[tuple[npt.ArrayLike, npt.ArrayLike]],
    *,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[list[Interval], Interval]:
    """Compute the results of some samples of units, as ``of`` does, and the mean of all, with their BCa intervals.

    All results of a sample are of the same draw of units; different samples are drawn independently.

    Args:
        samples: sums and weights of each sample, as in ``of``.
        level: the level, between 0 and 1.
        resamples: number of resamples.
        seed: the first sample's; the next has the next one.

    Returns:
        The results of all samples in order, and their mean.

    Raises:
        DataError: as in ``of``.
    """
    rows = [_rows(*each) for each in samples]
    drawn = [_drawn(each, resamples, seed + n) for n, each in enumerate(rows)]
    each = [
        _interval(one, column, results_of[:, column], level)
        for one, results_of in zip(rows, drawn, strict=True)
        for column in range(results_of.shape[1])
    ]
    results = np.concatenate([one.results() for one in rows])
    if results[0] in {0.0, 1.0} and (results == results[0]).all():
        return each, _same_everywhere(float(results[0]), rows[0].units, level)
    shifts = [one.shifts().sum(1) / len(results) for one in rows]
    ends = _bca(
        float(results.mean()),
        np.concatenate(drawn, 1).mean(1),
        np.concatenate(shifts),
        np.concatenate([one.counts for one in rows]),
        min(one.units for one in rows),
        level,
    )
    return each, Interval(float(results.mean()), *ends, level, sum(one.units for one in rows))


def of_mixed(
    sums: npt.ArrayLike,
    weights: npt.ArrayLike,
    mixed: npt.ArrayLike,
    *,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> list[Interval]:
    """Compute weighted sums of results, for instance a difference of two, and their BCa intervals by one draw.

    Args:
        sums: [units, results], as in ``of``.
        weights: [units, results].
        mixed: [results, statistics], the weights of the results in each statistic.
        level: the level, between 0 and 1.
        resamples: number of resamples.
        seed: the same seed gives the same intervals.

    Raises:
        DataError: as in ``of``.
    """
    rows, shares = _rows(sums, weights), np.asarray(mixed, np.float64)
    values, drawn, shifts = rows.results() @ shares, _drawn(rows, resamples, seed) @ shares, rows.shifts() @ shares
    ends = _bca_of_all(values, drawn.T, shifts.T, rows.counts, rows.units, level)
    return [
        Interval(value, low, high, level, rows.units)
        for value, (low, high) in zip(values.tolist(), ends.tolist(), strict=True)
    ]


def mean_per_class(
    hits: npt.ArrayLike,
    labels: npt.ArrayLike,
    *,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Compute the mean over classes of the share of right answers, and its interval.

    Images are resampled within their class. The number of right answers of a resampled class is binomial, so no image
    needs to be drawn. A resample of n images varies too little by the factor (n - 1) / n in the variance, which is much
    for classes of a few images; the deviations are scaled to correct it.

    Args:
        hits: bool or 0 and 1, [images].
        labels: number of each image's class, int [images].
        level: the level, between 0 and 1.
        resamples: number of resamples.
        seed: the same seed gives the same interval.

    Raises:
        DataError: there is no image, or a class between 0 and the largest label has none.
    """
    right, label = np.asarray(hits, np.float64), np.asarray(labels, np.int64)
    if right.shape != label.shape or not right.size:
        raise DataError(f"{right.shape} answers and {label.shape} labels: give one label for each of several answers")
    counts = np.bincount(label)
    if not counts.all():
        raise DataError(f"class {int(np.argmin(counts))} has no image: the mean over classes does not exist")
    shares = np.bincount(label, right) / counts
    scale = np.sqrt(counts / np.maximum(1, counts - 1))
    numbers = np.random.default_rng(seed)
    drawn = np.empty(resamples)
    step = max(1, _BLOCK // len(counts))
    for start in range(0, resamples, step):
        size = min(step, resamples - start)
        shifts = numbers.binomial(counts, shares, (size, len(counts))) / counts - shares
        drawn[start : start + size] = np.clip((shares + shifts * scale).mean(1), 0, 1)
    value = float(shares.mean())
    if np.isin(shares, (0, 1)).all():
        # No image varies within its class: the exact interval of the plain share is the honest one.
        return _same_everywhere(value, right.size, level)
    return Interval(value, *_quantiles(drawn, (1 - level) / 2, (1 + level) / 2), level, right.size)


def mcnemar(first: npt.ArrayLike, second: npt.ArrayLike) -> McNemar:
    """Test whether two models are right equally often on the same items (McNemar, 1947).

    Only items where one model is right and the other is wrong count. Up to 1,000 of them the test is exact (binomial);
    above, it is chi-square with Edwards' continuity correction.

    Args:
        first: bool [items], whether the first model is right.
        second: bool [items], the second model on the same items in the same order.

    Raises:
        DataError: the models were measured on different numbers of items.
    """
    one, other = np.asarray(first, bool), np.asarray(second, bool)
    if one.ndim != 1 or one.shape != other.shape:
        raise DataError(
            f"the models have {one.shape} and {other.shape} answers: compare them on the same items in one order"
        )
    only_first, only_second = int((one & ~other).sum()), int((other & ~one).sum())
    discordant, fewer = only_first + only_second, min(only_first, only_second)
    if discordant <= _EXACT_DISCORDANT:
        tail = sum(math.comb(discordant, k) for k in range(fewer + 1))
        return McNemar(only_first, only_second, min(1.0, 2 * (tail / 2**discordant)), exact=True)
    square = (abs(only_first - only_second) - 1) ** 2 / discordant
    return McNemar(only_first, only_second, math.erfc(math.sqrt(max(0.0, square) / 2)), exact=False)


def fisher(right: int, of: int, others_right: int, others: int) -> float:
    """Test whether some items are right more often than others (Fisher's exact test, one-sided).

    Args:
        right: how many of them are right.
        of: how many there are.
        others_right: how many of the others are right.
        others: how many others there are.

    Returns:
        The probability of so many right ones among them, or more, if being right does not depend on which they are.
    """
    every = right + others_right

    def chosen(size: int, k: int) -> float:
        return math.lgamma(size + 1) - math.lgamma(k + 1) - math.lgamma(size - k + 1)

    whole = chosen(of + others, every)
    more = range(max(right, every - others), min(of, every) + 1)
    return min(1.0, math.fsum(math.exp(chosen(of, k) + chosen(others, every - k) - whole) for k in more))


def of_draws(values: Numbers, drawn: Numbers, shifts: Numbers, *, level: float = LEVEL) -> list[Interval]:
    """Make the BCa intervals of statistics whose resamples are there already.

    Args:
        values: the statistics, [statistics].
        drawn: each statistic in each resample, [statistics, resamples].
        shifts: how much each falls when a unit is left out (jackknife), [statistics, units].
        level: the level, between 0 and 1.
    """
    units = shifts.shape[1]
    ends = _bca_of_all(values, drawn, shifts, np.ones(units, np.int64), units, level)
    return [
        Interval(value, low, high, level, units)
        for value, (low, high) in zip(values.tolist(), ends.tolist(), strict=True)
    ]


@dataclass(frozen=True)
class _Rows:
    """Distinct rows of numbers, and how many units have each."""

    sums: Numbers
    weights: Numbers
    counts: npt.NDArray[np.int64]

    @property
    def units(self) -> int:
        return int(self.counts.sum())

    def results(self) -> Numbers:
        """Return the results of all units, [results]."""
        means: Numbers = (self.counts @ self.sums) / (self.counts @ self.weights)
        return means

    def shifts(self) -> Numbers:
        """Return by how much each result falls when one unit of a row is left out (jackknife), [rows, results]."""
        with np.errstate(divide="ignore", invalid="ignore"):
            without = (self.counts @ self.sums - self.sums) / (self.counts @ self.weights - self.weights)
        return np.where(np.isfinite(without), self.results() - without, 0.0)


def _rows(sums: npt.ArrayLike, weights: npt.ArrayLike | None) -> _Rows:
    values = np.asarray(sums, np.float64)
    values = values[:, None] if values.ndim == 1 else values
    heavy = np.ones_like(values) if weights is None else np.asarray(weights, np.float64).reshape(values.shape)
    if values.ndim != 2 or not values.size:
        raise DataError(f"numbers of shape {values.shape} have no interval: give at least one unit")
    if not (np.isfinite(values).all() and np.isfinite(heavy).all()):
        raise DataError("a unit's number is not finite: the scores behind it are damaged")
    if not heavy.sum(0).all():
        raise DataError("a result has no answers: it is the share of nothing")
    distinct, counts = np.unique(np.concatenate([values, heavy], 1), axis=0, return_counts=True)
    return _Rows(distinct[:, : values.shape[1]], distinct[:, values.shape[1] :], counts)


def _drawn(rows: _Rows, resamples: int, seed: int) -> Numbers:
    numbers, units = np.random.default_rng(seed), rows.units
    drawn = np.empty((resamples, rows.sums.shape[1]))
    step = max(1, _BLOCK // len(rows.counts))
    for start in range(0, resamples, step):
        counts = numbers.multinomial(units, rows.counts / units, min(step, resamples - start)).astype(np.float64)
        with np.errstate(invalid="ignore"):
            drawn[start : start + len(counts)] = (counts @ rows.sums) / (counts @ rows.weights)
    return drawn


def _interval(rows: _Rows, column: int, drawn: Numbers, level: float) -> Interval:
    sums, weights = rows.sums[:, column], rows.weights[:, column]
    value = float(rows.results()[column])
    if value in {0.0, 1.0} and ((sums == 0) | (sums == weights)).all():
        return _same_everywhere(value, int((rows.counts * (weights > 0)).sum()), level)
    return Interval(
        value, *_bca(value, drawn, rows.shifts()[:, column], rows.counts, rows.units, level), level, rows.units
    )


def _quantiles(drawn: Numbers, low: float, high: float) -> tuple[float, float]:
    # Where a resample has no answer at all, there is no result in it.
    first, second = np.quantile(drawn[np.isfinite(drawn)], [low, high])
    return float(first), float(second)


@lru_cache
def student(degrees: int, probability: float) -> float:
    """Compute a quantile of Student's distribution. The import of SciPy takes longer than all intervals of a task.

    With ``t = sqrt(degrees) tan(u)`` the density of u is that of a power of its cosine, which a Gauss-Legendre rule
    integrates to the last digits; Newton's method finds u.

    Args:
        degrees: the degrees of freedom, 1 at least.
        probability: between 0.5 and 1.
    """
    places, weights = np.polynomial.legendre.leggauss(96)
    if degrees < _MANY:
        scale = math.exp(math.lgamma((degrees + 1) / 2) - math.lgamma(degrees / 2)) / math.sqrt(math.pi)
    else:  # the series of the ratio of the gamma functions, whose logarithms are too large to be subtracted
        series = 1 - 1 / (4 * degrees) + 1 / (32 * degrees**2) + 5 / (128 * degrees**3)
        scale = math.sqrt(degrees / (2 * math.pi)) * series
    u = math.atan(_NORMAL.inv_cdf(probability) / math.sqrt(degrees))
    for _ in range(60):
        below = scale * u / 2 * float(weights @ np.cos(u / 2 * (places + 1)) ** (degrees - 1))
        step = (below - (probability - 0.5)) / (scale * math.cos(u) ** (degrees - 1))
        u = min(max(u - step, u / 2), (u + math.pi / 2) / 2)
        if abs(step) < 1e-15:
            break
    return math.sqrt(degrees) * math.tan(u)


def _same_everywhere(value: float, units: int, level: float) -> Interval:
    """The interval of Clopper and Pearson where every unit has the same answer."""
    far = ((1 - level) / 2) ** (1 / units)
    low, high = {0.0: (0.0, 1 - far), 1.0: (far, 1.0)}.get(value, (value, value))
    return Interval(value, low, high, level, units)


def _bca(
    value: float, drawn: Numbers, shifts: Numbers, counts: npt.NDArray[np.int64], units: int, level: float
) -> tuple[float, float]:
    """Return the ends of the BCa interval of a result.

    Args:
        value: the result.
        drawn: the result in each resample.
        shifts: the jackknife's shift of the result, [rows].
        counts: number of units of each row.
        units: number of units of the smallest sample.
        level: the level.
    """
    ends = _bca_of_all(np.array([value]), drawn[None], shifts[None], counts, units, level)
    return float(ends[0, 0]), float(ends[0, 1])


def _bca_of_all(
    values: Numbers, drawn: Numbers, shifts: Numbers, counts: npt.NDArray[np.int64], units: int, level: float
) -> Numbers:
    """Return the ends of the BCa intervals of results, [results, 2]; arguments as those of ``_bca``, a row a result."""
    there = np.isfinite(drawn)  # where a resample has no answer at all, there is no result in it
    number = np.maximum(there.sum(1), 1)
    quantiles = np.tile([0.0, 1.0], (len(values), 1))
    if units >= 2:
        edge = 0.5 / drawn.shape[1]
        # A resample with the result itself lies half below it: shares of few units are often equal.
        below = ((drawn < values[:, None] - _SAME).sum(1) + (drawn <= values[:, None] + _SAME).sum(1)) / (2 * number)
        centred = shifts - (shifts @ counts / counts.sum())[:, None]
        spread, cubes = centred**2 @ counts, centred**3 @ counts
        wide = math.sqrt(units / (units - 1)) * student(units - 1, (1 + level) / 2)
        for row, share in enumerate(np.clip(below, edge, 1 - edge).tolist()):
            bias = _NORMAL.inv_cdf(share)
            skew = float(cubes[row] / (6 * spread[row] ** 1.5)) if spread[row] > _SAME**2 else 0.0
            for end, quantile in enumerate((-wide, wide)):
                shifted = bias + quantile
                if skew * shifted < 1:
                    quantiles[row, end] = _NORMAL.cdf(bias + shifted / (1 - skew * shifted))
                else:  # so few and uneven units that the end lies beyond all resamples
                    quantiles[row, end] = 1.0 if shifted > 0 else 0.0
    ordered = np.sort(np.where(there, drawn, np.inf), 1)
    exact = quantiles * (number - 1)[:, None]
    before = np.floor(exact).astype(np.int64)
    low, high = (np.take_along_axis(ordered, each, 1) for each in (before, np.minimum(before + 1, number[:, None] - 1)))
    bounds: Numbers = low + (high - low) * (exact - before)
    return bounds
