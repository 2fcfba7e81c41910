"""The order in which a training run sees its samples, and the reading of them. Pictures and stored features share it.

What always holds:

- A position is (epoch, sample): the number of the epoch and of the sample in it. A checkpoint stores nothing else of
  the stream.
- The order of an epoch is a function of the data's digest, the seed and the epoch, for the batch size of the run. It
  depends neither on the number of workers or loader processes nor on where a run was interrupted.
- The shares of all workers, joined in rank order, are the batch that a single worker would get.
- An epoch gives each sample at most once. Only the samples that do not fill the last batch are left out,
  other ones in each epoch.
- Where rows cannot be read, what the caller's ``load`` gives stands in their places (``Pairs.load_or_replace``); all
  others stay in theirs.
- Before the first step nothing is read. The order is computed from the numbers of rows of the shards.
- Shards are read in pieces of consecutive rows. Unless lanes are shared, no two workers read the same piece.
- A worker holds two windows of at most ``WINDOW`` rows for each of its lanes, however large the corpus is.

An epoch lays the shards in a random order, end to end, and cuts this sequence into lanes of equal length. A lane fills
the same ``LANE`` places of every batch, so it belongs to one worker. A lane is read window by window, and the rows of a
window are shuffled. A batch of 10,240 so mixes 320 windows of 128 rows, from as many shards. Rows that are far apart
in one shard do not meet in a window: the filter stage has put the pairs into a random order. The shuffle needs
several shards for each lane: a sample of the only shard of its lane is in the same part of every epoch. A corpus of at
most ``WHOLE`` rows is a single window: its order is a uniform shuffle, and it is read once and kept.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt

LANE = 32
"""Places of a batch that a lane fills; the last lanes of a batch size that it does not divide are smaller."""

WINDOW = 128
"""Most rows that are shuffled among one another. A worker holds two windows a lane: with images of 45 KB, 12 MB."""

WHOLE = 16_384
"""Most rows of a corpus that is one window."""

_READERS = 8
"""Pieces that a worker reads at the same time."""

_Loaded = TypeVar("_Loaded")
_Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Piece:
    """Consecutive rows of a shard: the number of the shard, the first row and the one after the last."""

    shard: int
    start: int
    stop: int


@dataclass(frozen=True)
class Window:
    """Rows of a lane that are shuffled among one another.

    Attributes:
        pieces: pieces that hold the rows.
        start: place of the first row in its lane.
        stop: place after the last.
    """

    pieces: tuple[Piece, ...]
    start: int
    stop: int


class Order:
    """The order of the samples in each epoch of a run.

    Args:
        rows: number of rows of each shard.
        data: digest of the data.
        seed: seed of the run.
        batch_size: samples of a batch, over all workers.

    Attributes:
        steps: number of batches of an epoch; the samples that do not fill one are left out.
    """

    def __init__(self, rows: Sequence[int], data: str, seed: int, batch_size: int) -> None:
        self._rows = np.asarray(rows, np.int64)
        self._identity = f"{data}:{seed}"
        self._epoch: tuple[int, _Numbers, _Numbers] = (-1, self._rows, self._rows)
        self.batch_size = batch_size
        self.steps = int(self._rows.sum()) // batch_size
        self._whole = int(self._rows.sum()) <= WHOLE
        lanes = 1 if self._whole else -(-batch_size // LANE)
        self._edges = [batch_size * lane // lanes for lane in range(lanes + 1)]

    def lanes(self, rank: int, workers: int) -> list[tuple[int, int, int]]:
        """Return the lanes of a worker, each with the first of its places in the lane's share of a batch, and the end.

        Args:
            rank: rank of the worker.
            workers: number of workers; it divides the batch size.
        """
        share = self.batch_size // workers
        low, high = rank * share, (rank + 1) * share
        shares = []
        for lane, (start, stop) in enumerate(zip(self._edges, self._edges[1:], strict=False)):
            if start < high and stop > low:
                shares.append((lane, max(start, low) - start, min(stop, high) - start))
        return shares

    def width(self, lane: int) -> int:
        """Return the number of samples of a lane in each batch."""
        return self._edges[lane + 1] - self._edges[lane]

    def windows(self, epoch: int, lane: int, place: int = 0) -> Iterator[Window]:
        """Iterate over the windows of a lane in an epoch, from the one that holds a place."""
        if self._whole:
            pieces = (Piece(shard, 0, int(rows)) for shard, rows in enumerate(self._rows) if rows)
            yield Window(tuple(pieces), 0, int(self._rows.sum()))
            return
        shards, ends = self._sequence(epoch)
        low, high = (self.steps * edge for edge in self._edges[lane : lane + 2])
        at = low + place
        number = int(np.searchsorted(ends, at, side="right"))
        while at < high:
            while ends[number] <= at:
                number += 1
            shard, end = int(shards[number]), int(ends[number])
            begin = end - int(self._rows[shard])
            window = begin + (at - begin) // WINDOW * WINDOW
            first, last = max(low, window), min(high, end, window + WINDOW)
            yield Window((Piece(shard, first - begin, last - begin),), first - low, last - low)
            at = last

    def shuffled(self, epoch: int, lane: int, window: Window) -> tuple[_Numbers, npt.NDArray[np.uint64]]:
        """Return the order of a window's rows, and for each place a random number of 64 bits."""
        rows = sum(piece.stop - piece.start for piece in window.pieces)
        drawn = self._random(rows * 2, "window", epoch, lane, window.start)
        return np.argsort(drawn[:rows], kind="stable"), drawn[rows:]

    def _sequence(self, epoch: int) -> tuple[_Numbers, _Numbers]:
        """Return the shards in the order of an epoch, and for each the place after its last row."""
        if self._epoch[0] != epoch:
            shards = np.argsort(self._random(len(self._rows), "shards", epoch), kind="stable")
            self._epoch = (epoch, shards, np.cumsum(self._rows[shards]))
        return self._epoch[1:]

    def _random(self, count: int, *purpose: object) -> npt.NDArray[np.uint64]:
        # Of numpy's generators, only the raw numbers are the same in every version; so no permutation is drawn.
        key = hashlib.sha256(":".join([self._identity, *map(str, purpose)]).encode()).digest()[:16]
        return np.random.Philox(key=int.from_bytes(key, "little")).random_raw(count)


@dataclass(frozen=True)
class Sample(Generic[_Loaded]):
    """One sample of a batch.

    Attributes:
        piece: the loaded piece that holds it.
        row: its row in the piece.
        epoch: number of the epoch, 0 for the first.
        drawn: a random number of 64 bits, for what is chosen at random for the sample in this epoch.
    """

    piece: _Loaded
    row: int
    epoch: int
    drawn: int


def read(
    order: Order, load: Callable[[Piece], _Loaded], first: int, last: int, rank: int = 0, workers: int = 1
) -> Generator[list[Sample[_Loaded]]]:
    """Iterate over this worker's samples of each step, while threads read what comes next.

    Args:
        order: the order of the samples.
        load: reads a piece; it is called in several threads.
        first: step of the run to begin with. The first step of epoch e is ``e * order.steps``.
        last: step of the run to end before.
        rank: rank of this worker.
        workers: number of workers.

    Raises:
        Exception: what ``load`` raised, when the sample is needed.
    """
    if first >= last:
        return
    readers = ThreadPoolExecutor(_READERS, thread_name_prefix="read")
    try:
        pieces = _Pieces(load, readers)
        shares = order.lanes(rank, workers)
        lanes = [_Lane(order, lane, first, last, pieces) for lane, _, _ in shares]
        for step in range(first, last):
            samples: list[Sample[_Loaded]] = []
            for lane, (number, start, stop) in zip(lanes, shares, strict=True):
                begin = step % order.steps * order.width(number)
                samples += lane.samples(step // order.steps, begin + start, begin + stop)
            yield samples
            if step == first:
                # Not before: what is read ahead would make the first batch wait.
                for lane in lanes:
                    lane.read_ahead()
    finally:
        readers.shutdown(wait=False, cancel_futures=True)


class _Pieces(Generic[_Loaded]):
    """The pieces that are being read or are in use; each is in memory once, and gone when nobody uses it."""

    def __init__(self, load: Callable[[Piece], _Loaded], readers: ThreadPoolExecutor) -> None:
        self._load = load
        self._readers = readers
        self._futures: dict[Piece, Future[_Loaded]] = {}
        self._users: Counter[Piece] = Counter()

    def request(self, window: Window) -> list[Future[_Loaded]]:
        self._users.update(window.pieces)
        for piece in window.pieces:
            if piece not in self._futures:
                self._futures[piece] = self._readers.submit(self._load, piece)
        return [self._futures[piece] for piece in window.pieces]

    def release(self, window: Window) -> None:
        self._users.subtract(window.pieces)
        for piece in window.pieces:
            if not self._users[piece]:
                del self._futures[piece], self._users[piece]


class _Lane(Generic[_Loaded]):
    """A lane while it is read: the window in use, and the next, which is being read after the first step."""

    def __init__(self, order: Order, lane: int, first: int, last: int, pieces: _Pieces[_Loaded]) -> None:
        self._order, self._lane, self._pieces = order, lane, pieces
        self._windows = self._all_windows(first, last)
        self._used: tuple[int, Window] | None = None
        self._next: tuple[int, Window] | None = None
        self.read_ahead()

    def _all_windows(self, first: int, last: int) -> Iterator[tuple[int, Window]]:
        steps, width = self._order.steps, self._order.width(self._lane)
        place = first % steps * width
        for epoch in range(first // steps, -(-last // steps)):
            yield from ((epoch, window) for window in self._order.windows(epoch, self._lane, place))
            place = 0

    def read_ahead(self) -> None:
        """Begin to read the next window, unless it is being read already."""
        if self._next is None:
            self._next = next(self._windows, None)
            self._reading = self._pieces.request(self._next[1]) if self._next else []

    def use_next(self) -> None:
        """Take the next window into use."""
        self.read_ahead()
        if self._next is None:
            raise IndexError(f"lane {self._lane} has ended")
        before, self._used, self._futures = self._used, self._next, self._reading
        self._next, self._reading = None, []
        epoch, window = self._used
        self._rows, self._drawn = self._order.shuffled(epoch, self._lane, window)
        self._starts = np.cumsum([0, *(piece.stop - piece.start for piece in window.pieces)])
        if before is not None:
            self.read_ahead()  # before the release: a piece that both windows need is not read twice
            self._pieces.release(before[1])

    def samples(self, epoch: int, start: int, stop: int) -> Iterator[Sample[_Loaded]]:
        """Iterate over the samples at places of the lane; places are asked for in ascending order."""
        while start < stop:
            while self._used is None or epoch != self._used[0] or start >= self._used[1].stop:
                self.use_next()
            window = self._used[1]
            end = min(stop, window.stop)
            chosen = slice(start - window.start, end - window.start)
            rows = self._rows[chosen]
            pieces = np.searchsorted(self._starts, rows, side="right") - 1
            within = rows - self._starts[pieces]
            for piece, row, drawn in zip(pieces.tolist(), within.tolist(), self._drawn[chosen].tolist(), strict=True):
                yield Sample(self._futures[piece].result(), row, epoch, drawn)
            start = end
