"""Files in which kept pairs wait for their shards, pictures and all, sorted into buckets of the shuffled order.

A file holds runs. A run is as many pairs as fit into memory, with a segment for each bucket or for some that follow one
another. So the reader of a bucket reads one piece of each run. At the end of the file is a table of the segments' ends.
"""

import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from wukong.errors import StorageError
from wukong.store import storage

RUN_BYTES = 128 << 20
"""About how many bytes of pictures a run and a bucket hold: a task holds one of them."""

FAN = 32
"""The most segments of a run in an object store. With more buckets, the pairs are divided in several rounds."""

FAN_ON_DISK = 256
"""The same on a disk: reading a small piece costs no request there, and each round takes the room of all pictures."""

Ends = npt.NDArray[np.int64]

_TRAILER = np.dtype("<i8")


@dataclass(frozen=True)
class Buckets:
    """The buckets of all splits, which are numbered through.

    Attributes:
        starts: by split, the positions at which its buckets begin.
    """

    starts: Mapping[str, npt.NDArray[np.int64]]

    @property
    def count(self) -> int:
        """The number of buckets."""
        return sum(map(len, self.starts.values()))

    def of(self, pairs: pl.DataFrame) -> npt.NDArray[np.int64]:
        """The number of each pair's bucket, from ``split`` and ``position``."""
        numbers, first = np.zeros(len(pairs), np.int64), 0
        for split, starts in self.starts.items():
            inside = (pairs["split"] == split).to_numpy()
            position = pairs["position"].to_numpy()[inside]
            numbers[inside] = first + np.searchsorted(starts, position, side="right") - 1
            first += len(starts)
        return numbers


@dataclass(frozen=True)
class Segments:
    """Which buckets the segments of a file hold: ``count`` segments of ``width`` buckets each, from ``first`` on."""

    first: int
    width: int
    count: int


@dataclass(frozen=True)
class File:
    """A complete file.

    Attributes:
        uri: where it is.
        ends: where each segment of each run ends, a row for each run; the first column is where the run begins.
    """

    uri: str
    ends: Ends

    def bytes_of(self, segment: int) -> int:
        """Bytes of a segment, in all runs."""
        return int((self.ends[:, segment + 1] - self.ends[:, segment]).sum())

    def places(self, segment: int) -> "Places":
        """Where a segment is."""
        return Places(self.uri, [(int(run[segment]), int(run[segment + 1])) for run in self.ends])


@dataclass(frozen=True)
class Places:
    """Pieces of a file that are read together: where each begins and ends, in bytes."""

    uri: str
    pieces: Sequence[tuple[int, int]]


def write(uri: str, runs: Iterable[pl.DataFrame], buckets: Buckets, segments: Segments) -> File:
    """Write pairs; each table of ``runs`` becomes a run.

    The file need not outlive the machine's power: it ends in its table, so one that is cut short is not ``complete``.
    """
    rows = []
    with storage.open_output(uri, synced=False) as stream:
        for pairs in runs:
            number = (buckets.of(pairs) - segments.first) // segments.width
            order = np.argsort(number, kind="stable")
            cuts = np.searchsorted(number[order], np.arange(segments.count + 1))
            ends = [stream.tell()]
            for low, high in pairwise(cuts):
                if low < high:
                    # Copied, not referred to: a slice would bring the bytes of its neighbours with it.
                    table = pairs[order[low:high]].to_arrow(compat_level=pl.CompatLevel.oldest())
                    with pa.ipc.new_stream(stream, table.schema) as writer:
                        writer.write_table(table)
                ends.append(stream.tell())
            rows.append(ends)
            del pairs  # before the next run is read
        table = np.array(rows, _TRAILER).reshape(len(rows), segments.count + 1)
        stream.write(table.tobytes() + np.array([len(rows), stream.tell()], _TRAILER).tobytes())
    return File(uri, table)


def complete(uri: str, segments: Segments) -> File | None:
    """Return a file that was written before; None if it is not there, or not all of it."""
    if not storage.exists(uri):
        return None
    with storage.open_input(uri) as stream:
        size = stream.seek(0, io.SEEK_END)
        if size < 2 * _TRAILER.itemsize:
            return None
        stream.seek(size - 2 * _TRAILER.itemsize)
        runs, end = np.frombuffer(stream.read(), _TRAILER)
        bytes_of_table = runs * (segments.count + 1) * _TRAILER.itemsize
        if end < 0 or runs < 0 or end + bytes_of_table + 2 * _TRAILER.itemsize != size:
            return None
        stream.seek(end)
        return File(uri, np.frombuffer(stream.read(bytes_of_table), _TRAILER).reshape(runs, segments.count + 1))


def read(places: Iterable[Places]) -> list[pl.DataFrame]:
    """Read the pairs of some segments: one table, or none if there are no pairs.

    Raises:
        StorageError: a file is cut short.
    """
    tables = []
    for place in places:
        pieces = [(start, end) for start, end in place.pieces if start < end]
        if pieces:
            with storage.open_input(place.uri) as stream:
                tables += [_table(stream, start, end, place.uri) for start, end in pieces]
    return [pl.concat(tables, rechunk=False)] if tables else []


def _table(stream: Any, start: int, end: int, uri: str) -> pl.DataFrame:
    data = stream.read_at(end - start, start)
    try:
        return pl.DataFrame(pl.from_arrow(pa.ipc.open_stream(data).read_all(), rechunk=False))
    except (pa.ArrowInvalid, OSError) as error:
        raise StorageError(f"{uri} is cut short ({error}): delete it and run the filter again") from error


@dataclass(frozen=True)
class Division:
    """A task that divides the pairs of some segments among the buckets that these hold."""

    places: Sequence[Places]
    segments: Segments


@dataclass(frozen=True)
class Span:
    """Files that together hold all pairs of the buckets of their segments."""

    segments: Segments
    files: Sequence[File]

    def places(self, bucket: int) -> list[Places]:
        """Where the pairs of a bucket are, once each segment holds one."""
        return [file.places(bucket - self.segments.first) for file in self.files]


def rounds(buckets: int, fan: int) -> list[int]:
    """How many buckets a segment holds after each round, so that no run has more than ``fan`` segments; 1 at last."""
    count = 1
    while fan**count < buckets:
        count += 1
    even = next(each for each in range(1, fan + 1) if each**count >= buckets)
    return [even**left for left in reversed(range(count))]


def first_round(buckets: int, width: int) -> Segments:
    """The segments of the files that are written from tars."""
    return Segments(0, width, -(-buckets // width))


def next_round(span: Span, buckets: int, width: int, run_bytes: int) -> list[list[Division]]:
    """Plan the division of each segment into narrower ones, by tasks that hold about ``run_bytes`` each.

    Args:
        span: what there is.
        buckets: how many there are in all.
        width: buckets of a segment afterwards.
        run_bytes: the limit; a task takes one file at least.
    """
    planned = []
    for number in range(span.segments.count):
        first = span.segments.first + number * span.segments.width
        narrower = Segments(first, width, -(-min(span.segments.width, buckets - first) // width))
        tasks: list[list[File]] = [[]]
        held = 0
        for file in span.files:
            if tasks[-1] and held + file.bytes_of(number) > run_bytes:
                tasks.append([])
                held = 0
            tasks[-1].append(file)
            held += file.bytes_of(number)
        planned.append([Division([file.places(number) for file in files], narrower) for files in tasks])
    return planned
