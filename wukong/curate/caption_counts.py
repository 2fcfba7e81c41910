"""How often each caption occurs in the whole corpus, which the rule ``frequency`` needs (section 3.2).

The filter job counts in three steps on any number of machines. It computes 64-bit hashes of the captions. It counts
each range of hashes by itself and keeps only those that occur more than once (``merge``), because most occur once. Then
each part looks up its captions (``CaptionCounts``). Counts are exact unless two hashes collide: among 166 million
distinct captions the probability of one collision is 0.0007.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from wukong.curate.text.normalize import normal_forms

Hashes = npt.NDArray[np.uint64]
Counts = npt.NDArray[np.int64]


def hashes(captions: pl.Series) -> Hashes:
    """64-bit hashes of captions by their normal form. Another version of Polars may compute other hashes."""
    return hashes_of_normal(normal_forms(captions))


def hashes_of_normal(normal: pl.Series) -> Hashes:
    """``hashes`` of captions that are in normal form already."""
    return normal.hash(0).to_numpy()


@dataclass(frozen=True)
class CaptionCounts:
    """The captions that occur more than once, as sorted hashes, and how often each does."""

    hashes: Hashes
    counts: Counts

    def of(self, values: Hashes) -> Counts:
        """Look up how often captions of the corpus occur in it, by their hashes."""
        if not len(self.hashes):
            return np.ones(len(values), dtype=np.int64)
        places = np.minimum(np.searchsorted(self.hashes, values), len(self.hashes) - 1)
        return np.where(self.hashes[places] == values, self.counts[places], 1)


def merge(*pieces: Hashes) -> CaptionCounts:
    """Count the hashes of one range, in pieces, and keep those that occur more than once."""
    values = np.concatenate([np.empty(0, np.uint64), *pieces])
    values.sort()
    again = np.concatenate([[False], values[1:] == values[:-1], [False]])
    edges = np.flatnonzero(again[1:] != again[:-1])
    first, last = edges[::2], edges[1::2]
    return CaptionCounts(values[first], last - first + 1)


def join(ranges: Sequence[CaptionCounts]) -> CaptionCounts:
    """Join the counts of all ranges, which are in the order of their hashes."""
    return CaptionCounts(np.concatenate([r.hashes for r in ranges]), np.concatenate([r.counts for r in ranges]))
