"""Write kept pairs into shards: pictures are copied byte for byte, captions and metadata are written anew."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import polars as pl

from wukong.curate.pairs import CAPTIONS, PAIRS, schema_of
from wukong.data.shards import END, members, packed
from wukong.errors import DataError
from wukong.store import damage
from wukong.store.manifest import Output, Part, Stage

POSITIONS = 2**62
"""Places in the global order run from 0 to this."""

_AT_A_TIME = 64
_READ_BYTES = 16 << 20


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


def with_pictures(parts: Iterable[tuple[str, str, pl.DataFrame]], run_bytes: int) -> Iterator[pl.DataFrame]:
    """Read tars, each once and in order, and add to their pairs the column ``picture``.

    Args:
        parts: URI of a tar, its digest, which may be empty, and the pairs that are wanted of it; one of which none is
            wanted is not read.
        run_bytes: about how many bytes of pictures each table has that is returned.

    Raises:
        DataError: a tar has no picture for a pair, or cannot be read.
        StorageError: a tar was altered.
    """
    run: list[pl.DataFrame] = []
    held = 0
    for tar, sha256, wanted in parts:
        missing = set(wanted["key"])
        pictures: dict[str, bytes] = {}
        for member in members(tar, read_bytes=_READ_BYTES, sha256=sha256) if missing else ():
            if member.suffix == "jpg" and member.key in missing:
                missing.remove(member.key)
                pictures[member.key] = member.read()
                held += member.size
                if held >= run_bytes:
                    run.append(_with(wanted, pictures))
                    pictures, held = {}, 0  # before the run is written: memory holds one copy of the pictures
                    yield pl.concat(run, rechunk=False)
                    run = []
        if missing:
            first = wanted.filter(pl.col("key").is_in(list(missing)))["key"][0]
            raise DataError(
                f"{tar} lacks the picture of {len(missing)} of its pairs, the first {first}.jpg: {damage.remedy(tar)}"
            )
        if pictures:
            run.append(_with(wanted, pictures))
    if run:
        yield pl.concat(run, rechunk=False)


def _with(pairs: pl.DataFrame, pictures: Mapping[str, bytes]) -> pl.DataFrame:
    columns = {"key": list(pictures), "picture": list(pictures.values())}
    own = pl.DataFrame(columns, schema={"key": pl.String, "picture": pl.Binary})
    return pairs.join(own, on="key", maintain_order="left")


def write_shards(
    stage: Stage, names: Sequence[tuple[str, int]], tables: Iterable[pl.DataFrame]
) -> tuple[list[Part], list[tuple[str, int, int]]]:
    """Write pairs into shards, a tar and a Parquet file (``PAIRS``) each; equal pairs, equal bytes.

    Args:
        stage: whose files they are.
        names: path of each shard below the stage's prefix, without a suffix, and the number of its pairs.
        tables: the pairs in order: the columns of ``PAIRS``, ``CAPTIONS`` where the crawl has it, ``position`` and
            ``picture``.

    Returns:
        The files, and for each shard the path of its table, the first place in it and the last one.
    """
    left = iter(tables)
    pairs = next(left)
    schema = schema_of(pairs, PAIRS)
    parts, bounds = [], []
    for name, size in names:
        written: list[pl.DataFrame] = []
        with stage.output(f"{name}.tar") as output:
            while missing := size - sum(map(len, written)):
                if not len(pairs):
                    pairs = next(left)
                now, pairs = pairs.head(missing), pairs.slice(missing)
                _append(output, now.select(*schema.names, "picture"))
                written.append(now.select("position", *schema.names))
            output.write(END)
        shard = pl.concat(written)
        table = stage.write_table(f"{name}.parquet", shard.drop("position").to_arrow().cast(schema))
        parts += [output.part(size), table]
        bounds.append((table.path, int(shard["position"][0]), int(shard["position"][-1])))
    return parts, bounds


def _append(output: Output, pairs: pl.DataFrame) -> None:
    """Write pairs into a tar."""
    for batch in pairs.iter_slices(_AT_A_TIME):
        for row in batch.iter_rows(named=True):
            picture, metadata = row.pop("picture"), _told(row)
            if CAPTIONS.name in metadata:
                metadata[CAPTIONS.name] = [_told(each) for each in metadata[CAPTIONS.name]]
            facts = json.dumps(metadata, ensure_ascii=False, sort_keys=True)
            for suffix, data in ("jpg", picture), ("json", facts.encode()), ("txt", row["caption"].encode()):
                output.write(packed(f"{row['key']}.{suffix}", data))


def _told(facts: Mapping[str, Any]) -> dict[str, Any]:
    # The original caption holds the names that were masked. A training job must not read it.
    return {name: value for name, value in facts.items() if value is not None and name != "caption_original"}


def balanced(rows: int, shards: int) -> list[int]:
    """Divide ``rows`` pairs among ``shards`` shards whose sizes differ by at most one; returns the sizes."""
    return [rows // shards + (number < rows % shards) for number in range(shards)]


def ranges(histogram: Sequence[int], pieces: int) -> list[tuple[int, int]]:
    """Cut a histogram into at most ``pieces`` runs of bins with about as many rows each, as (first bin, bin after)."""
    sums = np.cumsum(histogram)
    targets = np.arange(1, pieces) * sums[-1] / pieces
    edges = sorted({0, len(histogram), *(int(edge) + 1 for edge in np.searchsorted(sums, targets))})
    return [(low, high) for low, high in pairwise(edges) if sums[high - 1] > (sums[low - 1] if low else 0)]
