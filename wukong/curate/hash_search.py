"""Find the PDQ hashes that differ from a given one in at most a number of bits. Nothing within the distance is missed.

Few hashes are compared one by one. Many are looked up by sixteenths: two hashes that differ in at most ``d`` bits
differ in at most ``d // 16`` bits of one of their sixteen pieces of 16 bits, so that each piece is looked up with so
many bits turned over, and only what is found there is compared. That is 1 of 240 hashes at the customary distance.

A hash takes 32 bytes, and 64 more where pieces are looked up: 350,000 pictures in eight forms each take 270 MB.
"""

from collections.abc import Iterator
from itertools import combinations

import numpy as np
import numpy.typing as npt

from wukong.curate.pdq import Hashes

Rows = npt.NDArray[np.intp]
Found = tuple[Rows, Rows, npt.NDArray[np.int32]]
"""Rows of the queries, in order, rows of what was found for them, in order, and their distances; the same length."""

_WORDS = 4
_PIECES = 16
_PIECE_BITS = 16
_MANY = 2_000
_MOST_TURNED = 2
_AT_ONCE = 1 << 18
"""Hashes that are compared at once; they take 20 MB."""


class HashSearch:
    """Hashes that can be looked up.

    Args:
        hashes: one row each, ``(m, 32)``; there may be none.
    """

    def __init__(self, hashes: Hashes) -> None:
        self._words = np.ascontiguousarray(hashes).view(np.uint64)
        pieces = _pieces(hashes) if len(hashes) >= _MANY else np.empty((0, 0), np.uint16)
        self._order = [np.argsort(column, kind="stable").astype(np.int32) for column in pieces.T]
        sizes = (np.bincount(column, minlength=1 << _PIECE_BITS) for column in pieces.T)
        self._starts = [np.concatenate([[0], np.cumsum(size)]) for size in sizes]

    def __len__(self) -> int:
        return len(self._words)

    def within(self, queries: Hashes, distance: int) -> Found:
        """Find what differs from each query in at most ``distance`` bits."""
        parts = list(self._found(queries, distance))
        empty = (np.empty(0, np.intp), np.empty(0, np.intp), np.empty(0, np.int32))
        rows, others, distances = (np.concatenate(columns) for columns in zip(empty, *parts, strict=True))
        return rows, others, distances

    def nearest(self, queries: Hashes, distance: int) -> tuple[Rows, npt.NDArray[np.int32]]:
        """For each query the row of the nearest hash within ``distance`` bits, the first of several, and how far it is.

        Both are -1 where there is none.
        """
        nearest, far = np.full(len(queries), -1, dtype=np.intp), np.full(len(queries), -1, dtype=np.int32)
        for rows, others, distances in self._found(queries, distance):
            order = np.lexsort((others, distances, rows))
            first = order[np.flatnonzero(np.diff(rows[order], prepend=-1))]
            nearest[rows[first]], far[rows[first]] = others[first], distances[first]
        return nearest, far

    def _found(self, queries: Hashes, distance: int) -> Iterator[Found]:
        """What is found for some queries at a time, so that memory is bounded however much there is to compare."""
        words = np.ascontiguousarray(queries).view(np.uint64)
        if not self._order or distance // _PIECES > _MOST_TURNED:
            block = max(1, _AT_ONCE // max(1, len(self)))
            for start in range(0, len(words), block):
                apart = _apart(words[start : start + block, None], self._words)
                rows, others = np.nonzero(apart <= distance)
                yield rows + start, others, apart[rows, others]
            return
        turned = _turned(distance // _PIECES)
        looked_up = _pieces(queries)[:, :, None] ^ turned  # query, piece, value
        starts = np.stack([self._starts[piece][looked_up[:, piece]] for piece in range(_PIECES)], axis=1)
        ends = np.stack(
            [self._starts[piece][looked_up[:, piece].astype(np.intp) + 1] for piece in range(_PIECES)], axis=1
        )
        counts = ends - starts
        total = np.cumsum(counts.sum(axis=(1, 2)))
        low = 0
        while low < len(words):
            done = total[low - 1] if low else 0
            high = max(low + 1, int(np.searchsorted(total, done + _AT_ONCE, side="right")))
            yield self._compared(words, low, starts[low:high], counts[low:high], distance)
            low = high

    def _compared(self, words: npt.NDArray[np.uint64], low: int, starts: Rows, counts: Rows, distance: int) -> Found:
        """Compare queries with what stands where their pieces are looked up."""
        rows, others = [], []
        for piece in range(_PIECES):
            count = counts[:, piece].ravel()
            places = np.repeat(starts[:, piece].ravel() - np.cumsum(count) + count, count) + np.arange(count.sum())
            others.append(self._order[piece][places])
            rows.append(np.repeat(np.arange(low, low + len(counts)), counts[:, piece].sum(axis=1)))
        row, other = np.concatenate(rows), np.concatenate(others)
        near = _apart(words[row], self._words[other]) <= distance
        # Two hashes may be found by several of their pieces.
        pairs = np.unique(row[near] * len(self) + other[near])
        row, other = np.divmod(pairs, len(self))
        return row, other, _apart(words[row], self._words[other])


def _pieces(hashes: Hashes) -> npt.NDArray[np.uint16]:
    return np.ascontiguousarray(hashes).view(np.uint16)


def _apart(some: npt.NDArray[np.uint64], others: npt.NDArray[np.uint64]) -> npt.NDArray[np.int32]:
    """Distances of hashes in four words each; one word after another is faster than all at once."""
    far = np.zeros(np.broadcast_shapes(some.shape, others.shape)[:-1], dtype=np.int32)
    for word in range(_WORDS):
        far += np.bitwise_count(some[..., word] ^ others[..., word])
    return far


def _turned(most: int) -> npt.NDArray[np.uint16]:
    """Numbers of 16 bits of which at most so many are set."""
    sets = (each for size in range(most + 1) for each in combinations(range(_PIECE_BITS), size))
    return np.array([sum(1 << bit for bit in bits) for bits in sets], dtype=np.uint16)
