"""Finding pairs whose picture is near that of another pair, by vectors that a model computed of the pictures.

As in SemDeDup (Abbas et al. 2023, arXiv 2303.09540), the vectors are divided by k-means, and only those of one cluster
are compared. Each vector is at home in the cluster of the nearest centre. Where a border runs between two near ones,
one of them at least is close to the border: so a vector also visits the clusters whose centres are hardly further, and
is compared there with those that are at home.

Vectors have the length ``LENGTH`` and whole numbers as components. Then each sum of products is a whole number below
2^24, which float32 holds exactly. So cosines and clusters do not depend on threads, on the order of sums or on the
processor, and a run that is done again gives the same bytes.
"""

import math
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from wukong.curate.duplicates import numbers
from wukong.errors import DataError

Whole = npt.NDArray[np.int16]
"""Vectors of length ``LENGTH`` with whole components, one a row."""

LENGTH = 4000
"""Its square is 4.6 % below 2^24, since rounding makes vectors longer. A cosine moves by 0.0001, rarely by 0.0005."""

LOWEST = 0.8
"""Nearness below this cosine is not told."""

THRESHOLDS = tuple(round(LOWEST + step / 100, 2) for step in range(20))
"""Cosines at which it is counted how many pairs would go."""

COUNTED = "near_duplicates"
"""Name, in the counts of the filter's manifest, of the pairs that were compared; with ``/0.95``, of those that go."""

COMPARED_WHOLE = 20_000
"""Up to so many vectors are one cluster: each is compared with each."""

SAMPLED = 40
"""Vectors for each cluster of which its centre is computed, as long as they are not more than ``MOST_SAMPLED``."""

MOST_SAMPLED = 250_000

NEAREST, COSINE = "nearest", "nearest_cosine"
"""What is told of a vector: the key of the nearest that is preferred to it, and their cosine."""

_ROUNDS = 8
_VISITS = 4
_MARGIN = 0.05
_BLOCK = 16_384
_ROWS, _COLUMNS = 512, 2048
_LEAST = LOWEST * LENGTH**2

_Found = tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]
"""The highest product of each vector with one that is preferred, and which that is."""


def whole(vectors: npt.NDArray[np.floating[Any]]) -> Whole:
    """Bring vectors to the length ``LENGTH`` and round their components.

    Raises:
        DataError: one has no direction, since it is zero or not finite.
    """
    made = np.empty(vectors.shape, np.int16)
    for low in range(0, len(vectors), _BLOCK):
        exact = np.asarray(vectors[low : low + _BLOCK], np.float64)
        lengths = np.sqrt(np.einsum("ij,ij->i", exact, exact))
        if not (np.isfinite(lengths) & (lengths > 0)).all():
            raise DataError(
                "a picture's vector is zero or not finite: take another model of pictures' vectors, or repair this one"
            )
        made[low : low + _BLOCK] = np.rint(exact * (LENGTH / lengths)[:, None])
    return made


def clusters_for(vectors: int) -> int:
    """The number of clusters at which dividing vectors among them takes about as long as comparing them inside."""
    return 1 if vectors <= COMPARED_WHOLE else round(1.5 * math.sqrt(vectors))


def sample(rows: pl.DataFrame, vectors: int) -> pl.DataFrame:
    """Take those of some rows of which, together with all others that there are, centres are computed.

    Args:
        rows: with ``key``, which begins with 16 hexadecimal digits of a hash.
        vectors: how many there are in all.
    """
    share = min(MOST_SAMPLED, SAMPLED * clusters_for(vectors)) / max(1, vectors)
    return rows.filter(numbers(rows["key"]) < min(share, 1) * 2.0**64)


def centres(sample: Whole, clusters: int) -> Whole:
    """Compute the centres of clusters by spherical k-means.

    Args:
        sample: some vectors, in an order that has nothing to do with what they are; the first begin as centres.
        clusters: how many there are, at most as many as vectors.
    """
    found = sample[:clusters]
    for _ in range(_ROUNDS):
        home, _ = _nearest(sample, found, 1)
        order = np.argsort(home[:, 0], kind="stable")
        filled, starts = np.unique(home[order, 0], return_index=True)
        sums = np.add.reduceat(sample[order], starts, axis=0, dtype=np.int64)
        moved = sums.any(axis=1)  # vectors that point everywhere have no centre: it stays where it was
        found = found.copy()
        found[filled[moved]] = whole(sums[moved])
    return found


def divided(rows: pl.DataFrame, centres: Whole) -> pl.DataFrame:
    """Divide vectors among clusters.

    Args:
        rows: with ``vector`` as ``packed`` makes it, and any further columns.
        centres: of the clusters.

    Returns:
        Each row once for each cluster where its vector is at home (``home``) or a visitor. The first column is
        ``cluster``: its number, spread over all numbers of 64 bits.
    """
    vectors = unpacked(rows["vector"])
    near, cosines = _nearest(vectors, centres, min(1 + _VISITS, len(centres)))
    row, rank = np.nonzero(cosines >= cosines[:, :1] - _MARGIN)
    spread = np.uint64((2**64 - 1) // max(1, len(centres)))
    cluster = pl.Series("cluster", near[row, rank].astype(np.uint64) * spread)
    return rows[row].select(cluster, pl.all(), home=pl.Series(rank == 0))


def nearest(rows: pl.DataFrame) -> pl.DataFrame:
    """Find, for each vector, the nearest of those in its cluster that are preferred to it.

    A vector is preferred to those with a lower ``score``; where it is equal, to those with a later ``key``.

    Args:
        rows: of ``divided``, with ``key``, ``score`` and any further columns; of each cluster all rows or none.

    Returns:
        The rows, but for ``vector``, of vectors that have one at a cosine of ``LOWEST`` or more; ``NEAREST`` is its key
        and ``COSINE`` the cosine. A vector that is in several clusters may be found in each.
    """
    rows = rows.sort("cluster", "score", "key", descending=[False, True, False])
    products, before = np.empty(len(rows), np.float32), np.empty(len(rows), np.int64)
    cluster, home = rows["cluster"].to_numpy(), rows["home"].to_numpy()
    ends = [0, *(np.flatnonzero(cluster[1:] != cluster[:-1]) + 1), len(rows)]
    for low, high in pairwise(ends):
        products[low:high], near = _nearest_before(rows["vector"][low:high], home[low:high])
        before[low:high] = low + near
    told = products >= _LEAST
    cosines = np.minimum(products[told] / np.float32(LENGTH**2), 1)
    near_keys, found = rows["key"][before[told]].alias(NEAREST), rows.drop("vector").filter(told)
    return found.with_columns(near_keys, pl.Series(COSINE, cosines, pl.Float32))


def best(found: pl.DataFrame) -> pl.DataFrame:
    """Of what ``nearest`` found in several clusters, keep for each ``key`` the highest cosine, once."""
    return found.sort(COSINE, NEAREST, descending=[True, False]).unique("key", keep="first").sort("key")


def counts(compared: pl.DataFrame) -> dict[str, int]:
    """How many vectors were compared, and how many go at each threshold, as the filter's manifest counts them."""
    near = compared[COSINE]
    gone = {f"{COUNTED}/{threshold:.2f}": int((near >= threshold).sum()) for threshold in THRESHOLDS}
    return {COUNTED: len(compared), **gone}


def of_column(column: pl.Series) -> pl.Series:
    """The vectors of pictures, a column of lists of one length without nulls, as ``packed`` makes them.

    Raises:
        DataError: one has no direction, since it is zero or not finite.
    """
    return packed(whole(column.to_numpy())) if len(column) else pl.Series("vector", [], pl.Binary)


def packed(vectors: Whole) -> pl.Series:
    """Vectors as a column of bytes."""
    width = vectors.shape[1] * vectors.itemsize
    ends = pa.py_buffer(np.arange(0, (len(vectors) + 1) * width, width, dtype=np.int64))
    data = [None, ends, pa.py_buffer(np.ascontiguousarray(vectors))]
    return pl.Series("vector", pa.Array.from_buffers(pa.large_binary(), len(vectors), data))


def unpacked(column: pl.Series) -> Whole:
    """The vectors that ``packed`` made a column of."""
    joined = np.frombuffer(b"".join(column), np.int16)
    return joined.reshape(len(column), len(joined) // max(1, len(column)))


def _nearest(vectors: Whole, centres: Whole, count: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """The nearest centres of each vector, the nearest first, and their cosines."""
    columns = np.ascontiguousarray(centres.T, np.float32)
    found, highest = np.empty((len(vectors), count), np.int64), np.empty((len(vectors), count), np.float32)
    for low in range(0, len(vectors), _ROWS):
        some = slice(low, low + _ROWS)
        products = vectors[some].astype(np.float32) @ columns
        rows = np.arange(len(products))
        for rank in range(count):
            peaks = products.argmax(axis=1)
            found[some, rank], highest[some, rank] = peaks, products[rows, peaks]
            products[rows, peaks] = -np.inf
    return found, highest / np.float32(LENGTH**2)


def _nearest_before(column: pl.Series, home: npt.NDArray[np.bool_]) -> _Found:
    """Find the nearest before each vector of a cluster, in the order of preference."""
    # Of equal vectors the first is nearest to the others, and to whatever is near them: it alone is compared.
    first: dict[bytes, int] = {}
    before = np.fromiter((first.setdefault(vector, row) for row, vector in enumerate(column)), np.int64)
    distinct = np.fromiter(first.values(), np.int64)
    products = np.full(len(column), LENGTH**2, np.float32)
    if len(distinct):
        vectors = np.frombuffer(b"".join(first), np.int16).reshape(len(first), -1).astype(np.float32)
        products[distinct], near = _highest_before(vectors, home[distinct])
        before[distinct] = distinct[near]
    return products, before


def _highest_before(vectors: npt.NDArray[np.float32], home: npt.NDArray[np.bool_]) -> _Found:
    """The highest product of each vector with one before it, and which that is; visitors are not compared together."""
    highest = np.full(len(vectors), _LEAST - 1, np.float32)
    which = np.zeros(len(vectors), np.int64)
    at_home, visiting = np.flatnonzero(home), np.flatnonzero(~home)
    for rows, columns in (np.arange(len(vectors)), at_home), (at_home, visiting):
        for low in range(0, len(rows), _ROWS):
            some = rows[low : low + _ROWS]
            end = int(np.searchsorted(columns, some[-1]))
            for start in range(0, end, _COLUMNS):
                others = columns[start : min(start + _COLUMNS, end)]
                products = vectors[some] @ vectors[others].T
                if others[-1] >= some[0]:
                    products[others[None, :] >= some[:, None]] = -np.inf
                peaks = products.max(axis=1)
                better = np.flatnonzero(peaks > highest[some])
                highest[some[better]] = peaks[better]
                which[some[better]] = others[products[better].argmax(axis=1)]
    return highest, which
