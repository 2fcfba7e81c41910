"""Candidates among many vectors, by FAISS: an inverted file of product codes that a search compares in registers.

Vectors are divided by k-means; a list has those of one cluster. Of a vector's difference to its centre each two numbers
are the nearest of 16 pairs, four bits (Jégou, Douze and Schmid, 2011; in registers: André, Kermarrec and Le Scouarnec,
2017). A search looks through the lists of the nearest clusters. What it finds are candidates, whose order the exact
products decide (``serve.search``).

An index of vectors that are mostly those of an earlier one takes its clusters and pairs over: nothing is trained.
"""

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from math import isqrt
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from wukong.errors import ConfigError, DataError
from wukong.serve.vectors import Vectors

LEAST_CANDIDATES, MOST_CANDIDATES = 400, 1_600
"""Of a query; ``serve.recall`` finds how many there must be."""
_SAMPLED = 40
"""Vectors for each cluster of which its centre is computed."""
_LISTS = 4_096
"""Most lists of an index."""
_BLOCK = 65_536
_FEW = 8
"""The centre of a cluster with fewer vectors says much of each."""
_GROWTH = 2
"""Up to so many times the vectors that its clusters were made of, an index keeps them."""

Rows = npt.NDArray[np.int64]


def _faiss() -> Any:
    if find_spec("faiss") is None:
        raise ConfigError(
            "an index of so many pictures needs a package that is not installed: run `pip install faiss-cpu`"
        )
    return import_module("faiss")


class Before(NamedTuple):
    """An earlier index of some of the same vectors, and for each vector its row there, or -1."""

    candidates: "Candidates"
    rows: Rows


def build(vectors: Vectors, write: Callable[[bytes], None], before: Before | None = None, seed: int = 0) -> None:
    """Make an index of vectors.

    Args:
        vectors: the vectors.
        write: takes the bytes of its file, one after the other.
        before: an earlier index; None if there is none.
        seed: decides on which vectors the clusters are made.

    Raises:
        ConfigError: FAISS is not installed.
    """
    faiss = _faiss()
    if before is not None and len(vectors) <= _GROWTH * len(before.candidates):
        index, of_row = before.candidates.emptied()
        _forget(index, vectors, of_row[before.rows])
    else:
        index = _trained(faiss, vectors, seed)
    for start in range(0, len(vectors), _BLOCK):
        index.add(vectors[start : start + _BLOCK].numpy())
    faiss.write_index(index, faiss.PyCallbackIOWriter(write))


def _trained(faiss: Any, vectors: Vectors, seed: int) -> Any:
    """Return an empty index whose clusters and pairs are made of a sample of the vectors."""
    width = vectors.shape[1]
    lists = 1 << (min(_LISTS, 4 * isqrt(len(vectors))).bit_length() - 1)
    codes = width if width % 2 else width // 2
    index = faiss.index_factory(width, f"IVF{lists},PQ{codes}x4fsr", faiss.METRIC_INNER_PRODUCT)
    index.cp.seed = index.pq.cp.seed = 1 + seed
    index.cp.max_points_per_centroid = _SAMPLED
    sample = np.random.default_rng(seed).choice(len(vectors), min(len(vectors), _SAMPLED * lists), replace=False)
    index.train(vectors[torch.from_numpy(np.sort(sample))].numpy())
    return index


def _forget(index: Any, vectors: Vectors, lists: Rows) -> None:
    """Make the centres of small clusters of the vectors that are left: the others may be gone for a reason."""
    centres = index.quantizer.reconstruct_n(0, index.nlist)
    for number in np.flatnonzero(np.bincount(lists[lists >= 0], minlength=index.nlist) < _FEW).tolist():
        left = vectors[torch.from_numpy(np.flatnonzero(lists == number))]
        centres[number] = left.mean(0).numpy() if len(left) else 0
    index.quantizer.reset()
    index.quantizer.add(centres)


def _opened(faiss: Any, file: Path) -> Any:
    try:
        return faiss.read_index(str(file))
    except RuntimeError as error:
        raise DataError(f"{file} is damaged ({error}): delete the index, it is made anew") from error


class Candidates:
    """An index that is searched.

    Args:
        file: its file.
        items: how many vectors it has.
        probes: how many lists a search looks through.
        count: how many candidates it finds.

    Raises:
        ConfigError: FAISS is not installed.
        DataError: the file is damaged, or of other vectors.
    """

    def __init__(self, file: Path, items: int, probes: int = 1, count: int = LEAST_CANDIDATES) -> None:
        self._faiss = _faiss()
        self._index = _opened(self._faiss, file)
        if self._index.ntotal != items:
            raise DataError(f"{file} has {self._index.ntotal} vectors and not {items}: delete the index")
        self.probes, self.count = probes, count
        self.lists = int(self._index.nlist)

    def __len__(self) -> int:
        return int(self._index.ntotal)

    def emptied(self) -> tuple[Any, Rows]:
        """Return an index of FAISS with these clusters and no vectors, and of each row the cluster, and -1 for -1."""
        faiss, index = self._faiss, self._index
        clusters = np.full(len(self) + 1, -1, np.int64)
        for number in range(self.lists):
            if size := index.invlists.list_size(number):
                clusters[faiss.rev_swig_ptr(index.invlists.get_ids(number), size)] = number
        empty = faiss.clone_index(index)
        empty.reset()
        return empty, clusters

    def search(self, queries: Tensor, allowed: npt.NDArray[np.bool_] | None = None) -> list[Tensor]:
        """Find candidates of each query, in the order of their rows; fewer where fewer are allowed.

        Args:
            queries: float32 [queries, d].
            allowed: which vectors may be found, bool [vectors]; None for all.
        """
        faiss, wanted, probes = self._faiss, np.ascontiguousarray(queries.numpy()), self.probes
        limits: dict[str, Any] = {}
        if allowed is not None:
            bits = np.packbits(allowed, bitorder="little")
            limits["sel"] = faiss.IDSelectorBitmap(len(allowed), faiss.swig_ptr(bits))
        count = min(self.count, len(self))
        enough = 0 if allowed is None else min(count, int(allowed.sum()))
        faiss.omp_set_num_threads(torch.get_num_threads())
        while True:
            chosen = faiss.SearchParametersIVF(nprobe=probes, **limits)
            found = self._index.search(wanted, count, params=chosen)[1]
            # What is allowed may lie in lists that are further.
            if (found >= 0).sum(1).min(initial=count) >= enough or probes >= self.lists:
                return [torch.from_numpy(np.sort(each[each >= 0])) for each in found]
            probes = min(4 * probes, self.lists)
