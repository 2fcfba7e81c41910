"""The input of a training run: image features or images with tokenised captions, batch after batch.

``wukong.train.stream`` decides the order and reads pieces of shards. This module says what a piece holds, and makes
batches of it.
"""

import fnmatch
import hashlib
import logging
import re
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from threading import Lock
from typing import Generic, TypeVar

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from wukong import storage
from wukong.config import ImageEncoder, Training
from wukong.data import shards
from wukong.data.tokenizer import Tokenizer
from wukong.data.views import Encoded, Views, batches
from wukong.errors import DataError, StorageError
from wukong.manifest import Manifest, digest_of
from wukong.patience import AwayError
from wukong.train import features, stream
from wukong.train.features import read_views
from wukong.train.stream import Order, Piece, Sample

_READERS = 8
"""Tables that are read in parallel to count rows."""
_BLOCK_BYTES = 2 << 20
"""Most that is read at a time of a file of features."""
_KEPT_FEATURES = 1 << 30
"""Most bytes that a worker keeps of files of features beyond the pieces in use. Where its lanes have many shards and
views, less is read at a time, so that all of them have room."""
_KEPT_TABLES = 256 << 20
"""The same for the shards' tables."""
_KEPT_ENDS = 1 << 16
"""Shards of which a worker keeps where its last piece ended: two numbers each."""
_KEY_BYTES = 80
"""Of a key in memory."""
_AHEAD, _AHEAD_BYTES = 4, 512 << 20
"""Most batches of stored features that are made before they are needed, and their bytes; one is in any case."""

_Item = TypeVar("_Item")
_Shown = tuple[Tensor, list[tuple[int, str]]]
"""Views, and the places of those that are broken, which are black, with what is wrong."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Batch:
    """One worker's pairs of one training step.

    Attributes:
        features: image features, float [pairs, width] or [pairs, tokens, width]; or images, uint8
            [pairs, 3, size, size].
        ids: token ids, int64 [pairs, longest caption].
        captions: int64 [pairs], equal numbers for equal captions: 64 bits of a hash.
        rows: int64 [pairs], the numbers of the pairs in the corpus.
        broken: images that could not be decoded; another pair stands in the place of each.
        lost: numbers of shards that could not be read and have places in this batch, or were to stand in them; see
            ``Pairs.load_or_replace``.
    """

    features: Tensor
    ids: Tensor
    captions: Tensor
    rows: Tensor
    broken: int = 0
    lost: frozenset[int] = frozenset()

    def to(self, device: torch.device) -> "Batch":
        """Copy the batch to a device; a GPU copies beside its other work."""
        if device.type == "cpu":
            return self
        features, ids, captions = (
            (each if each.is_pinned() else each.pin_memory()).to(device, non_blocking=True)
            for each in (self.features, self.ids, self.captions)
        )
        return Batch(features, ids, captions, self.rows, self.broken, self.lost)


@dataclass(frozen=True)
class Corpus:
    """The pairs that a training run reads, as the filter stage wrote them.

    Attributes:
        prefix: URI of the filter stage's output.
        names: names of the shards, for instance ``00000``.
        rows: number of pairs of each shard that are trained on.
        digest: digest of the data; it decides the order.
        sources: shell patterns; only pairs whose URL matches one of them are trained on.
        split: ``train``.
        tables: SHA-256 of each shard's table; empty where they are not known and not checked.
    """

    prefix: str
    names: tuple[str, ...]
    rows: tuple[int, ...]
    digest: str
    sources: tuple[str, ...] = ("*",)
    split: str = "train"
    tables: tuple[str, ...] = ()

    @classmethod
    def of(cls, filtered: Manifest, sources: tuple[str, ...] = ("*",), rows: Sequence[int] | None = None) -> "Corpus":
        """Return the training pairs of a filter stage.

        Args:
            filtered: the filter's manifest.
            sources: shell patterns; only pairs whose URL matches one of them are trained on.
            rows: number of those pairs of each shard, from ``count_rows``; None to count them here, which reads the
                tables of all shards unless all sources are wanted.

        Raises:
            DataError: no pair matches.
        """
        names = shards.names_of(filtered, "train")
        parts = {part.path: part for part in filtered.parts if part.path.startswith("train/")}
        if rows is None and sources == ("*",):
            rows = [parts[f"train/{name}.parquet"].rows for name in names]
        elif rows is None:
            rows = count_rows(filtered.uri, "train", names, sources)
        identity = [[part.path, part.rows, part.sha256] for part in parts.values()]
        tables = tuple(parts[f"train/{name}.parquet"].sha256 for name in names)
        return cls(filtered.uri, tuple(names), tuple(rows), digest_of([identity, sources]), sources, tables=tables)

    def uri(self, shard: int, suffix: str) -> str:
        """Return the URI of a shard's ``.parquet`` or ``.tar``."""
        return storage.join(self.prefix, self.split, f"{self.names[shard]}{suffix}")

    def pairs(self, shard: int) -> pa.Table:
        """Read the pairs of a shard: ``row``, their rows in its table, ``key`` and ``caption``.

        Raises:
            DataError: the table is damaged, or has another number of pairs than it had when they were counted.
            StorageError: it cannot be read, or was altered.
        """
        uri = self.uri(shard, ".parquet")
        columns = ["key", "caption"] if self.sources == ("*",) else ["key", "caption", "url"]
        table = storage.read_table(uri, columns, *([self.tables[shard]] if self.tables else []))
        try:
            table.validate(full=True)
            rows = list(range(len(table))) if self.sources == ("*",) else _chosen(table, self.sources)
        except (pa.ArrowInvalid, UnicodeDecodeError) as error:
            raise DataError(f"{uri} is damaged ({error}); delete it and run its stage again") from error
        if len(rows) != self.rows[shard]:
            raise DataError(
                f"{uri} has {len(rows)} pairs to train on and had {self.rows[shard]} when they were counted: the "
                "shard was replaced; start the training again"
            )
        numbers = pa.array(rows, pa.int64())
        return table.select(["key", "caption"]).take(numbers).add_column(0, "row", numbers)


def count_rows(prefix: str, split: str, names: Sequence[str], sources: Sequence[str]) -> list[int]:
    """Count the pairs of each shard whose URL matches one of some shell patterns.

    Raises:
        DataError: no pair matches.
    """

    def count(name: str) -> int:
        table = storage.read_table(storage.join(prefix, split, f"{name}.parquet"), ["url"])
        return len(_chosen(table, sources))

    with ThreadPoolExecutor(_READERS) as readers:
        rows = list(readers.map(count, names))
    if not sum(rows):
        raise _no_match(split, sources)
    return rows


class _Kept(Generic[_Item]):
    """What was read of shards beyond one piece, until their next pieces are read.

    Args:
        most: bytes to keep.
    """

    def __init__(self, most: int) -> None:
        self._most, self._bytes = most, 0
        self._items: dict[object, tuple[int, _Item]] = {}
        self._lock = Lock()

    def take(self, of: object) -> _Item | None:
        """Return what is kept of something, and keep it no longer."""
        with self._lock:
            size, item = self._items.pop(of, (0, None))
            self._bytes -= size
            return item

    def keep(self, of: object, item: _Item, size: int) -> None:
        """Keep an item of some bytes until it is taken; where there is no room for all, the oldest go."""
        with self._lock:
            self._bytes += size - self._items.pop(of, (0, item))[0]
            self._items[of] = (size, item)
            while self._bytes > self._most:
                self._bytes -= self._items.pop(next(iter(self._items)))[0]


@dataclass(frozen=True)
class Loaded:
    """The pairs of a piece, in memory.

    Attributes:
        numbers: of the pairs in the corpus.
        keys: the pairs' keys.
        ids: token ids of each caption, without padding.
        captions: for each caption 64 bits of its hash, as a signed number.
        pictures: image features, float16 [views, pairs, ...]; or the bytes of each image file.
        where: URI of what was read, for messages.
        lost: numbers of the shards in whose place the pairs stand.
    """

    numbers: Sequence[int]
    keys: list[str]
    ids: list[list[int]]
    captions: list[int]
    pictures: Tensor | list[bytes]
    where: str = ""
    lost: tuple[int, ...] = ()

    def stretched(self, count: int, lost: Sequence[int]) -> "Loaded":
        """Return so many pairs, beginning again after the last, which stand in the place of those of lost shards."""
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
        )


class Pairs(ABC):
    """The pairs of a training run.

    Args:
        rows: number of pairs of each shard.
        digest: digest of the data.
        tokenizer: the captions' tokenizer.
        max_lost_shards: shards that may be missing or damaged.
    """

    def __init__(self, rows: Sequence[int], digest: str, tokenizer: Tokenizer, max_lost_shards: int = 0) -> None:
        self.rows, self.digest = tuple(rows), digest
        self._max_lost, self._lost, self._lock = max_lost_shards, set[int](), Lock()
        self._tables: _Kept[tuple[int, pa.Table]] = _Kept(_KEPT_TABLES)
        self._shards_in_use = 2
        self._firsts = np.cumsum([0, *rows]).tolist()
        self._tokenizer = tokenizer
        self._special = torch.tensor([tokenizer.pad, tokenizer.cls, tokenizer.sep])

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
        """Read the pairs of a piece; if its shard is lost, read pairs of another that stand in their places.

        A shard is lost if what is asked of it is missing, cut off or altered; not if the whole store is away. As many
        pairs of the next shard that can be read stand in the places of the piece's pairs, at the same rows if it has
        as many; a smaller one is repeated. So the number of steps and the places of all other pairs stay as they are.
        What stands in a place depends neither on the number of workers nor on where a run was interrupted, only on
        what can be read. Each piece is tried anew: a shard that was put back is read again.

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
                    self._lose(shard, error)
                    lost.append(shard)
        raise DataError(f"none of the {len(lost)} shards can be read; the log says why")

    def _lose(self, shard: int, error: DataError | StorageError) -> None:
        """Take note of a shard that is lost, and raise an error if these are too many."""
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
    def _made(self, steps: Generator[list[Sample[Loaded]]], share: int) -> Generator[Batch]:
        """Make the batches of steps; each has ``share`` samples."""

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
        self._shards_in_use = 2 * len(order.lanes(rank, workers))
        steps = stream.read(order, self.load_or_replace, first, last, rank, workers)
        with closing(self._made(steps, size // workers)) as made:
            yield from made

    def _pairs(self, corpus: Corpus, piece: Piece) -> tuple[list[int], list[str], list[str]]:
        """Read the pairs of a piece: their rows in the shard's table, their keys and their captions."""
        kept = self._tables.take(piece.shard)
        if kept is not None and kept[0] <= piece.start and piece.stop <= kept[0] + len(kept[1]):
            first, table = kept
        else:
            first, table = 0, corpus.pairs(piece.shard)
            room = _KEPT_TABLES // self._shards_in_use
            if table.nbytes > room:  # a copy of some rows, so that the others' memory is free
                first = piece.start
                stop = min(len(table), max(piece.stop, first + len(table) * room // table.nbytes))
                table = table.take(pa.array(np.arange(first, stop)))
        if piece.stop < first + len(table):
            self._tables.keep(piece.shard, (first, table), table.nbytes)
        chosen = table.slice(piece.start - first, piece.stop - piece.start)
        return chosen["row"].to_pylist(), chosen["key"].to_pylist(), chosen["caption"].to_pylist()

    def mask_tokens(self, ids: Tensor, share: float) -> Tensor:
        """Replace a random share of the word pieces, but no special tokens, by [MASK].

        The random numbers come from torch's global generator of the device of the token ids.
        """
        chosen = (torch.rand(ids.shape, device=ids.device) < share) & ~torch.isin(ids, self._special.to(ids.device))
        return ids.masked_fill(chosen, self._tokenizer.mask)

    def _loaded(
        self, piece: Piece, keys: list[str], captions: list[str], pictures: Tensor | list[bytes], where: str = ""
    ) -> Loaded:
        hashes = (hashlib.blake2b(caption.encode(), digest_size=8).digest() for caption in captions)
        hashed = [int.from_bytes(digest, "little", signed=True) for digest in hashes]
        first = self._firsts[piece.shard]
        numbers = range(first + piece.start, first + piece.stop)
        return Loaded(numbers, keys, self._tokenizer.encode(captions), hashed, pictures, where)

    def _batch(
        self, samples: Sequence[Sample[Loaded]], pictures: Tensor, lost: frozenset[int], broken: int = 0
    ) -> Batch:
        return Batch(
            pictures,
            self._tokenizer.collate([sample.piece.ids[sample.row] for sample in samples]),
            torch.tensor([sample.piece.captions[sample.row] for sample in samples]),
            torch.tensor([sample.piece.numbers[sample.row] for sample in samples]),
            broken,
            lost,
        )


def _lost(samples: Sequence[Sample[Loaded]]) -> frozenset[int]:
    """Return the numbers of the shards in whose place some samples stand."""
    return frozenset(chain.from_iterable({sample.piece.lost for sample in samples}))


class FeaturePairs(Pairs):
    """Pairs with stored features of their images; each epoch chooses one of the views at random for each pair.

    Args:
        corpus: the pairs.
        tokenizer: the captions' tokenizer.
        prefix: URI of the features stage's output.
        views: numbers of the views to choose from.
        max_lost_shards: shards that may be missing or damaged.
    """

    def __init__(
        self, corpus: Corpus, tokenizer: Tokenizer, prefix: str, views: Sequence[int], max_lost_shards: int = 0
    ) -> None:
        super().__init__(corpus.rows, corpus.digest, tokenizer, max_lost_shards)
        self._corpus, self._prefix, self._views = corpus, prefix, tuple(views)
        self._blocks: _Kept[tuple[int, list[str], Tensor]] = _Kept(_KEPT_FEATURES)

    def load(self, piece: Piece) -> Loaded:  # noqa: D102 - as above
        rows, keys, captions = self._pairs(self._corpus, piece)
        views = [self._view(piece.shard, rows, keys, view) for view in self._views]
        return self._loaded(piece, keys, captions, torch.stack(views))

    def _view(self, shard: int, rows: list[int], keys: list[str], view: int) -> Tensor:
        uri = storage.join(self._prefix, features.path_of(self._corpus.split, self._corpus.names[shard], view))
        first, stop = rows[0], rows[-1] + 1
        if (kept := self._blocks.take(uri)) is not None and kept[0] <= first and stop <= kept[0] + len(kept[1]):
            first, stored, values = kept
        else:
            room = _KEPT_FEATURES // (self._shards_in_use * len(self._views))
            stored, values = features.read_rows(uri, first, stop, min(_BLOCK_BYTES, room))
        if stop < first + len(stored):
            self._blocks.keep(uri, (first, stored, values), values.nbytes + _KEY_BYTES * len(stored))
        within = [row - first for row in rows]
        if [stored[row] for row in within] != keys:
            raise DataError(
                f"{uri} has the features of other pairs than {self._corpus.uri(shard, '.parquet')}: delete "
                f"{self._prefix} and run it again"
            )
        values = values[within]
        finite = torch.isfinite(values).flatten(1).all(1)
        if not finite.all():
            key = keys[int((~finite).nonzero()[0])]
            raise DataError(
                f"the image features of the pair {key} in {uri} are not finite: delete the output of the features "
                "stage and run again"
            )
        return values

    def sample(self, count: int, view: int = 0) -> Tensor:
        """Read features of one view of the first pairs, float16 [pairs, ...].

        Shards hold pairs in random order, so the first pairs are a random sample.

        Args:
            count: number of pairs; fewer if the corpus has fewer.
            view: number of the view.

        Raises:
            DataError: more shards are lost than may be.
        """
        found: list[Tensor] = []
        left = count
        for shard, rows in enumerate(self.rows):
            if rows and left:
                try:
                    taken, keys, _ = self._pairs(self._corpus, Piece(shard, 0, min(rows, left)))
                    found.append(self._view(shard, taken, keys, view))
                    left -= len(taken)
                except (DataError, StorageError) as error:
                    self._lose(shard, error)
        if not found:
            raise DataError(f"none of the {len(self.rows)} shards can be read; the log says why")
        return torch.cat(found)

    def _made(self, steps: Generator[list[Sample[Loaded]]], _share: int) -> Generator[Batch]:
        def made() -> Generator[Batch]:
            with closing(steps):
                for samples in steps:
                    yield self._batch(samples, _chosen_views(samples), _lost(samples))

        return _ahead(made(), _AHEAD, _AHEAD_BYTES)


def _chosen_views(samples: Sequence[Sample[Loaded]]) -> Tensor:
    """Return the features of one view of each sample, float [samples, ...]."""
    places: dict[int, list[int]] = {}
    for place, sample in enumerate(samples):
        places.setdefault(id(sample.piece), []).append(place)
    found = torch.empty(0)
    for chosen in places.values():
        of_piece = [samples[place] for place in chosen]
        stored = of_piece[0].piece.pictures
        assert isinstance(stored, Tensor)  # noqa: S101 - for mypy
        views, rows = [sample.drawn % len(stored) for sample in of_piece], [sample.row for sample in of_piece]
        if not len(found):
            found = torch.empty(len(samples), *stored.shape[2:])
        found[chosen] = stored[views, rows].float()
    return found


class PicturePairs(Pairs):
    """Pairs with their images, which loader processes decode and augment, with a new random view in each epoch.

    A view depends only on the image's key and the epoch, not on the process that computes it.

    Args:
        corpus: the pairs.
        tokenizer: the captions' tokenizer.
        tower: settings of the image encoder; ``image_size`` and ``view`` are used.
        settings: settings of the training; ``augmentations``, ``loader_workers``, ``max_broken_pictures`` and
            ``max_lost_shards`` are used.
    """

    def __init__(self, corpus: Corpus, tokenizer: Tokenizer, tower: ImageEncoder, settings: Training) -> None:
        super().__init__(corpus.rows, corpus.digest, tokenizer, settings.max_lost_shards)
        self._corpus = corpus
        self._views = Views(tower, settings.augmentations, skip_broken=settings.max_broken_pictures > 0)
        self._workers = settings.loader_workers
        self._ends: _Kept[tuple[int, int]] = _Kept(_KEPT_ENDS)
        self._most_broken = settings.max_broken_pictures
        self._side = tower.image_size

    def load(self, piece: Piece) -> Loaded:  # noqa: D102 - as above
        rows, keys, captions = self._pairs(self._corpus, piece)
        uri = self._corpus.uri(piece.shard, ".tar")
        # Of a shard that is read in several pieces, the next begins where this one ends.
        number, start = self._ends.take(piece.shard) or (0, 0)
        if number > rows[0]:
            number, start = 0, 0
        wanted = set(rows)
        found: list[bytes] = []
        for member in shards.members(uri, start):
            if member.suffix == "jpg":
                if number in wanted:
                    if member.key != keys[len(found)]:
                        raise self._lacks(keys[len(found)], uri)
                    found.append(member.read())
                number += 1
                if number > rows[-1]:
                    if piece.stop < self.rows[piece.shard]:
                        self._ends.keep(piece.shard, (number, member.end), 1)
                    break
        if len(found) < len(keys):
            raise self._lacks(keys[len(found)], uri)
        return self._loaded(piece, keys, captions, found, uri)

    def _lacks(self, key: str, uri: str) -> DataError:
        return DataError(
            f"{uri} lacks the picture of the pair {key}, or has it in another place than its table: delete the shard "
            "and run the filter again"
        )

    def _made(self, steps: Generator[list[Sample[Loaded]]], share: int) -> Generator[Batch]:
        waiting: deque[list[Sample[Loaded]]] = deque()

        def orders() -> Iterator[list[Encoded]]:
            for samples in steps:
                waiting.append(samples)
                yield [_encoded(sample) for sample in samples]

        pin, join = torch.cuda.is_available(), partial(_with_gaps, self._side)
        with closing(steps):
            for views, broken in batches(self._views, orders(), join, share, self._workers, pin=pin):
                samples = waiting.popleft()
                for place, problem in broken:
                    log.warning("another pair takes the place of one: %s", problem)
                    samples[place], views[place] = self._stand_in(samples[place], problem)
                yield self._batch(samples, views, _lost(samples), len(broken))

    def _stand_in(self, broken: Sample[Loaded], problem: str) -> tuple[Sample[Loaded], Tensor]:
        """Return the pair that takes the place of one whose image is broken, and its view.

        It is the next one of the corpus whose image can be decoded, counted from the broken one: first in what was read
        with it, which depends on the order of the pairs alone, not on how many workers share a batch.
        """
        tried = 0
        for sample in self._followers(broken):
            view = self._views[_encoded(sample)]
            if isinstance(view, Tensor):
                return sample, view
            tried += 1
            if tried > self._most_broken:
                break
        raise DataError(
            f"{problem}; and of the {tried} pairs behind it none has an image that can be decoded, where "
            f"max_broken_pictures is {self._most_broken}: mend the shards or raise it"
        )

    def _followers(self, sample: Sample[Loaded]) -> Iterator[Sample[Loaded]]:
        """Iterate over the other pairs: of the same piece from the sample on, then of the shards from its own on."""
        piece = sample.piece
        for step in range(1, len(piece.keys)):
            yield replace(sample, row=(sample.row + step) % len(piece.keys))
        own = bisect_right(self._firsts, piece.numbers[sample.row]) - 1
        for shard in (*range(own, len(self.rows)), *range(own)):
            for start in range(0, self.rows[shard], stream.WINDOW):
                stop = min(start + stream.WINDOW, self.rows[shard])
                other = self.load_or_replace(Piece(shard, start, stop))
                yield from (replace(sample, piece=other, row=row) for row in range(len(other.keys)))


def _encoded(sample: Sample[Loaded]) -> Encoded:
    piece, row = sample.piece, sample.row
    data = piece.pictures[row]
    assert isinstance(data, bytes)  # noqa: S101 - for mypy
    return data, piece.keys[row], sample.epoch + 1, f"{piece.keys[row]}.jpg of {piece.where}"


def _with_gaps(side: int, shown: Sequence["Tensor | str"]) -> _Shown:
    """Join the views of a batch, uint8 [views, 3, side, side]; a black one keeps the place of a broken image."""
    black = torch.zeros(3, side, side, dtype=torch.uint8)
    broken = [(place, problem) for place, problem in enumerate(shown) if isinstance(problem, str)]
    return torch.stack([view if isinstance(view, Tensor) else black for view in shown]), broken


def _ahead(made: Generator[Batch], count: int, most: int) -> Generator[Batch]:
    """Iterate over batches that a thread makes, up to ``count`` and ``most`` bytes of them before they are needed."""
    maker = ThreadPoolExecutor(1, thread_name_prefix="batches")
    waiting = deque([maker.submit(next, made, None)])
    try:
        while (batch := waiting.popleft().result()) is not None:
            room = max(1, min(count, most // max(batch.features.nbytes, 1)))
            waiting.extend(maker.submit(next, made, None) for _ in range(room - len(waiting)))
            yield batch
    finally:
        for future in waiting:
            future.cancel()
        maker.submit(made.close)
        maker.shutdown(wait=False)


def matching(urls: Sequence[str], patterns: Sequence[str]) -> list[bool]:
    """Return, for each URL, whether it matches one of the shell patterns."""
    match = re.compile("|".join(map(fnmatch.translate, patterns))).match
    return [match(url) is not None for url in urls]


def load(
    pairs_prefix: str,
    features_prefix: str,
    split: str,
    shard_names: Sequence[str],
    views: Sequence[int],
    sources: Sequence[str] = ("*",),
) -> tuple[pa.Table, Tensor]:
    """Read the pairs of a split with their image features.

    Args:
        pairs_prefix: URI of the filter stage's output.
        features_prefix: URI of the features stage's output.
        split: ``train`` or a hold-out's name.
        shard_names: names of the shards, for instance ``00000``.
        views: numbers of the views.
        sources: shell patterns; only pairs whose URL matches one of them are read.

    Returns:
        The rows (key, url, caption, sha256) and the features, float16 [views, rows, ...], in the same order.

    Raises:
        DataError: a pair has no features, or no pair matches.
    """
    table = _rows(pairs_prefix, split, shard_names, sources)
    keys, features = read_views(features_prefix, split, shard_names, views)
    places = {key: place for place, key in enumerate(keys)}
    try:
        rows = [places[key] for key in table["key"].to_pylist()]
    except KeyError as error:
        raise DataError(
            f"{features_prefix} has no features for the pair {error} of {split}: delete it and run again"
        ) from None
    return table, features[:, rows]


def _rows(pairs_prefix: str, split: str, shard_names: Sequence[str], sources: Sequence[str]) -> pa.Table:
    columns = ["key", "url", "caption", "sha256"]
    table = pa.concat_tables(
        storage.read_table(storage.join(pairs_prefix, split, f"{shard}.parquet"), columns) for shard in shard_names
    )
    chosen = _chosen(table, sources)
    if not chosen:
        raise _no_match(split, sources)
    return table.take(pa.array(chosen, pa.int64()))


def _chosen(table: pa.Table, sources: Sequence[str]) -> list[int]:
    """Return the rows of a table whose URL matches one of the patterns."""
    return [row for row, wanted in enumerate(matching(table["url"].to_pylist(), sources)) if wanted]


def _no_match(split: str, sources: Sequence[str]) -> DataError:
    return DataError(f"no pair of {split} comes from {', '.join(sources)}: correct these patterns on its URL")
