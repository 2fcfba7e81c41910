"""The exchange of rows between many tasks: each writes a sorted file, and each range of keys is read whole.

If the reader of each range opened the file of each writer, files would be opened as often as ranges times writers. So
the files are merged in rounds, by tasks that open at most ``FAN`` files each. The first round merges neighbouring files
whole. Then the keys are divided into spans, and each span is merged by itself. A round opens about as many files as the
writers wrote, and leaves a ``FAN``-th of them to the reader of a range. A task holds the rows of one merge, whatever
the number of files.

Nothing here knows who does the merges: ``rounds`` says which there are, ``merge`` does one.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from wukong.errors import StorageError
from wukong.store import damage, storage

Key = int | str
"""A key: an unsigned number or a text. The keys of one exchange are of one kind."""

FAN = 32
"""The most files that a merge or the reader of a range opens."""

_ROW_GROUP = 8_192
_WHOLE = 1 << 20  # bytes up to which a file is read in one request


@dataclass(frozen=True)
class File:
    """A table in a file, sorted by its first column, which is the key; ``rows`` may be estimated."""

    uri: str
    rows: int


@dataclass(frozen=True)
class Source:
    """The rows of some sorted files with ``low <= key < high``; None is no limit."""

    files: tuple[str, ...]
    low: Key | None
    high: Key | None

    def read(self) -> pl.DataFrame:
        """Read these rows, and no row groups without any of them.

        Raises:
            StorageError: a file cannot be read.
        """
        tables = [_read(uri, self.low, self.high) for uri in self.files]
        return pl.concat(tables) if tables else pl.DataFrame()


@dataclass(frozen=True)
class Merge:
    """The rows of some files, and the file that they become."""

    source: Source
    target: str


@dataclass(frozen=True)
class Span:
    """Neighbouring ranges of keys, from ``first`` to the one before ``after``, and the files that hold their rows."""

    first: int
    after: int
    files: tuple[str, ...]


def edges(size: int, ranges: int) -> list[int]:
    """The keys that divide the numbers below ``size`` into ranges of equal width: one less than there are ranges."""
    return [size * number // ranges for number in range(1, ranges)]


def rounds(
    files: Sequence[File], edges: Sequence[Key], folder: str, rows: int, fan: int | None = None
) -> tuple[list[list[Merge]], list[Span]]:
    """Plan the merges after which each range of keys lies in few files.

    Args:
        files: what the writers wrote.
        edges: the keys that divide the ranges.
        folder: prefix of the merged files.
        rows: about how many one merge may hold. It takes two files at least.
        fan: the most files in which a range may lie in the end; by default ``FAN``.

    Returns:
        The merges of each round, to be done in any order when the round before is done. And all ranges, in order, with
        the files that then hold them.
    """
    planned: list[list[Merge]] = []
    spans = [(0, len(edges) + 1, list(files))]
    while max(len(held) for *_, held in spans) > (fan or FAN):
        merges: list[Merge] = []
        divided = []
        for first, after, held in spans:
            merged = []
            for some in _together(held, rows):
                target = storage.join(folder, f"{len(planned)}-{len(merges):05d}.parquet")
                merges.append(Merge(_source(some, edges, first, after), target))
                merged.append(File(target, sum(file.rows for file in some)))
            count = min(FAN, len(merged), after - first)
            cuts = [first + (after - first) * number // count for number in range(count + 1)]
            pieces = [File(file.uri, file.rows // count) for file in merged]
            divided += [(low, high, pieces) for low, high in pairwise(cuts)]
        planned.append(merges)
        spans = divided
    return planned, [Span(first, after, tuple(file.uri for file in held)) for first, after, held in spans]


def source(spans: Sequence[Span], edges: Sequence[Key], number: int) -> Source:
    """Where the rows of a range of keys are.

    Args:
        spans: as ``rounds`` returns them.
        edges: the keys that divide the ranges.
        number: the range's.
    """
    files = next(span.files for span in spans if number < span.after)
    return Source(files, *_limits(edges, number, number + 1))


def merge(job: Merge, change: Callable[[pl.DataFrame], pl.DataFrame] | None = None) -> File:
    """Do one merge.

    Args:
        job: what is read and written.
        change: makes the rows that are written from those that are read.
    """
    rows = job.source.read()
    return write(job.target, change(rows) if change else rows)


def merge_once(job: Merge, change: Callable[[pl.DataFrame], pl.DataFrame] | None = None) -> File:
    """Do one merge, unless a run before did it: for what is long and gives the same bytes with each version."""
    return present(job.target) or merge(job, change)


def present(uri: str) -> File | None:
    """A file that a run before wrote; None if it is not there."""
    if not storage.exists(uri):
        return None
    return File(uri, storage.read_with(uri, lambda store, path: pq.read_metadata(path, filesystem=store).num_rows))


def write(uri: str, rows: pl.DataFrame) -> File:
    """Write a table, sorted by its first column, in small row groups: a reader of a range of keys reads little else.

    Equal rows in the same order give equal bytes: an older attempt that is still alive may replace the file.
    """
    ordered = rows.sort(rows.columns[0], maintain_order=True)
    with storage.open_output(uri) as stream:
        ordered.write_parquet(stream, compression="lz4", row_group_size=_ROW_GROUP)
    return File(uri, len(rows))


def _limits(edges: Sequence[Key], first: int, after: int) -> tuple[Key | None, Key | None]:
    return edges[first - 1] if first else None, edges[after - 1] if after <= len(edges) else None


def _source(files: Sequence[File], edges: Sequence[Key], first: int, after: int) -> Source:
    return Source(tuple(file.uri for file in files), *_limits(edges, first, after))


def _together(files: Sequence[File], rows: int) -> list[list[File]]:
    """Divide files into runs of at most ``FAN``, with at most ``rows`` rows or two files."""
    runs: list[list[File]] = [[]]
    held = 0
    for file in files:
        if len(runs[-1]) == FAN or (len(runs[-1]) > 1 and held + file.rows > rows):
            runs.append([])
            held = 0
        runs[-1].append(file)
        held += file.rows
    return runs


def _read(uri: str, low: Key | None, high: Key | None) -> pl.DataFrame:
    def read(store: pafs.FileSystem, path: str) -> pa.Table:
        with store.open_input_file(path) as stream:
            source = pa.BufferReader(stream.read_buffer()) if stream.size() <= _WHOLE else stream
            with pq.ParquetFile(source, pre_buffer=True) as file:
                groups = range(file.num_row_groups)
                return file.read_row_groups([group for group in groups if _overlaps(file.metadata, group, low, high)])

    try:
        rows = pl.DataFrame(storage.read_with(uri, read))
    except pa.ArrowInvalid as error:
        raise StorageError(f"{uri} is not a readable Parquet file ({error}); {damage.remedy(uri)}") from error
    key = rows.to_series(0)
    first = 0 if low is None else key.search_sorted(low)
    after = len(rows) if high is None else key.search_sorted(high)
    return rows.slice(first, after - first)


def _overlaps(metadata: Any, group: int, low: Key | None, high: Key | None) -> bool:
    if low is None and high is None:
        return True
    statistics = metadata.row_group(group).column(0).statistics
    if statistics is None:
        return True
    return (low is None or statistics.max >= low) and (high is None or statistics.min < high)
