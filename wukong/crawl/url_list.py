"""Lists of URLs instead of a search engine: CSV, TSV, JSON lines or Parquet, such as the released Wukong data set.

A row that cannot be used is not an error. It becomes a URL that is none, with the reason in it, so that it is counted
and reported like all others.
"""

from __future__ import annotations

import gzip
import io
import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from wukong.crawl.engine import clean
from wukong.crawl.found import FoundRow, as_table, found_row
from wukong.crawl.rows import Row, csv_reader, rows_of_json, rows_of_parquet
from wukong.crawl.source import CrawlSettings
from wukong.crawl.url import ROW
from wukong.errors import DataError, reading
from wukong.store import storage, text_files

PIECE_ROWS = 250_000
"""Number of rows in memory at a time, and in one sorted file."""

SUFFIXES = (".csv", ".tsv", ".parquet", ".jsonl", ".csv.gz", ".tsv.gz", ".jsonl.gz")
_FILE_ORDER = 1 << 40
_SHOWN = 100
_LINE_BYTES = 150  # of a URL with its caption; a third where it is compressed

logger = logging.getLogger(__name__)


def list_files(uri: str) -> list[str]:
    """Return the files of a list: the file at the URI, or all files below it with a known suffix, sorted.

    Raises:
        DataError: there are no files.
    """
    if storage.exists(uri):
        return [uri]
    files = [file for file in storage.list_files(uri) if file.endswith(SUFFIXES)]
    if not files:
        raise DataError(
            f"crawl.endpoint: no URL list at {uri}; it is a file, or a folder of files, of {', '.join(SUFFIXES)}"
        )
    return files


def count(uri: str) -> int:
    """Return about how many rows a list has: Parquet files say it; for others it is estimated from their size."""
    rows = 0
    for file in list_files(uri):
        fs, path = storage.filesystem(file)
        if file.endswith(".parquet"):
            with reading(f"{file} cannot be read as a list of URLs", "Fetch or make it again"):
                rows += pq.read_metadata(path, filesystem=fs).num_rows
        else:
            rows += max(1, fs.get_file_info(path).size // (_LINE_BYTES // (3 if file.endswith(".gz") else 1)))
    return rows


def read_list(uri: str, number: int, config: CrawlSettings) -> Iterator[pa.Table]:
    """Read one file of a list in tables of schema ``found.FOUND``, each sorted by key.

    Args:
        uri: URI of the file.
        number: its position among the list's files, so that the first of two equal URLs is the same in every run.
        config: the crawl's settings, with the names of the columns.

    Raises:
        DataError: the file cannot be parsed or lacks a column.
    """
    order = number * _FILE_ORDER
    below = config.endpoint.rstrip("/") + "/"  # what the list says decides a crawl, not where it lies
    name = uri.removeprefix(below) if uri.startswith(below) else uri.rpartition("/")[2]
    results: list[FoundRow] = []
    for row, fields in _rows(uri, config):
        url, caption = _used(fields, f"{name}{ROW}{row}: ", config)
        results.append(found_row(url, caption, None, order))
        order += 1
        if len(results) >= PIECE_ROWS:
            yield as_table(results)
            results = []
    if results:
        yield as_table(results)


def _rows(uri: str, config: CrawlSettings) -> Iterator[Row]:
    with reading(f"{uri} cannot be read as a list of URLs", "Fetch or make it again"):
        if uri.endswith(".parquet"):
            with storage.open_input(uri) as raw, pq.ParquetFile(raw) as file:
                names = {_column(name): name for name in file.schema_arrow.names}
                _check_columns(uri, names, config)
                wanted = (_column(config.url_column), _column(config.caption_column))
                yield from rows_of_parquet(file, [names[name] for name in wanted])
            return
        with _text_of(uri) as text:
            if uri.removesuffix(".gz").endswith(".jsonl"):
                yield from _with_columns(uri, rows_of_json(text), config)
            else:
                header, rows = csv_reader(text, "\t" if uri.removesuffix(".gz").endswith(".tsv") else ",")
                _check_columns(uri, header, config)
                yield from rows


@contextmanager
def _text_of(uri: str) -> Iterator[io.TextIOWrapper]:
    """Open a list as text; what is no text has lone surrogates in its place."""
    assumed: list[str] = []
    with storage.open_input(uri) as raw:
        source: Any = gzip.GzipFile(fileobj=raw) if uri.endswith(".gz") else raw
        with text_files.utf8(source, uri, assumed) as stream:
            yield io.TextIOWrapper(stream, encoding="utf-8", errors="surrogateescape", newline="")
    if assumed:
        logger.warning("%s", text_files.said(assumed))


def _with_columns(uri: str, rows: Iterable[Row], config: CrawlSettings) -> Iterator[Row]:
    """Iterate over rows whose names of columns are known only at the end."""
    names: set[str] = set()
    for number, fields in rows:
        if isinstance(fields, Mapping):
            names.update(fields.keys() & {_column(config.url_column), _column(config.caption_column)})
        yield number, fields
    _check_columns(uri, names, config)


def _check_columns(uri: str, names: Iterable[str], config: CrawlSettings) -> None:
    missing = [name for name in (config.url_column, config.caption_column) if _column(name) not in names]
    if missing:
        raise DataError(
            f"{uri} cannot be read as a list of URLs: no column {', '.join(map(repr, missing))}; its "
            "columns are named by crawl.url_column and crawl.caption_column, now "
            f"{config.url_column!r} and {config.caption_column!r}"
        )


def _column(name: str) -> str:
    return name.strip().lower()


def _text(value: Any) -> str:
    return clean(str(value)) if isinstance(value, (str, int, float)) else ""


def _used(fields: Mapping[str, Any] | str, where: str, config: CrawlSettings) -> tuple[str, str]:
    """Return the URL and the caption of a row; if it cannot be used, ``where`` and the reason in place of the URL."""
    if isinstance(fields, str):
        return where + fields, ""
    url, caption = fields.get(_column(config.url_column)), _text(fields.get(_column(config.caption_column)))
    if not isinstance(url, str) or not url.strip():
        return where + "it names no URL", caption
    if any("\ud800" <= character <= "\udfff" for character in url):
        return where + f"{clean(url[:_SHOWN])!r} has a character that no URL has", caption
    return url, caption
