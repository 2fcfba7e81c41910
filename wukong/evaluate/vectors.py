"""Vectors of more images or texts than fit in memory, in files, of which one at a time is read."""

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, lru_cache
from itertools import accumulate
from typing import NamedTuple
from typing import Protocol as Interface

import torch
import torch.nn.functional as F
from torch import Tensor

from wukong.model.dual import Texts

BLOCK = 1000
"""Items of a block, where nothing else says how many."""


class Rows(Interface):
    """What can be read a block at a time: a tensor [items, (tokens,) d], or ``Pieces``."""

    def __len__(self) -> int:
        """Number of items."""
        ...

    def __getitem__(self, rows: slice, /) -> Tensor:
        """Return a block, [items, (tokens,) d]."""
        ...


class Pieces:
    """Vectors of items in files with some items each, float32 [items, (tokens,) d]; what a shorter item lacks is 0.

    A file is read when some of its items are asked for. The last one stays in memory.

    Args:
        sizes: number of items of each file.
        read: reads a file by its number.
    """

    def __init__(self, sizes: Sequence[int], read: Callable[[int], Tensor]) -> None:
        self._ends = [0, *accumulate(sizes)]
        self._read = lru_cache(maxsize=1)(read)

    def __len__(self) -> int:
        """Number of items."""
        return self._ends[-1]

    @cached_property
    def ndim(self) -> int:
        """3 for vectors of tokens, 2 for one vector an item."""
        return self._read(0).ndim

    def __getitem__(self, rows: slice, /) -> Tensor:
        """Read a block."""
        stop = min(rows.stop, len(self))
        first, last = bisect_right(self._ends, rows.start) - 1, bisect_left(self._ends, stop)
        parts = [
            self._read(number)[max(rows.start - self._ends[number], 0) : stop - self._ends[number]]
            for number in range(first, last)
        ]
        if len(parts) == 1 or parts[0].ndim == 2:
            return torch.cat(parts) if len(parts) > 1 else parts[0]
        longest = max(part.shape[1] for part in parts)
        return torch.cat([F.pad(part, (0, 0, 0, longest - part.shape[1])) for part in parts])


class StoredTexts(NamedTuple):
    """Encoded texts like ``Texts``, with their vectors in files.

    Attributes:
        vectors: those of all tokens up to the last one of a file that counts.
        counted: bool [texts, tokens].
    """

    vectors: Pieces
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
