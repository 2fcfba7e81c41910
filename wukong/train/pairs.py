"""The input of a training run: image features or images with tokenised captions, batch after batch.

``wukong.train.stream`` decides the order and reads pieces of shards. This module says what a piece holds, and makes
batches of it. ``feature_pairs`` and ``picture_pairs`` are its two kinds.
"""

import hashlib
import logging
from abc import ABC, abstractmethod
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import chain
from threading import Lock
from typing import Any, Generic, TypeVar

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from wukong.data.tokenizer import Tokenizer
from wukong.errors import DataError, StorageError
from wukong.store.patience import AwayError
from wukong.train import stream
from wukong.train.batches import Batch
from wukong.train.captions import Captions, drawn
from wukong.train.corpus import Corpus
from wukong.train.stream import Order, Piece, Sample

log = logging.getLogger(__name__)

_KEPT_TABLES = 256 << 20
"""Most bytes that a worker keeps of the shards' tables beyond the pieces in use."""

_Item = TypeVar("_Item")


class Kept(Generic[_Item]):
    """Items that were read of shards beyond one piece, until their next pieces are read.

    Args:
        most: number of bytes to keep.
    """

    def __init__(self, most: int) -> None:
        self._most, self._bytes = most, 0
        self._items: dict[object, tuple[int, _Item]] = {}
        self._lock = Lock()

    def take(self, key: object) -> _Item | None:
        """Return the item of a key, if it is kept, and keep it no longer."""
        with self._lock:
            size, item = self._items.pop(key, (0, None))
            self._bytes -= size
            return item

    def keep(self, key: object, item: _Item, size: int) -> None:
        """Keep an item of ``size`` bytes until it is taken; where there is no room for all, the oldest go."""
        with self._lock:
            self._bytes += size - self._items.pop(key, (0, item))[0]
            self._items[key] = (size, item)
            while self._bytes > self._most:
                self._bytes -= self._items.pop(next(iter(self._items)))[0]


@dataclass(frozen=True)
class Loaded:
    """The pairs of a piece, in memory.

    Attributes:
        numbers: numbers of the pairs in the corpus.
        keys: the pairs' keys.
        ids: token ids of each caption, without padding.
        captions: 64 bits of the hash of each caption, as a signed number.
        pictures: image features, float16 [views, pairs, ...]; or the bytes of each image file.
        where: URI of what was read, for messages.
        lost: numbers of the shards in whose place the pairs stand.
        several: by their rows, all captions of the pairs of which one is drawn in each epoch.
    """

    numbers: Sequence[int]
    keys: list[str]
    ids: list[list[int]]
    captions: list[int]
    pictures: Tensor | list[bytes]
    where: str = ""
    lost: tuple[int, ...] = ()
    several: Mapping[int, Captions] = field(default_factory=dict)

    def stretched(self, count: int, lost: Sequence[int]) -> "Loaded":
        """Return ``count`` of the pairs, the first ones again after the last, in the place of those of lost shards."""
        if count == len(self.keys):
            return replace(self, lost=tuple(lost))
        rows = [row % len(self.keys) for row in range(count)]
        return Loaded(
            [self.numbers[row] for row in rows],
            [self.keys[row] for row in rows],
            [self.ids[row] for row in rows],
            [self.captions[row] for row in rows],
            self.pictures[:, rows] if isinstance(self.pictures, Tensor) else [self.pictures[row] for row in rows],
            self.where,
            tuple(lost),
            {number: self.several[row] for number, row in enumerate(rows) if row in self.several},
        )

    def caption(self, row: int, seed: int, epoch: int) -> tuple[list[int], int]:
        """Return the token ids of the caption that a pair has in an epoch of a run, and its hash."""
        if (captions := self.several.get(row)) is None:
            return self.ids[row], self.captions[row]
        number = drawn(captions.counts, seed, epoch, self.keys[row])
        return captions.ids[number], captions.hashes[number]


class Pairs(ABC):
    """The pairs of a training run. A kind of pairs says how a piece is loaded, and how samples become batches.

    Args:
        rows: number of pairs of each shard.
        digest: digest of the data.
        tokenizer: the captions' tokenizer.
        max_lost_shards: number of shards that may be missing or damaged.

    Attributes:
        rows: number of pairs of each shard.
        digest: digest of the data.
        firsts: number in the corpus of each shard's first pair, and at last the number of all pairs.
        shards_in_use: number of shards that a worker reads at the same time.
    """

    def __init__(self, rows: Sequence[int], digest: str, tokenizer: Tokenizer, max_lost_shards: int = 0) -> None:
        self.rows, self.digest = tuple(rows), digest
        self._max_lost, self._lost, self._lock = max_lost_shards, set[int](), Lock()
        self._tables: Kept[tuple[int, pa.Table]] = Kept(_KEPT_TABLES)
        self.shards_in_use = 2
        self._seed = 0
        self.firsts: list[int] = np.cumsum([0, *rows]).tolist()
        self._tokenizer = tokenizer

    def __len__(self) -> int:
        return sum(self.rows)

    @abstractmethod
    def load(self, piece: Piece) -> Loaded:
        """Read the pairs of a piece; several threads call this at a time.

        Raises:
            DataError: what is stored is damaged.
            StorageError: it cannot be read.
        """

    def load_or_replace(self, piece: Piece) -> Loaded:
        """Load the pairs of a piece; if its shard is lost, load pairs of the next shard in their places.

        A shard is lost if its table, features or pictures are missing, cut off or altered; not if the whole store is
        away. As many pairs of the next shard that can be read stand in the places of the piece's pairs, at the same
        rows if it has as many; a smaller one is repeated. So the number of steps and the places of all other pairs stay
        as they are. Which pair stands in a place depends neither on the number of workers nor on where a run was
        interrupted, only on which shards can be read. Each piece is tried anew: a shard that was put back is read
        again.

        Raises:
            DataError: more shards are lost than may be.
            StorageError: the store is away.
        """
        count, lost = piece.stop - piece.start, list[int]()
        for shard in (*range(piece.shard, len(self.rows)), *range(piece.shard)):
            taken = min(count, self.rows[shard])
            start = min(piece.start, self.rows[shard] - taken)
            if taken:
                try:
                    loaded = self.load(Piece(shard, start, start + taken))
                    return loaded.stretched(count, lost) if lost else loaded
                except (DataError, StorageError) as error:
                    self.lose(shard, error)
                    lost.append(shard)
        raise DataError(f"none of the {len(lost)} shards can be read; the log says why")

    def lose(self, shard: int, error: DataError | StorageError) -> None:
        """Take note of a shard that is lost.

        Args:
            shard: number of the shard.
            error: the error that its reading has raised.

        Raises:
            DataError: more shards are lost than may be.
            StorageError: the store is away.
        """
        if isinstance(error, AwayError) or isinstance(error.__cause__, AwayError):
            raise error
        with self._lock:
            known = shard in self._lost
            self._lost.add(shard)
            lost = len(self._lost)
        if lost > self._max_lost:
            raise DataError(
                f"{error}. Shards that cannot be read: {lost}; max_lost_shards allows {self._max_lost}. Put back the "
                "files, or raise it: then other pairs stand in the places of theirs"
            ) from error
        if not known:
            log.warning("other pairs stand in the places of those of a shard: %s", error)

    @abstractmethod
    def assemble(self, steps: Generator[list[Sample[Loaded]]], share: int) -> Generator[Batch]:
        """Make a batch of the samples of each step; closing the iterator closes ``steps``.

        Args:
            steps: this worker's samples of each step.
            share: number of samples of a step.
        """

    def batches(
        self, size: int, seed: int, first: int = 0, rank: int = 0, workers: int = 1, last: int | None = None
    ) -> Generator[Batch]:
        """Iterate over this worker's share of the batches of a run; close the iterator to end the reading.

        The order is that of ``wukong.train.stream``.

        Args:
            size: number of pairs in a batch over all workers; the number of workers must divide it.
            seed: seed of the run.
            first: step of the run to begin with; epochs follow one another.
            rank: rank of this worker.
            workers: number of workers.
            last: step of the run to end before; None for the end of the first step's epoch.
        """
        order = Order(self.rows, self.digest, seed, size)
        if last is None:
            last = (first // order.steps + 1) * order.steps if order.steps else 0
        self.shards_in_use = 2 * len(order.lanes(rank, workers))
        self._seed = seed
        steps = stream.read(order, self.load_or_replace, first, last, rank, workers)
        with closing(self.assemble(steps, size // workers)) as batches:
            yield from batches

    def read_table(self, corpus: Corpus, piece: Piece) -> tuple[list[int], list[str], list[str], list[Any]]:
        """Read the table of a piece: its pairs' rows in the shard's table, their keys, their captions.

        At last what the column of several captions holds, if the training draws among them; else None for each pair.

        Raises:
            DataError: the table is damaged or was replaced.
            StorageError: it cannot be read, or was altered.
        """
        kept = self._tables.take(piece.shard)
        if kept is not None and kept[0] <= piece.start and piece.stop <= kept[0] + len(kept[1]):
            first, table = kept
        else:
            first, table = 0, corpus.pairs(piece.shard)
            room = _KEPT_TABLES // self.shards_in_use
            if table.nbytes > room:  # a copy of some rows, so that the others' memory is free
                first = piece.start
                stop = min(len(table), max(piece.stop, first + len(table) * room // table.nbytes))
                table = table.take(pa.array(np.arange(first, stop)))
        if piece.stop < first + len(table):
            self._tables.keep(piece.shard, (first, table), table.nbytes)
        chosen = table.slice(piece.start - first, piece.stop - piece.start)
        rows, keys, captions = (chosen[name].to_pylist() for name in ("row", "key", "caption"))
        return rows, keys, captions, chosen["captions"].to_pylist() if corpus.all_captions else [None] * len(keys)

    def loaded(
        self,
        piece: Piece,
        keys: list[str],
        captions: list[str],
        pictures: Tensor | list[bytes],
        where: str = "",
        several: Sequence[Sequence[Mapping[str, Any]] | None] = (),
    ) -> Loaded:
        """Return the pairs of a piece with tokenised captions; for the arguments see ``read_table`` and ``Loaded``."""
        first = self.firsts[piece.shard]
        numbers = range(first + piece.start, first + piece.stop)
        of_rows = {
            row: Captions(
                self._tokenizer.encode([each["caption"] for each in entries]),
                [_hash(each["caption"]) for each in entries],
                [each["count"] for each in entries],
            )
            for row, entries in enumerate(several)
            if entries
        }
        hashes = [_hash(caption) for caption in captions]
        return Loaded(numbers, keys, self._tokenizer.encode(captions), hashes, pictures, where, several=of_rows)

    def batch(self, samples: Sequence[Sample[Loaded]], pictures: Tensor, broken: int = 0) -> Batch:
        """Return the batch of a step.

        Args:
            samples: this worker's samples of the step.
            pictures: features or images of the samples, see ``Batch``.
            broken: number of images that could not be decoded.
        """
        captions = [sample.piece.caption(sample.row, self._seed, sample.epoch) for sample in samples]
        return Batch(
            pictures,
            self._tokenizer.collate([ids for ids, _ in captions]),
            torch.tensor([number for _, number in captions]),
            torch.tensor([sample.piece.numbers[sample.row] for sample in samples]),
            broken,
            frozenset(chain.from_iterable({sample.piece.lost for sample in samples})),
        )


def _hash(caption: str) -> int:
    return int.from_bytes(hashlib.blake2b(caption.encode(), digest_size=8).digest(), "little", signed=True)
