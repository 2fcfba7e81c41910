"""Drift: how much a set differs from a reference set."""

import math

from scipy.special import rel_entr

from wukong.report.statistics import DISTRIBUTIONS, Counts, Statistics


def drift(one: Statistics, other: Statistics) -> dict[str, float]:
    """Measure how much two sets differ: the Jensen-Shannon divergence, in bits, of each histogram of ``DISTRIBUTIONS``.

    It is 0 for equal distributions and 1 for distributions that share no bin (J. Lin, Divergence measures based on the
    Shannon entropy, 1991). It does not depend on the sizes of the sets. Between an empty set and another one it is 1.
    """
    return {name: _divergence(getattr(one, name), getattr(other, name)) for name in DISTRIBUTIONS}


def _divergence(one: Counts, other: Counts) -> float:
    if not one.sum() or not other.sum():
        return float(one.sum() != other.sum())
    p, q = one / one.sum(), other / other.sum()
    middle = (p + q) / 2
    nats = float((rel_entr(p, middle) + rel_entr(q, middle)).sum()) / 2
    return min(1.0, max(0.0, nats / math.log(2)))  # rounding can give a little less than 0
