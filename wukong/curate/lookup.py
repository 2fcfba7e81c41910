"""Find the shards of a filtered set that may hold pairs, without reading the others.

The shards of a split hold its pairs in the order of a global shuffle, and a pair's place in it follows from its key
(``wukong.curate.repack.positions``). So the first and the last place of each shard name one shard a split for a pair.
They stand beside the shards, and are no part of the filter's manifest: its digest is the same without them.
"""

from collections.abc import Collection, Iterable

import numpy as np
import polars as pl
import pyarrow as pa

from wukong.curate import repack
from wukong.store import storage
from wukong.store.manifest import Manifest

PATH = "lookup.parquet"
"""Where a filter stage stores the places of its shards."""

Bound = tuple[str, int, int]
"""Path of a shard's table, the first place in it, the last one."""

_SEED = b"seed"


def write(stage_uri: str, bounds: Iterable[Bound], seed: int) -> None:
    """Write the places of shards.

    Args:
        stage_uri: the prefix that the filter's files lie under.
        bounds: the places of each shard.
        seed: the shuffle's.
    """
    columns = list(zip(*sorted(bounds), strict=True)) or [(), (), ()]
    types = (pa.string(), pa.int64(), pa.int64())
    table = pa.table([pa.array(*column) for column in zip(columns, types, strict=True)], ["path", "first", "last"])
    storage.write_table(storage.join(stage_uri, PATH), table.replace_schema_metadata({_SEED: str(seed)}))


def tables(filtered: Manifest, keys: Collection[str]) -> list[str]:
    """Return the paths of the tables of a filtered set that may hold pairs.

    Tables whose places are not stored are among them: those of dropped pairs, and all of a copy that was made by
    the manifest.

    Args:
        filtered: the filter's manifest.
        keys: keys of the pairs.
    """
    paths = filtered.parts.below(suffix=".parquet").paths
    if not storage.exists(storage.join(filtered.uri, PATH)):
        return paths
    table = storage.read_table(storage.join(filtered.uri, PATH))
    places = np.sort(repack.positions(pl.Series(sorted(keys), dtype=pl.String), int(table.schema.metadata[_SEED])))
    before_first = np.searchsorted(places, table["first"].to_numpy(), side="left")
    before_end = np.searchsorted(places, table["last"].to_numpy(), side="right")
    hold_none = set(table["path"].filter(pa.array(before_first == before_end)).to_pylist())
    return [path for path in paths if path not in hold_none]
