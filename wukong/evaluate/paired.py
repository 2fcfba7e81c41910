"""Differences of models that answered the same queries, or of independent ones, with their intervals.

What is hard for both models cancels out: only units count that one model answers better than the other. What all units
gain is a share, what they lose another one (``wukong.evaluate.interval``). The interval of their difference is made of
both intervals and the correlation (Zou and Donner, Construction of Confidence Limits about Effect Measures, 2008).
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from wukong.errors import DataError
from wukong.evaluate.answers import Numbers, Scores
from wukong.evaluate.interval import LEVEL, Interval, of_share, sign_flip


def differences(baseline: Scores, others: Sequence[Scores], *, level: float = LEVEL) -> list[dict[str, Interval]]:
    """Compute by how much the results of other models exceed those of a baseline, with paired intervals.

    Of a result with too few units (``Scores.too_few``) nothing is known: its interval is from -1 to 1.

    Args:
        baseline: a model's answers.
        others: those of other models on the same queries.
        level: the share of such intervals that hold the true difference.

    Returns:
        For each of the others an interval by result.

    Raises:
        DataError: the answers are not of the same queries.
    """
    for each in others:
        if each.names != baseline.names or not np.array_equal(each.weights, baseline.weights):
            raise DataError("the answers are of other queries: only models that answered the same ones can be compared")
    return [
        {
            name: replace(found, low=-1.0, high=1.0) if baseline.too_few(name) else found
            for name in baseline.names
            for found in [difference(each.shares(name) - baseline.shares(name), baseline.possible(name), level=level)]
        }
        for each in others
    ]


def difference(gains: Numbers, possible: Numbers, *, level: float = LEVEL) -> Interval:
    """Compute a paired difference and its interval, which has 0 in it unless ``sign_flip`` excludes equal models too.

    Few units that moved, or unequal ones, do not make an interval as sure as its level; the test is exact.

    Args:
        gains: [units], what each unit adds to the difference.
        possible: [units], what each would add if one model alone answered it right; their sum is 1.
        level: the share of such intervals that hold the true difference.
    """
    up, down = np.maximum(gains, 0), np.maximum(-gains, 0)
    won, lost = of_share(up, possible, level=level), of_share(down, possible, level=level)
    one, other = up - won.value * possible, down - lost.value * possible
    spread = math.sqrt(float((one @ one) * (other @ other)))
    found = unpaired(baseline=lost, other=won, correlation=float(one @ other) / spread if spread else 0.0)
    tail = (1 - level) / 2
    low = min(found.low, 0.0) if found.low > 0 and sign_flip(gains) > tail else found.low
    high = max(found.high, 0.0) if found.high < 0 and sign_flip(-gains) > tail else found.high
    return replace(found, low=low, high=high)


def unpaired(baseline: Interval, other: Interval, correlation: float = 0.0) -> Interval:
    """The difference of two results, the other one less the baseline, from their intervals.

    The distances from the ends of an interval to its value stand for standard errors, in each direction (Newcombe,
    Interval estimation for the difference between independent proportions, 1998, method 10; Zou and Donner, 2008).

    Args:
        baseline: the result that is taken away.
        other: the result that it is taken from.
        correlation: of the two results; 0 where their samples are independent.
    """
    value = other.value - baseline.value
    down = other.value - other.low, baseline.high - baseline.value
    up = other.high - other.value, baseline.value - baseline.low
    far = [math.sqrt(max(0.0, one**2 + two**2 - 2 * correlation * one * two)) for one, two in (down, up)]
    return Interval(value, value - far[0], value + far[1], other.level, min(other.units, baseline.units))
