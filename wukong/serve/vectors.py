"""Vectors of an index in a file, float16 [items, d] without a header; only what is read of them comes into memory."""

import mmap
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from wukong.errors import DataError

_AT_ONCE = 65_536
_RESIDENT = 131_072
"""Rows after whose reading a process gives their pages back, at most 512 MiB; the system keeps them in its cache."""


class Vectors:
    """Vectors in a file, which is mapped. What is read of them is float32.

    Args:
        file: the file.
        items: how many vectors it has.
        width: numbers of each.

    Raises:
        DataError: it has another size.
    """

    def __init__(self, file: Path, items: int, width: int) -> None:
        self.shape = (items, width)
        size, wanted = file.stat().st_size, 2 * items * width
        if size != wanted:
            raise DataError(f"{file} has {size} bytes and not {wanted}: delete the index, it is made anew")
        self._file = file
        self._mapped: mmap.mmap | None = None
        self._halves: npt.NDArray[np.float16] = np.empty(self.shape, np.float16)
        self._read = 0
        if items:
            with file.open("rb") as stream:
                self._mapped = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
            # Candidates lie far apart: what is beside one would be read for nothing, and would fill the memory.
            self._mapped.madvise(mmap.MADV_RANDOM)
            self._halves = np.frombuffer(self._mapped, np.float16).reshape(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice | Tensor) -> Tensor:
        """Read some vectors, float32 [rows, d]."""
        wanted = rows.numpy() if isinstance(rows, Tensor) else rows
        found = torch.from_numpy(self._halves[wanted].astype(np.float32))
        self._read += len(found)
        if self._read > _RESIDENT and self._mapped is not None:
            self._read = 0
            self._mapped.madvise(mmap.MADV_DONTNEED)
        return found

    def halves(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float16]:
        """Read some vectors as they are stored, float16 [rows, d]."""
        return self._halves[rows]

    def read(self) -> Tensor:
        """Read all of them into memory, in one stream."""
        whole = torch.empty(self.shape)
        with self._file.open("rb") as stream:
            for start in range(0, len(self), _AT_ONCE):
                count = min(_AT_ONCE, len(self) - start)
                block = np.fromfile(stream, np.float16, count * self.shape[1]).reshape(count, -1)
                whole[start : start + count] = torch.from_numpy(block)
        return whole
