"""Confidence intervals of evaluation results, and tests of the difference between two models.

A result is a share: for top-1, the sum of right answers over the number of images. The unit is what was drawn
independently, an image for instance: its five captions are one unit, because they are hit or missed together.

An interval is Wilson's (1927) of as many equal and independent units as would vary as much as those that are there
(Korn and Graubard, Confidence Intervals for Proportions with Small Expected Number of Positive Counts Estimated from
Survey Data, 1998). How much these vary is estimated, from as many units as moved the result: the square of the sum of
squares over the sum of fourth powers (Satterthwaite, An Approximate Distribution of Estimates of Variance Components,
1946). Few units tell little of it. So two more are added, as if all answers of a unit were right or all wrong. Where no
answer differs from another, the ends are the exact ones of Clopper and Pearson (1934).

`benchmarks/eval/coverage.py` measures how many of these intervals hold the true value.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from wukong.errors import DataError

Numbers: TypeAlias = npt.NDArray[np.float64]
LEVEL = 0.95
_ADDED = 2
"""Units of which it is taken, not seen, how much they vary."""
_EXACT_DISCORDANT = 1000
_MANY = 1000
_NORMAL = NormalDist()
_SAME = 1e-12
"""Equal results differ by rounding, because their sums are taken in another order."""
_WIDEST = 8  # standard deviations
_COARSEST, _FINEST = 2**14, 2**18  # steps of a standard deviation
_NOTHING = 1e-20  # a term that no sum of all terms can tell from 0
_MOST_PARTS = 60
_LEAST_P = 1e-12  # what the sum of as many terms in float64 can still tell from 0


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


def of(sums: npt.ArrayLike, weights: npt.ArrayLike | None = None, *, level: float = LEVEL) -> list[Interval]:
    """Compute results and their intervals: each result is ``sums.sum() / weights.sum()`` over the units.

    Args:
        sums: [units] or [units, results]: for instance 1 for a right answer, or the number of a unit's right answers.
        weights: the same shape: the number of a unit's answers; None for 1.
        level: the level, between 0 and 1.

    Returns:
        One interval for each result.

    Raises:
        DataError: there is no unit, a number is not finite, a result has no weight, or a result is no share.
    """
    values = np.asarray(sums, np.float64)
    values = values[:, None] if values.ndim == 1 else values
    heavy = np.ones_like(values) if weights is None else np.asarray(weights, np.float64).reshape(values.shape)
    if values.ndim != 2 or not values.size:
        raise DataError(f"numbers of shape {values.shape} have no interval: give at least one unit")
    if not (np.isfinite(values).all() and np.isfinite(heavy).all()):
        raise DataError("a unit's number is not finite: the scores behind it are damaged")
    if not heavy.sum(0).all():
        raise DataError("a result has no answers: it is the share of nothing")
    if (values < 0).any() or (values > heavy + _SAME).any():
        raise DataError("a unit has more right answers than answers, or fewer than none: the scores are damaged")
    total = heavy.sum(0)
    results = (values.sum(0) / total).tolist()
    each = zip((values / total).T, (heavy / total).T, results, strict=True)
    return [of_share(right, possible, value=result, level=level) for right, possible, result in each]


def of_share(
    right: Numbers,
    possible: Numbers,
    *,
    value: float | None = None,
    moves: Numbers | None = None,
    level: float = LEVEL,
) -> Interval:
    """Compute the interval of a result from what each unit adds to it.

    Args:
        right: [units], what each unit adds to the result.
        possible: [units], what each would add if all its answers were right; their sum is 1.
        value: the result, where a shorter sum gives it to the last digit; None for the sum of what units add.
        moves: [units], by how much each moves the result, if the result is a mean of unlike ones; None for what a unit
            adds more than its part of the result.
        level: the level, between 0 and 1.
    """
    value = float(right.sum()) if value is None else value
    squares = (right - value * possible if moves is None else moves) ** 2
    variance, fourth = float(squares.sum()), float((squares**2).sum())
    moved = variance**2 / fourth if fourth > 0 else 0.0
    low, high = _ends(value, variance, moved, 1 / float((possible**2).sum()), level)
    return Interval(value, low, high, level, int((possible > 0).sum()))


def mean_per_class(hits: npt.ArrayLike, labels: npt.ArrayLike, *, level: float = LEVEL) -> Interval:
    """Compute the mean over classes of the share of right answers, and its interval.

    Images are drawn within their class. How much the share of a class varies is estimated from its images, without
    bias. One image alone does not show it: it is taken to vary as the images of all classes together do.

    Args:
        hits: bool or 0 and 1, [images].
        labels: number of each image's class, int [images].
        level: the level, between 0 and 1.

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
    value = min(1.0, float(shares.mean()))
    others, several = np.maximum(counts - 1, 1), counts > 1
    variances = np.where(several, shares * (1 - shares) / others, value * (1 - value))
    known = float((several / counts).sum() ** 2 / max((several / counts**2 / others).sum(), _SAME))
    units = len(counts) ** 2 / float((1 / counts).sum())
    low, high = _ends(value, float(variances.sum()) / len(counts) ** 2, known, units, level)
    return Interval(value, low, high, level, right.size)


def _ends(value: float, variance: float, known: float, units: float, level: float) -> tuple[float, float]:
    """Return the ends of the interval of a share.

    Args:
        value: the share.
        variance: its estimated variance.
        known: the number of units from which that is known.
        units: the number of equal units that there are (Kish, Survey Sampling, 1965, section 11.7).
        level: the level.
    """
    single = value * (1 - value)
    if single < _SAME:
        far = ((1 - level) / 2) ** (1 / units)
        return (0.0, 1 - far) if value < 0.5 else (far, 1.0)
    number = single * (known + _ADDED) / (known * variance + _ADDED * single / units)
    z = _NORMAL.inv_cdf((1 + level) / 2)
    middle = (value + z**2 / (2 * number)) / (1 + z**2 / number)
    far = z * math.sqrt(single / number + (z / (2 * number)) ** 2) / (1 + z**2 / number)
    return middle - far, middle + far


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


def sign_flip(gains: npt.ArrayLike) -> float:
    """Compute the one-sided p-value of the hypothesis that gains are as often positive as negative, at each size.

    It is the probability that the sum of the gains with random signs reaches the sum itself. It is exact where the
    sizes are multiples of a small part of the smallest one. Otherwise they are rounded first, to so fine steps that the
    sum changes by some 1 / 700 of its standard deviation, and the test of the rounded gains is exact. The
    distribution of the sum is the product of each gain's, by a Fourier transform over 8 standard deviations on both
    sides, beyond which it has less than 1e-13 (Hoeffding's inequality).

    Args:
        gains: [units], what each unit adds to the difference of two models.

    Raises:
        DataError: a gain is not finite.
    """
    values = np.asarray(gains, np.float64)
    if not np.isfinite(values).all():
        raise DataError(f"{int((~np.isfinite(values)).sum())} of {len(values)} differences are not numbers: no test")
    values = values[np.abs(values) > _SAME * np.abs(values).max(initial=0.0)]
    if not len(values):
        return 1.0
    steps = _in_steps(values)
    sizes, counts = np.unique(np.abs(steps), return_counts=True)
    total, reach = int(sizes @ counts), math.ceil(_WIDEST * math.sqrt(float(sizes**2.0 @ counts)))
    length = 1 << min(total, reach).bit_length()
    angles = np.pi * np.arange(length // 2 + 1) / length
    places, product = np.arange(len(angles)), np.ones(len(angles))
    for number in np.argsort(-counts * sizes**2.0):
        product = product * np.cos(sizes[number] * angles[places]) ** int(counts[number])
        kept = np.abs(product) > _NOTHING  # few are left after some sizes
        if 2 * kept.sum() < len(kept):
            places, product = places[kept], product[kept]
    # The sum of the positive ones, from 0 to the total, modulo the length: its mean is half the total.
    transform = np.zeros(len(angles), np.complex128)
    transform[places] = product * np.exp(-1j * (total % (2 * length)) * angles[places])
    probabilities = np.fft.irfft(transform, length)
    reached, highest = (int(steps.sum()) + total) // 2, (min(total, reach) + total) // 2
    return float(np.clip(probabilities[np.arange(reached, highest + 1) % length].sum(), _LEAST_P, 1.0))


def _in_steps(values: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """Return values as whole numbers of steps."""
    ratios = values / np.abs(values).min()
    for parts in range(1, _MOST_PARTS + 1):
        whole = np.rint(parts * ratios)
        if math.sqrt(float((whole**2).sum())) > _FINEST:
            break
        if np.abs(parts * ratios - whole).max() < 1e-6:
            return np.asarray(whole, np.int64)
    # Rounding moves the sum by sqrt(n / 12) steps in its standard deviation.
    spread = math.sqrt(float((values**2).sum()))
    finer = max(_COARSEST, 200 * math.sqrt(len(values)))
    return np.asarray(np.rint(values / spread * finer), np.int64)


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
