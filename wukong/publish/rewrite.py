"""Replace one file of a stage by what is left of it after a takedown. Images are copied byte for byte."""

from collections.abc import Set

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from wukong import storage
from wukong.data.schema import key_of
from wukong.data.shards import END, members, packed
from wukong.errors import DataError
from wukong.publish import release
from wukong.publish.takedown_plan import RESULTS
from wukong.report import card


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
    if path.endswith(".parquet"):
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
    shown = card.read(stage_uri)
    if shown is None:
        raise DataError(
            f"{storage.join(stage_uri, card.DATA_PATH)} is missing: the file was deleted, or another version of Wukong "
            "planned this takedown; finish the takedown with that version"
        )
    shown = shown.without(keys)
    card.write(stage_uri, shown.model_copy(update={"docs": ""}) if docs_deleted else shown)
