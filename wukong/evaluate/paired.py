"""Differences of models that answered the same queries, by one paired bootstrap for all of them.

A resample draws units, and every model's answers of those units. So what is hard for all models cancels out of a
difference (Efron and Tibshirani, An Introduction to the Bootstrap, section 8.3; intervals as in
``wukong.evaluate.interval``). The resamples of many models are one product of matrices.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from wukong.errors import DataError
from wukong.evaluate.answers import Numbers, Scores
from wukong.evaluate.interval import LEVEL, RESAMPLES, Interval, of_draws

_BLOCK = 2**22


def differences(
    baseline: Scores,
    others: Sequence[Scores],
    *,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> list[dict[str, Interval]]:
    """Compute by how much the results of other models exceed those of a baseline, with paired intervals.

    Of a result with too few units (``Scores.too_few``) nothing is known: its interval is from -1 to 1.

    Args:
        baseline: a model's answers.
        others: those of other models on the same queries.
        level: the share of such intervals that hold the true difference.
        resamples: number of resamples.
        seed: the same seed gives the same intervals.

    Returns:
        For each of the others an interval by result.

    Raises:
        DataError: the answers are not of the same queries.
    """
    models = [baseline, *others]
    for each in others:
        if each.names != baseline.names or not np.array_equal(each.weights, baseline.weights):
            raise DataError("the answers are of other queries: only models that answered the same ones can be compared")
    drawn = _drawn(models, resamples, seed)
    values = np.stack([each.values() for each in models])
    shifts = np.stack([_shifts(each) for each in models])
    size, names = len(baseline.weights), baseline.names
    intervals = of_draws(
        (values[1:] - values[0]).ravel(),
        (drawn[1:] - drawn[0]).swapaxes(1, 2).reshape(-1, resamples),
        (shifts[1:] - shifts[0]).swapaxes(1, 2).reshape(-1, size),
        level=level,
    )
    unknown = baseline.too_few() * len(others)
    known = [replace(each, low=-1.0, high=1.0) if few else each for each, few in zip(intervals, unknown, strict=True)]
    return [dict(zip(names, known[n * len(names) :][: len(names)], strict=True)) for n in range(len(others))]


def unpaired(baseline: Interval, other: Interval) -> Interval:
    """The difference of two results of independent samples, the other one less the baseline, from their intervals.

    The distances from the ends of an interval to its value stand for standard errors, in each direction (Newcombe,
    Interval estimation for the difference between independent proportions, 1998, method 10).
    """
    value = other.value - baseline.value
    low = value - math.hypot(other.value - other.low, baseline.high - baseline.value)
    high = value + math.hypot(other.high - other.value, baseline.value - baseline.low)
    return Interval(value, low, high, other.level, min(other.units, baseline.units))


def _drawn(models: Sequence[Scores], resamples: int, seed: int) -> Numbers:
    """Return each model's results in each resample, [models, resamples, results]."""
    weights, mixed = models[0].weights, models[0].mixed
    units, columns = weights.shape
    sums = np.concatenate([each.sums for each in models], 1)
    results = np.empty((len(models), resamples, mixed.shape[1]))
    numbers = np.random.default_rng(seed)
    step = max(1, _BLOCK // units)
    for start in range(0, resamples, step):
        size = min(step, resamples - start)
        chosen = numbers.integers(0, units, (size, units)) + np.arange(size)[:, None] * units
        counts = np.bincount(chosen.ravel(), minlength=size * units).reshape(size, units).astype(np.float64)
        with np.errstate(divide="ignore", invalid="ignore"):
            ratios = (counts @ sums).reshape(size, len(models), columns) / (counts @ weights)[:, None]
        results[:, start : start + size] = (ratios @ mixed).swapaxes(0, 1)
    return results


def _shifts(model: Scores) -> Numbers:
    """Return by how much each result falls when a unit is left out, [units, results]."""
    sums, weights = model.sums.sum(0), model.weights.sum(0)
    with np.errstate(divide="ignore", invalid="ignore"):
        without = (sums - model.sums) / (weights - model.weights)
    shifts: Numbers = np.where(np.isfinite(without), sums / weights - without, 0.0) @ model.mixed
    return shifts
