"""Candidates among many vectors, by FAISS: an inverted file, whose lists stay on the disk and are mapped.

Vectors are divided by k-means; a list has those of one cluster, eight bits for each number. A search looks through the
lists of the nearest clusters. What it finds are candidates, whose order the exact products decide (``serve.search``).

An index of vectors that are mostly those of an earlier one takes its clusters over, and for each vector that it had
the cluster: nothing is trained, and only vectors that are new are compared with the centres.
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

_SAMPLED = 40
"""Vectors for each cluster of which its centre is computed."""
_LISTS = 4_096
"""Most lists of an index."""
_BLOCK = 65_536
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
    lists = np.full(len(vectors), -1, np.int64)
    if before is not None and len(vectors) <= _GROWTH * len(before.candidates):
        index, of_row = before.candidates.emptied()
        lists = of_row[before.rows]
    else:
        index = _trained(faiss, vectors, seed)
    for start in range(0, len(vectors), _BLOCK):
        block = vectors[start : start + _BLOCK].numpy()
        ids, mine = np.arange(start, start + len(block)), lists[start : start + len(block)]
        new = np.flatnonzero(mine < 0)
        if len(new):
            mine[new] = index.quantizer.search(block[new], 1)[1][:, 0]
        index.add_core(len(block), *map(faiss.swig_ptr, (block, ids, mine)))
    faiss.write_index(index, faiss.PyCallbackIOWriter(write))


def _trained(faiss: Any, vectors: Vectors, seed: int) -> Any:
    """Return an empty index whose clusters are made of a sample of the vectors."""
    width = vectors.shape[1]
    lists = 1 << (min(_LISTS, 4 * isqrt(len(vectors))).bit_length() - 1)
    index = _index(faiss, faiss.IndexFlatIP(width), width, lists)
    index.cp.seed = 1 + seed
    index.cp.max_points_per_centroid = _SAMPLED
    sample = np.random.default_rng(seed).choice(len(vectors), min(len(vectors), _SAMPLED * lists), replace=False)
    index.train(vectors[torch.from_numpy(np.sort(sample))].numpy())
    return index


def _index(faiss: Any, quantizer: Any, width: int, lists: int) -> Any:
    kind = faiss.ScalarQuantizer.QT_8bit
    index = faiss.IndexIVFScalarQuantizer(quantizer, width, lists, kind, faiss.METRIC_INNER_PRODUCT, False)
    quantizer.this.disown()
    index.own_fields = True
    return index


def _opened(faiss: Any, file: Path) -> Any:
    try:
        return faiss.read_index(str(file), faiss.IO_FLAG_MMAP)
    except RuntimeError as error:
        raise DataError(f"{file} is damaged ({error}): delete the index, it is made anew") from error


class Candidates:
    """An index that is searched.

    Args:
        file: its file.
        items: how many vectors it has.
        probes: how many lists a search looks through.

    Raises:
        ConfigError: FAISS is not installed.
        DataError: the file is damaged, or of other vectors.
    """

    def __init__(self, file: Path, items: int, probes: int = 1) -> None:
        self._faiss = _faiss()
        self._index = _opened(self._faiss, file)
        if self._index.ntotal != items:
            raise DataError(f"{file} has {self._index.ntotal} vectors and not {items}: delete the index")
        self.probes = probes
        self.lists = int(self._index.nlist)

    def __len__(self) -> int:
        return int(self._index.ntotal)

    def emptied(self) -> tuple[Any, Rows]:
        """Return an index of FAISS with these clusters and no vectors, and of each row the cluster, and -1 for -1."""
        faiss, index = self._faiss, self._index
        empty = _index(faiss, faiss.clone_index(index.quantizer), index.d, index.nlist)
        faiss.copy_array_to_vector(faiss.vector_to_array(index.sq.trained), empty.sq.trained)
        empty.is_trained = True
        clusters = np.full(len(self) + 1, -1, np.int64)
        for number in range(self.lists):
            ids = faiss.rev_swig_ptr(index.invlists.get_ids(number), index.invlists.list_size(number))
            clusters[ids] = number
        return empty, clusters

    def search(self, queries: Tensor, count: int, allowed: npt.NDArray[np.bool_] | None = None) -> list[Tensor]:
        """Find candidates of each query, in the order of their rows; fewer where fewer are allowed.

        Args:
            queries: float32 [queries, d].
            count: how many of each.
            allowed: which vectors may be found, bool [vectors]; None for all.
        """
        faiss, wanted, probes = self._faiss, np.ascontiguousarray(queries.numpy()), self.probes
        limits: dict[str, Any] = {}
        if allowed is not None:
            bits = np.packbits(allowed, bitorder="little")
            limits["sel"] = faiss.IDSelectorBitmap(len(allowed), faiss.swig_ptr(bits))
        enough = 0 if allowed is None else min(count, int(allowed.sum()))
        faiss.omp_set_num_threads(torch.get_num_threads())
        while True:
            chosen = faiss.SearchParametersIVF(nprobe=probes, **limits)
            found = self._index.search(wanted, count, params=chosen)[1]
            # What is allowed may lie in lists that are further.
            if (found >= 0).sum(1).min(initial=count) >= enough or probes >= self.lists:
                return [torch.from_numpy(np.sort(each[each >= 0])) for each in found]
            probes = min(4 * probes, self.lists)
