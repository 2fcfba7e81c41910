"""Candidates among many vectors, by FAISS: an inverted file of product codes that a search compares in registers.

Vectors are reduced to the principal components with most of their variance, and divided by k-means; a list has those of
one cluster. Of a reduced vector's difference to its centre each two numbers are the nearest of 16 pairs, four bits
(Jégou, Douze and Schmid, 2011; in registers: André, Kermarrec and Le Scouarnec, 2017). A search looks through the lists
of the nearest clusters. What it finds are candidates. FAISS ranks them by eight bits of each number of the whole
vector, from a mapped file: that takes less time than Python needs to read as many vectors. The exact products decide
the order of the best of them (``serve.search``).

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
"""Of a query, by four bits; ``serve.recall`` finds how many there must be."""
_SAMPLED = 40
"""Vectors for each cluster of which its centre is computed."""
_LISTS = 4_096
"""Most lists of an index."""
_VARIANCE = 0.9
"""Share of the vectors' variance that the components hold of which there are codes."""
_CERTAIN = 8
"""Two products whose order eight bits may change differ by fewer standard deviations of the error of one."""
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
    faiss, lists = _faiss(), 1 << (min(_LISTS, 4 * isqrt(len(vectors))).bit_length() - 1)
    rows = np.random.default_rng(seed).choice(len(vectors), min(len(vectors), _SAMPLED * lists), replace=False)
    sample = vectors[torch.from_numpy(np.sort(rows))].numpy()
    if before is not None and len(vectors) <= _GROWTH * len(before.candidates):
        coarse, of_row = before.candidates.emptied()
        _forget(faiss, coarse, vectors, of_row[before.rows])
    else:
        coarse = _trained(faiss, sample, lists, seed)
    fine = faiss.IndexScalarQuantizer(vectors.shape[1], faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT)
    fine.train(sample)
    index = faiss.IndexRefine(coarse, fine)
    for start in range(0, len(vectors), _BLOCK):
        index.add(vectors[start : start + _BLOCK].numpy())
    faiss.write_index(index, faiss.PyCallbackIOWriter(write))


def _trained(faiss: Any, sample: npt.NDArray[np.float32], clusters: int, seed: int) -> Any:
    """Return an empty index of four bits whose components, clusters and pairs are made of a sample of the vectors."""
    width = sample.shape[1]
    held = np.cumsum(np.linalg.eigvalsh(np.cov(sample.T))[::-1])
    components = int(np.searchsorted(held, _VARIANCE * held[-1])) + 1
    components = min(components + components % 2, width - width % 2)
    description = f"PCAR{components},IVF{clusters},PQ{components // 2}x4fsr"
    index = faiss.index_factory(width, description, faiss.METRIC_INNER_PRODUCT)
    lists = _lists_of(faiss, index)
    lists.cp.seed = lists.pq.cp.seed = 1 + seed
    lists.cp.max_points_per_centroid = _SAMPLED
    index.train(sample)
    return index


def _forget(faiss: Any, index: Any, vectors: Vectors, of_row: Rows) -> None:
    """Make the centres of small clusters of the vectors that are left: the others may be gone for a reason."""
    lists, components = _lists_of(faiss, index), faiss.downcast_VectorTransform(index.chain.at(0))
    centres = lists.quantizer.reconstruct_n(0, lists.nlist)
    for number in np.flatnonzero(np.bincount(of_row[of_row >= 0], minlength=lists.nlist) < _FEW).tolist():
        left = vectors[torch.from_numpy(np.flatnonzero(of_row == number))]
        centres[number] = components.apply(left.mean(0, keepdim=True).numpy())[0] if len(left) else 0
    lists.quantizer.reset()
    lists.quantizer.add(centres)


def _lists_of(faiss: Any, index: Any) -> Any:
    return faiss.downcast_index(faiss.extract_index_ivf(index))


def _opened(faiss: Any, file: Path) -> Any:
    try:
        return faiss.read_index(str(file), faiss.IO_FLAG_MMAP_IFC)
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
        self._coarse = self._faiss.downcast_index(self._index.base_index)
        self._lists = _lists_of(self._faiss, self._coarse)
        fine = self._faiss.downcast_index(self._index.refine_index)
        # A number's error is spread evenly over a step, of which there are 255 between the least and the largest.
        self._error_variance = (self._faiss.vector_to_array(fine.sq.trained)[fine.d :] / 255) ** 2 / 12
        self.probes, self.count = probes, count
        self.lists = int(self._lists.nlist)

    def __len__(self) -> int:
        return int(self._index.ntotal)

    def emptied(self) -> tuple[Any, Rows]:
        """Return an index of four bits that has these clusters and no vectors, and each row's cluster, -1 for -1."""
        faiss, inverted = self._faiss, self._lists.invlists
        clusters = np.full(len(self) + 1, -1, np.int64)
        for number in range(self.lists):
            if size := inverted.list_size(number):
                clusters[faiss.rev_swig_ptr(inverted.get_ids(number), size)] = number
        empty = faiss.clone_index(self._coarse)
        empty.reset()
        # A clone of what is mapped is mapped too, and its centres cannot be written.
        return faiss.deserialize_index(faiss.serialize_index(empty)), clusters

    def search(self, queries: Tensor, best: int, allowed: npt.NDArray[np.bool_] | None = None) -> list[Tensor]:
        """Find candidates of each query, in the order of their rows; fewer where fewer are allowed.

        Args:
            queries: float32 [queries, d].
            best: how many of all candidates, those with the largest products, are surely among them; at most ``count``.
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
            refined = faiss.IndexRefineSearchParameters(k_factor=1, base_index_params=chosen)
            scores, found = self._index.search(wanted, count, params=refined)
            # What is allowed may lie in lists that are further.
            if (found >= 0).sum(1).min(initial=count) >= enough or probes >= self.lists:
                error = np.sqrt(wanted**2 @ self._error_variance)
                least = scores[:, min(best, count) - 1] - _CERTAIN * error
                near = (found >= 0) & (scores >= least[:, None])
                return [torch.from_numpy(np.sort(each[kept])) for each, kept in zip(found, near, strict=True)]
            probes = min(4 * probes, self.lists)
