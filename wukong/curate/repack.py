"""Write kept pairs into shards: pictures are copied byte for byte, captions and metadata are written anew."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import pairwise
from typing import Any

import numpy as np
import polars as pl

from wukong.curate.pairs import PAIRS
from wukong.data.shards import END, members, packed
from wukong.errors import DataError
from wukong.store import storage

POSITIONS = 2**62
"""Places in the global order run from 0 to this."""

_AT_A_TIME = 64
_READERS = 8
# The pairs of a shuffled shard can lie in as many tars as there are pairs. Many systems let a process open 1,024 files.
_OPEN = 4 * _AT_A_TIME


def positions(keys: pl.Series, seed: int) -> pl.Series:
    """Compute each pair's place in a global shuffle, in [0, ``POSITIONS``), from its key and the seed alone."""
    places = [
        int.from_bytes(hashlib.blake2b(f"{seed}:{key}".encode(), digest_size=8).digest()) % POSITIONS for key in keys
    ]
    return pl.Series("position", places, dtype=pl.Int64)


def picture_places(tar_uri: str) -> pl.DataFrame:
    """Read a tar once and return where its pictures are: ``key``, ``offset`` and ``size`` in bytes.

    Raises:
        DataError: the file is truncated, or is not a tar.
    """
    rows = [(each.key, each.offset, each.size) for each in members(tar_uri) if each.suffix == "jpg"]
    schema = {"key": pl.String, "offset": pl.Int64, "size": pl.Int64}
    return pl.DataFrame(rows, schema=schema, orient="row").unique("key", keep="first", maintain_order=True)


def locate(pairs: pl.DataFrame, tar_uri: str) -> pl.DataFrame:
    """Add to the pairs of one part where each picture is: ``tar`` (URI), ``offset``, ``size``.

    Raises:
        DataError: the tar has no picture for a pair, or cannot be read.
    """
    located = pairs.join(picture_places(tar_uri), on="key", how="left", maintain_order="left")
    missing = located.filter(pl.col("offset").is_null())
    if len(missing):
        raise DataError(
            f"{tar_uri} lacks the picture of {len(missing)} of its pairs, the first {missing['key'][0]}.jpg: "
            "delete the crawl's output and run it again"
        )
    return located.with_columns(tar=pl.lit(tar_uri))


def write_shard(uri: str, pairs: pl.DataFrame) -> None:
    """Write ``{uri}.tar`` and ``{uri}.parquet`` (``PAIRS``), pairs in the order given; equal pairs, equal bytes.

    Args:
        uri: the shard's address without a suffix.
        pairs: the columns of ``PAIRS`` and ``tar``, ``offset``, ``size``.
    """
    with storage.open_output(f"{uri}.tar") as stream:
        for row, picture in _with_pictures(pairs):
            # The original caption holds the names that were masked. A training job must not read it.
            metadata = {name: row[name] for name in PAIRS.names if row[name] is not None and name != "caption_original"}
            facts = json.dumps(metadata, ensure_ascii=False, sort_keys=True)
            for suffix, data in ("jpg", picture), ("json", facts.encode()), ("txt", row["caption"].encode()):
                stream.write(packed(f"{row['key']}.{suffix}", data))
        stream.write(END)
    storage.write_table(f"{uri}.parquet", pairs.select(PAIRS.names).to_arrow().cast(PAIRS))


def balanced(rows: int, shards: int) -> list[int]:
    """Divide ``rows`` pairs among ``shards`` shards whose sizes differ by at most one; returns the sizes."""
    return [rows // shards + (number < rows % shards) for number in range(shards)]


def ranges(histogram: Sequence[int], pieces: int) -> list[tuple[int, int]]:
    """Cut a histogram into at most ``pieces`` runs of bins with about as many rows each, as (first bin, bin after)."""
    sums = np.cumsum(histogram)
    targets = np.arange(1, pieces) * sums[-1] / pieces
    edges = sorted({0, len(histogram), *(int(edge) + 1 for edge in np.searchsorted(sums, targets))})
    return [(low, high) for low, high in pairwise(edges) if sums[high - 1] > (sums[low - 1] if low else 0)]


def _with_pictures(pairs: pl.DataFrame) -> Iterator[tuple[dict[str, Any], bytes]]:
    tars: dict[str, _Tar] = {}

    def close(*some: str) -> None:
        for uri in some:
            tars.pop(uri).close()

    with ExitStack() as stack, ThreadPoolExecutor(_READERS) as pool:
        stack.callback(lambda: close(*tars))

        def read(row: dict[str, Any]) -> bytes:
            return bytes(tars[row["tar"]].stream.read_at(row["size"], row["offset"]))

        for batch in pairs.iter_slices(_AT_A_TIME):
            for uri in batch["tar"].unique(maintain_order=True):
                # The tar moves to the end of the order: those at the beginning are closed.
                tars[uri] = tars.pop(uri) if uri in tars else _Tar(uri)
            close(*list(tars)[:-_OPEN])
            rows = batch.to_dicts()
            yield from zip(rows, pool.map(read, rows), strict=True)


class _Tar(ExitStack):
    """An open tar, until it is closed."""

    def __init__(self, uri: str) -> None:
        super().__init__()
        self.stream: Any = self.enter_context(storage.open_input(uri))
