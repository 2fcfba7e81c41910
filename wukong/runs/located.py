"""Where pairs stand in what an experiment stored: its stages' outputs, and the tables that may hold rows of keys.

Indexes name these tables: that of a crawl's parts (``wukong.crawl.previous.INDEX``), and that of a filter's shards
(``wukong.curate.lookup``). Only crawls that did not finish, and copies without the index, are read whole.
"""

import bisect
from collections.abc import Sequence
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from wukong.crawl import previous
from wukong.crawl.optout import OptOut
from wukong.curate import lookup
from wukong.data.schema import OVERLAPS
from wukong.errors import StorageError
from wukong.store import storage
from wukong.store.manifest import Manifest


def outputs(place: str, stage: str) -> dict[str, list[str]]:
    """Return the folders of a stage's outputs, finished or not, each with the names directly in it.

    Args:
        place: URI of an experiment.
        stage: name of the stage.
    """
    folder = storage.join(place, stage)
    uris = [storage.join(folder, key) for key in storage.list_names(folder)]
    return {uri: storage.list_names(uri) for uri in uris}


def tables_with_urls(stage: Manifest, listed: OptOut, others: Sequence[Manifest]) -> list[str]:
    """Return the URIs of the tables in which all that a list may cover of a stage is found.

    Args:
        stage: its manifest.
        listed: the list.
        others: the other outputs that are looked through for it.
    """
    if stage.stage == "release":
        return stage.part_uris(suffix=".csv")
    if stage.stage == "crawl":
        # The plan has all URLs of a finished crawl; the digests of pictures are in its parts.
        planned = _files(stage, "plan")
        parts = _files(stage, "parts") if listed.digests or not (stage.parts and planned) else []
        searched = [] if stage.parts else _files(stage, "search")
        return [storage.join(stage.uri, path) for path in [*parts, *planned, *searched]]
    crawls = {other.digest for other in others if other.stage == "crawl"}
    if any(parent.digest in crawls for parent in stage.parents):
        return []  # its pairs are the crawl's
    return _of_pairs(stage)


def tables(stage: Manifest, keys: Sequence[str], *, by_index: bool = True) -> list[str]:
    """Return the paths of a stage's tables and CSV files that may hold rows of keys. A tar changes with its table.

    Args:
        stage: its manifest.
        keys: the keys, sorted.
        by_index: whether a crawl's index of its parts is as its manifest says.
    """
    if stage.stage == "crawl":
        # The plan of a crawl is not a part of its output, and an attempt that was killed has no parts.
        return [
            *(_parts(stage, keys) if by_index else _files(stage, "parts")),
            *_files(stage, "plan"),
            *_files(stage, "search"),
        ]
    return lookup.tables(stage, keys) if stage.stage == "filter" else stage.parts.below(suffix=".csv").paths


def tables_with_captions(stage: Manifest) -> list[str]:
    """Return the URIs of the tables that have all captions of a crawl or of a filtered set."""
    if stage.stage != "crawl":
        return _of_pairs(stage) if stage.stage == "filter" else []
    searched = [*_files(stage, "plan"), *_files(stage, "search")] or _files(stage, "parts")
    return [storage.join(stage.uri, path) for path in searched]


def rows(uri: str, keys: Sequence[str], columns: Sequence[str]) -> pl.DataFrame:
    """Read the rows of a table that have one of some keys; row groups without them are not read, where they are sorted.

    Args:
        uri: URI of the table.
        keys: the keys, sorted.
        columns: those to read of the columns that it has.

    Raises:
        StorageError: it cannot be read.
    """

    def read(store: Any, path: str) -> pa.Table:
        with pq.ParquetFile(path, filesystem=store) as file:
            names = [name for name in columns if name in file.schema_arrow.names]
            groups = [n for n in range(file.num_row_groups) if _may_hold(file.metadata.row_group(n), keys)]
            table = file.read_row_groups(groups, names)
            return table.filter(pc.is_in(table["key"], value_set=pa.array(keys, pa.string())))

    try:
        return pl.DataFrame(storage.read_with(uri, read))
    except pa.ArrowInvalid as error:
        raise StorageError(f"{uri} is not a readable Parquet file ({error})") from error


def _may_hold(group: Any, keys: Sequence[str]) -> bool:
    columns = (group.column(number) for number in range(group.num_columns))
    statistics = next(column for column in columns if column.path_in_schema == "key").statistics
    if statistics is None or not statistics.has_min_max:
        return True
    return bisect.bisect_left(keys, statistics.min) < bisect.bisect_right(keys, statistics.max)


def _parts(crawl: Manifest, keys: Sequence[str]) -> list[str]:
    names = storage.list_names(crawl.uri)
    if "parts" not in names:
        return []  # of an attempt that failed, whose files another one has taken over
    if not crawl.parts or previous.INDEX not in names:
        return _files(crawl, "parts")
    uri, sha256 = crawl.file(previous.INDEX)
    index = storage.read_table(uri, sha256=sha256)
    bounds = zip(index["part"].to_pylist(), index["first_key"].to_pylist(), index["last_key"].to_pylist(), strict=True)
    return [
        f"{part}.parquet"
        for part, first, last in bounds
        if bisect.bisect_left(keys, first) < bisect.bisect_right(keys, last)
    ]


def _of_pairs(stage: Manifest) -> list[str]:
    return [storage.join(stage.uri, path) for path in stage.parts.below(suffix=".parquet").paths if path != OVERLAPS]


def _files(stage: Manifest, folder: str) -> list[str]:
    return [uri[len(stage.uri) + 1 :] for uri in storage.list_files(storage.join(stage.uri, folder), ".parquet")]
