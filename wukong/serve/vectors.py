"""Vectors of an index in a file, float16 [items, d] without a header; only what is read of them comes into memory.

Rows are read one by one and the file is not mapped. With each page of a mapping Linux maps the 64 KiB around it, so
memory grows to the whole file, and giving pages back takes longer than reading.
"""

import os
import weakref
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from wukong.errors import DataError

_AT_ONCE = 65_536

Halves = npt.NDArray[np.float16]


class Vectors:
    """Vectors in a file. What is read of them is float32.

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
        self._path = file
        self._file = os.open(file, os.O_RDONLY)
        weakref.finalize(self, os.close, self._file)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice | Tensor) -> Tensor:
        """Read some vectors, float32 [rows, d]."""
        return torch.from_numpy(self._part(rows) if isinstance(rows, slice) else self.halves(rows.numpy())).float()

    def halves(self, rows: npt.NDArray[np.int64]) -> Halves:
        """Read some vectors as they are stored, float16 [rows, d]."""
        size = 2 * self.shape[1]
        block = bytearray().join(os.pread(self._file, size, start) for start in (rows * size).tolist())
        return self._shaped(block, len(rows) * size)

    def read(self) -> Tensor:
        """Read all of them into memory, in one stream."""
        whole = torch.empty(self.shape)
        for start in range(0, len(self), _AT_ONCE):
            whole[start : start + _AT_ONCE] = self[start : start + _AT_ONCE]
        return whole

    def _part(self, rows: slice) -> Halves:
        start, stop, _ = rows.indices(len(self))
        size = 2 * self.shape[1]
        block = bytearray(max(0, stop - start) * size)
        return self._shaped(block, os.preadv(self._file, [block], start * size))

    def _shaped(self, block: bytearray, size: int) -> Halves:
        if size != len(block) or size % (2 * self.shape[1]):
            raise DataError(f"{self._path} is cut short: delete the index, it is made anew")
        return np.frombuffer(block, np.float16).reshape(-1, self.shape[1])
