"""Write one part of a crawl: a WebDataset tar and a Parquet file."""

import json
import tempfile
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from wukong.crawl.engine import clean
from wukong.crawl.unexpected import unexpected
from wukong.data import shards
from wukong.data.schema import CAPTIONS, CRAWLED
from wukong.errors import StorageError
from wukong.store import fence

_UNWRITABLE = (pa.ArrowException, ValueError, TypeError, OverflowError)
"""What Arrow raises for a value that its column cannot hold; half a surrogate in a text is a ValueError."""


class Spool:
    """A temporary file on local disk for the images of a part, so that they do not take memory."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(prefix="wukong-crawl-")  # noqa: SIM115
        self._places: dict[str, tuple[int, int]] = {}
        self._end = 0

    def add(self, key: str, data: bytes) -> None:
        """Store an image under its pair's key.

        Raises:
            StorageError: the disk is full.
        """
        try:
            self._file.seek(self._end)
            self._file.write(data)
        except OSError as error:
            raise StorageError(
                f"a part's pictures cannot be written to {tempfile.gettempdir()} ({error}): free space there, or set "
                "TMPDIR"
            ) from error
        self._places[key] = (self._end, len(data))
        self._end += len(data)

    def read(self, key: str) -> bytes:
        """Return a stored image."""
        offset, size = self._places[key]
        self._file.seek(offset)
        return self._file.read(size)

    def __enter__(self) -> "Spool":
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self._file.close()


def write_part(uri: str, rows: Sequence[Mapping[str, Any]], pictures: Spool) -> list[dict[str, Any]]:
    """Write ``{uri}.tar`` and ``{uri}.parquet``; equal rows and pictures give equal bytes.

    A row that cannot be written is an error of its URL and not of the part: it gets the status ``internal_error``.

    Args:
        uri: URI of the part without a suffix.
        rows: one row for each URL, with the columns of ``CRAWLED``, in the order in which they are written. The table
            has ``CAPTIONS`` too if the rows have it.
        pictures: a JPEG for each row with status ``success``.

    Returns:
        The rows that were written.
    """
    written, table = _as_table(rows)
    with fence.output(f"{uri}.tar") as stream:
        for row in written:
            if row["status"] != "success":
                continue
            key = row["key"]
            facts = json.dumps(
                {name: value for name, value in row.items() if value is not None}, ensure_ascii=False, sort_keys=True
            )
            for suffix, data in ("jpg", pictures.read(key)), ("json", facts.encode()), ("txt", row["caption"].encode()):
                stream.write(shards.packed(f"{key}.{suffix}", data))
        stream.write(shards.END)
    with fence.output(f"{uri}.parquet") as stream:
        pq.write_table(table, stream, compression="zstd")
    return written


def _as_table(rows: Sequence[Mapping[str, Any]]) -> tuple[list[dict[str, Any]], pa.Table]:
    written = [dict(row) for row in rows]
    schema = CRAWLED.append(CAPTIONS) if any(CAPTIONS.name in row for row in written) else CRAWLED
    try:
        return written, pa.Table.from_pylist(written, schema=schema)
    except _UNWRITABLE:  # rare, so only now each row is tried
        written = [_writable(row, schema) for row in written]
        return written, pa.Table.from_pylist(written, schema=schema)


def _writable(row: dict[str, Any], schema: pa.Schema) -> dict[str, Any]:
    try:
        pa.Table.from_pylist([row], schema=schema)
    except _UNWRITABLE as error:
        failed = unexpected(clean(row["url"]), error)
        known = {name: clean(row[name]) for name in ("key", "url", "caption", "engine")}
        queries = [clean(query) for query in row["queries"]]
        return {**known, "queries": queries, "status": failed.status.value, "error": str(failed)}
    return row
