"""Vectors of the tokens of more images or texts than fit in memory, in a file.

They are written as they are encoded and read a block at a time. The file is read, not mapped: a mapped page counts as
the process's memory until the system takes it back, and what is read is freed with its block.
"""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from typing import Protocol as Interface

import numpy as np
import torch
from torch import Tensor

from wukong.errors import DataError
from wukong.model.dual import Texts

BLOCK = 1000
"""Items of a block, where nothing else says how many."""


class Rows(Interface):
    """What can be read a block at a time: a tensor [items, (tokens,) d], or ``Tokens``."""

    def __len__(self) -> int:
        """Number of items."""
        ...

    def __getitem__(self, rows: slice, /) -> Tensor:
        """Return a block, [items, (tokens,) d]."""
        ...


class Tokens:
    """Vectors of the tokens of each item, float32, in a file that is gone when the process ends, however it ends.

    Args:
        folder: where the file is made.
    """

    ndim = 3

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115 - it lives as long as the object
        self._ends = [0]
        self._width = 0

    def append(self, vectors: Tensor, lengths: Tensor | None = None) -> None:
        """Add items at the end.

        Args:
            vectors: [items, tokens, d].
            lengths: number of tokens of each item that are kept, the first ones; None for all.

        Raises:
            DataError: the disk is full.
        """
        items, tokens, self._width = vectors.shape
        kept = torch.full((items,), tokens) if lengths is None else lengths
        packed = vectors.float()[torch.arange(tokens)[None] < kept[:, None]].contiguous().numpy()
        try:
            self._file.seek(0, os.SEEK_END)
            packed.tofile(self._file)
        except OSError as error:
            raise DataError(
                f"{packed.nbytes / 2**20:.0f} MiB of vectors cannot be written in {self._folder}: {error}; make room, "
                "or set another folder for the cache"
            ) from error
        self._ends += (self._ends[-1] + kept.cumsum(0)).tolist()

    def __len__(self) -> int:
        """Number of items."""
        return len(self._ends) - 1

    def __getitem__(self, rows: slice, /) -> Tensor:
        """Read a block, float32 [items, tokens of the longest, d]; what a shorter item lacks is 0."""
        ends = torch.tensor(self._ends[rows.start : min(rows.stop, len(self)) + 1])
        lengths = ends.diff()
        self._file.seek(4 * self._width * int(ends[0]))
        packed = torch.from_numpy(np.fromfile(self._file, np.float32, self._width * int(lengths.sum())))
        longest = int(lengths.max())
        if int(lengths.min()) == longest:
            return packed.view(len(lengths), longest, self._width)
        block = torch.zeros(len(lengths), longest, self._width)
        block[torch.arange(longest)[None] < lengths[:, None]] = packed.view(-1, self._width)
        return block


class StoredTexts(NamedTuple):
    """Encoded texts like ``Texts``, with their vectors in a file.

    Attributes:
        vectors: those of all tokens up to the last one that counts.
        counted: bool [texts, tokens].
    """

    vectors: Tokens
    counted: Tensor


def block(texts: Texts | StoredTexts, rows: slice) -> Texts:
    """Return some of the texts, without the padding beyond the longest of them."""
    counted = texts.counted[rows]
    if texts.vectors.ndim == 2:
        return Texts(texts.vectors[rows], counted)
    longest = int(counted.any(0).nonzero().max()) + 1
    return Texts(texts.vectors[rows][:, :longest], counted[:, :longest])


def slices(size: int, step: int = BLOCK) -> Iterator[slice]:
    """Divide a number of items into blocks."""
    return (slice(start, min(start + step, size)) for start in range(0, size, step))
