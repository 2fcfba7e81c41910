"""Reduced precision chooses candidates, and exact arithmetic decides among them.

The largest difference between a rough score and its exact one is the error, which thousands of scores show. So a score
that lies below the least that counts by twice the error or more does not count itself, and stays rough.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

_ERRORS, _WORTH_WHILE = 4096, 1 / 4
"""Scores by which the error is found, at least; and the share of all that may be computed twice at first."""


def first(queries: int, candidates: int, least: int, error: float | None = None) -> int | None:
    """Return how many candidates of each query are computed exactly at first.

    Args:
        queries: number of queries.
        candidates: number of candidates of each.
        least: the fewest of a query.
        error: the most that a rough score was off so far; None to find it by these.

    Returns:
        The number; None where it is no gain to compute scores roughly.
    """
    wanted = max(least, math.ceil(_ERRORS / queries) if error is None else 0)
    return None if wanted > candidates * _WORTH_WHILE else wanted


def decide(
    wanted: Tensor, compute: Callable[[Tensor], float], near: Callable[[Tensor, float], Tensor], error: float = 0.0
) -> float:
    """Put exact scores in the place of rough ones wherever they may count.

    Args:
        wanted: bool, the scores that are computed exactly at first.
        compute: puts the exact scores in the place of those that it is given, bool, and returns the largest change.
        near: which scores may count, bool, by those that are exact, bool, and the most that a rough one may be off.
        error: the largest change so far.

    Returns:
        The largest change.
    """
    exact = torch.zeros_like(wanted)
    while wanted.any():
        error = max(error, compute(wanted))
        exact |= wanted
        wanted = near(exact, 2 * error) & ~exact
    return error
