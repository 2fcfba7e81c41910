"""How many pairs of a release, and how many bytes of pictures, each host has: counted with flat memory.

Writers count their rows and store the counts whenever they hold many hosts. The files are then merged by ranges of the
hosts' hashes (``wukong.curate.exchange``), and the hosts with most bytes are taken from the sorted ranges.
"""

import hashlib
import heapq
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import polars as pl
import pyarrow.parquet as pq

from wukong.curate import exchange
from wukong.curate.exchange import File
from wukong.publish.parallel import for_each
from wukong.store import storage

_HELD = 200_000
"""Hosts that a writer holds."""

_RANGE_ROWS = 1_000_000
_ROW_GROUP = 8_192
_HOST = r"^[^/?#]*//(?:[^/?#]*@)?(\[[^\]]*\]|[^/?#:\[\]]*)"


@dataclass(frozen=True)
class Host:
    """A host with its pairs and the bytes of their pictures, as downloaded."""

    name: str
    pairs: int
    size: int


class Counter:
    """Counts the hosts of rows.

    Args:
        prefix: URI that the files begin with.
    """

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._held: list[pl.DataFrame] = []
        self._files: list[File] = []

    def add(self, rows: pl.DataFrame) -> None:
        """Count rows with ``url`` and ``bytes``."""
        host = pl.col("url").str.extract(_HOST).fill_null("").str.to_lowercase()
        size = pl.col("bytes").fill_null(0).alias("size")
        self._held.append(_summed(rows.select(host=host, pairs=pl.lit(1, pl.Int64), size=size)))
        if sum(map(len, self._held)) > _HELD:
            self._held = [_summed(pl.concat(self._held))]
            if len(self._held[0]) > _HELD // 2:
                self._store()

    def close(self) -> list[File]:
        """Store what is left, and return the files."""
        if self._held:
            self._store()
        return self._files

    def _store(self) -> None:
        counted = _summed(pl.concat(self._held))
        digests = [int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest()) for name in counted["host"]]
        keyed = counted.select(pl.Series("hash", digests, pl.UInt64), pl.all())
        self._files.append(exchange.write(f"{self._prefix}-{len(self._files):05d}.parquet", keyed))
        self._held = []


def ordered(files: Sequence[File], folder: str) -> tuple[int, Iterator[Host]]:
    """Merge the files of all counters.

    Args:
        files: what they returned.
        folder: prefix of the merged files.

    Returns:
        The number of hosts, and all of them, the one with most bytes first.
    """
    ranges = max(1, -(-sum(file.rows for file in files) // _RANGE_ROWS))
    edges = exchange.edges(2**64, ranges)
    planned, spans = exchange.rounds(files, edges, storage.join(folder, "merged"), _RANGE_ROWS)
    for merges in planned:
        list(for_each("hosts", merges, exchange.merge, many=False))
    hosts, uris = 0, []
    for number in range(ranges):
        rows = _summed(exchange.source(spans, edges, number).read().drop("hash"))
        uris.append(storage.join(folder, f"sorted/{number:05d}.parquet"))
        with storage.open_output(uris[-1]) as stream:
            rows.sort(-pl.col("size"), "host").write_parquet(stream, row_group_size=_ROW_GROUP)
        hosts += len(rows)
    return hosts, heapq.merge(*map(_hosts, uris), key=lambda host: (-host.size, host.name))


def largest(hosts: int, ordered: Iterable[Host], *, small_publisher: bool) -> Iterator[Host]:
    """Return the hosts that the EU's template asks for: a tenth of all, of a small publisher 5 % or 1,000 if less."""
    most = min(-(-hosts // 20), 1_000) if small_publisher else -(-hosts // 10)
    return islice(ordered, most)


def _summed(rows: pl.DataFrame) -> pl.DataFrame:
    return rows.group_by("host", maintain_order=True).agg(pl.sum("pairs"), pl.sum("size"))


def _hosts(uri: str) -> Iterator[Host]:
    with storage.open_input(uri) as source:
        table = pq.ParquetFile(source)
        for number in range(table.num_row_groups):
            for row in table.read_row_group(number).to_pylist():
                yield Host(row["host"], row["pairs"], row["size"])
