"""Replace one file of a stage by what is left of it after a takedown. Images are copied byte for byte."""

from collections import Counter
from collections.abc import Collection, Set
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from wukong.crawl import plan, previous
from wukong.crawl.status import Status
from wukong.crawl.url import key_of
from wukong.data.shards import END, members, packed
from wukong.errors import DataError
from wukong.publish import release
from wukong.publish.takedown_plan import RESULTS
from wukong.report import card
from wukong.store import manifest, storage


def without_pairs(stage_uri: str, path: str, keys: Set[str], *, docs_deleted: bool) -> None:
    """Remove pairs from a file of a stage. A second call leaves the same bytes.

    Args:
        stage_uri: the prefix that the stage's files lie under.
        path: the file's path below it: a table, a tar, a CSV file, the validation results or the dataset card.
        keys: keys of the pairs that go.
        docs_deleted: whether the stage's data docs are deleted, so that its card must not link to them.

    Raises:
        DataError: the file is damaged, or of another kind.
    """
    uri = storage.join(stage_uri, path)
    if path == previous.INDEX:
        _rewrite_index(stage_uri, keys)
    elif path.endswith(".parquet"):
        _rewrite_table(uri, keys)
    elif path.endswith(".tar"):
        _rewrite_tar(uri, keys)
    elif path.endswith(".csv"):
        _rewrite_csv(uri, keys)
    elif path == RESULTS:
        _rewrite_results(uri, keys)
    elif path == card.PATH:
        _rewrite_card(stage_uri, keys, docs_deleted=docs_deleted)
    else:
        raise DataError(f"{uri}: a takedown cannot rewrite a file of this kind")


def markers(stage_uri: str, changed: Collection[str]) -> None:
    """Bring the markers of a crawl that was killed in line with its tables, so that the crawl can go on.

    A tar without a table is left of a task that was killed; it is deleted. A second call changes nothing.

    Args:
        stage_uri: the prefix that the crawl's files lie under.
        changed: paths of the files that were rewritten, below it.
    """
    for tar in storage.list_files(storage.join(stage_uri, "parts"), ".tar"):
        if not storage.exists(tar.removesuffix(".tar") + ".parquet"):
            storage.delete(tar)
    for uri in storage.list_files(storage.join(stage_uri, "_parts"), ".json"):
        record = storage.read_json(uri)
        if not {record.get("plan"), *(part["path"] for part in record.get("described", ()))} & set(changed):
            continue
        updated = record | (_planned(stage_uri, record) if "plan" in record else _stored(stage_uri, record))
        if updated != record:
            storage.write_json(uri, updated)


def _planned(stage_uri: str, record: dict[str, Any]) -> dict[str, Any]:
    """Return the parts that a plan has now: number of URLs, first and last key; and how many have several captions."""
    parts, several = [], 0
    with storage.open_input(storage.join(stage_uri, record["plan"])) as source:
        table = pq.ParquetFile(source)
        for number in range(table.num_row_groups):
            rows = table.read_row_group(number)
            keys = rows["key"].to_pylist()
            parts.append([len(keys), keys[0], keys[-1]] if keys else [0, "", ""])
            several += plan.with_several(rows)
    return {"parts": parts, "several": several}


def _stored(stage_uri: str, record: dict[str, Any]) -> dict[str, Any]:
    """Return what the marker of a search or a download says of its files now."""
    described, statuses, rows = [], Counter[str](), 0
    for part in record["described"]:
        number = part["rows"]
        if part["path"].endswith(".parquet"):
            table = storage.read_table(storage.join(stage_uri, part["path"]), ("key", "status"), present_only=True)
            rows += table.num_rows
            if "status" in table.column_names:
                statuses.update(table["status"].to_pylist())
                number = table.num_rows
        described.append(part | {"rows": number})
    for part in described:
        if part["path"].endswith(".tar"):
            part["rows"] = statuses[Status.SUCCESS]
    described = [manifest.describe(stage_uri, part["path"], part["rows"]).model_dump(mode="json") for part in described]
    if "statuses" not in record:
        return {"described": described, "results": rows}
    counts = {"urls": rows, "requested": min(rows, record["requested"]), "transient": min(rows, record["transient"])}
    return {"described": described, "statuses": dict(sorted(statuses.items())), "examples": {}, **counts}


def _rewrite_index(stage_uri: str, gone: Set[str]) -> None:
    """Bring the bounds in line of the parts that begin or end with a key that goes; others are not read."""
    index = storage.read_table(storage.join(stage_uri, previous.INDEX)).to_pydict()
    bounds = []
    for part, first, last in zip(index["part"], index["first_key"], index["last_key"], strict=True):
        if first not in gone and last not in gone:
            bounds.append((part, first, last))
            continue
        keys = storage.read_table(storage.join(stage_uri, f"{part}.parquet"), ["key"])["key"].to_pylist()
        if left := [key for key in keys if key not in gone]:
            bounds.append((part, min(left), max(left)))
    columns = [*zip(*bounds, strict=True)] or [(), (), ()]
    rewritten = pa.table(dict(zip(index, columns, strict=True)), schema=previous.INDEX_SCHEMA)
    storage.write_table(storage.join(stage_uri, previous.INDEX), rewritten)


def _rewrite_table(uri: str, keys: Set[str]) -> None:
    # Row group by row group: the stage that wrote the table may rely on where its row groups begin.
    gone = pa.array(sorted(keys), pa.string())
    with storage.open_input(uri) as source, storage.open_output(uri) as target:
        table = pq.ParquetFile(source)
        with pq.ParquetWriter(target, table.schema_arrow, compression="zstd") as writer:
            for number in range(table.num_row_groups):
                rows = table.read_row_group(number)
                writer.write_table(rows.filter(pc.invert(pc.is_in(rows["key"], value_set=gone))))


def _rewrite_tar(uri: str, keys: Set[str]) -> None:
    with storage.open_output(uri) as target:
        for member in members(uri):
            if member.key not in keys:
                target.write(packed(f"{member.key}.{member.suffix}", member.read()))
        target.write(END)


def _rewrite_csv(uri: str, keys: Set[str]) -> None:
    rows = release.read_csv(uri)
    release.write_csv(uri, rows.filter(pl.Series([key_of(url) not in keys for url in rows["url"]], dtype=pl.Boolean)))


def _rewrite_results(uri: str, keys: Set[str]) -> None:
    results = storage.read_json(uri)
    for outcome in results["expectations"]:
        outcome["samples"] = [sample for sample in outcome["samples"] if sample.get("key") not in keys]
    storage.write_json(uri, results)


def _rewrite_card(stage_uri: str, keys: Set[str], *, docs_deleted: bool) -> None:
    shown = card.read(stage_uri).without(keys)
    card.write(stage_uri, shown.model_copy(update={"docs": ""}) if docs_deleted else shown)
