"""A list of URLs instead of a search engine: CSV, TSV, JSON lines or Parquet, such as the released Wukong data set."""

from collections.abc import Iterator

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.json as pajson
import pyarrow.parquet as pq

from wukong import storage
from wukong.config import Crawl
from wukong.crawl.engine import clean
from wukong.crawl.found import FoundRow, as_table
from wukong.data.schema import key_of
from wukong.errors import DataError

PIECE_ROWS = 250_000
"""Number of rows in memory at a time, and in one sorted file."""

_SUFFIXES = (".csv", ".tsv", ".parquet", ".jsonl", ".csv.gz", ".tsv.gz", ".jsonl.gz")
_BLOCK_BYTES = 8 * 2**20
_FILE_ORDER = 1 << 40


def list_files(uri: str) -> list[str]:
    """Return the files of a list: the file at the URI, or all files below it with a known suffix, sorted.

    Raises:
        DataError: there are no files.
    """
    if storage.exists(uri):
        return [uri]
    files = [file for file in storage.list_files(uri) if file.endswith(_SUFFIXES)]
    if not files:
        raise DataError(f"crawl.endpoint: no URL list at {uri}; it is a file, or a folder of files, of {_SUFFIXES}")
    return files


def read_list(uri: str, number: int, config: Crawl) -> Iterator[pa.Table]:
    """Read one file of a list in tables of schema ``found.FOUND``, each sorted by key.

    Args:
        uri: URI of the file.
        number: its position among the list's files, so that the first of two equal URLs is the same in every run.
        config: the crawl's settings, with the names of the columns.

    Raises:
        DataError: the file cannot be parsed or lacks a column.
    """
    order = number * _FILE_ORDER
    rows: list[FoundRow] = []
    for batch in _batches(uri, [config.url_column, config.caption_column]):
        urls, captions = (pc.cast(column, pa.string()).to_pylist() for column in batch.columns)
        for url, caption in zip(urls, captions, strict=True):
            if url:
                rows.append((key_of(url), url, clean(caption or ""), None, order, None))
            order += 1
        if len(rows) >= PIECE_ROWS:
            yield as_table(rows)
            rows = []
    if rows:
        yield as_table(rows)


def _batches(uri: str, columns: list[str]) -> Iterator[pa.RecordBatch]:
    name = uri.removesuffix(".gz")
    try:
        with storage.open_input(uri) as raw:
            stream = pa.CompressedInputStream(raw, "gzip") if name != uri else raw
            if name.endswith(".parquet"):
                with pq.ParquetFile(stream) as file:
                    yield from (batch.select(columns) for batch in file.iter_batches(8_192, columns=columns))
            elif name.endswith(".jsonl"):
                reader = pajson.open_json(stream, read_options=pajson.ReadOptions(block_size=_BLOCK_BYTES))
                yield from (batch.select(columns) for batch in reader)
            else:
                reader = pacsv.open_csv(
                    stream,
                    read_options=pacsv.ReadOptions(block_size=_BLOCK_BYTES),
                    parse_options=pacsv.ParseOptions(
                        delimiter="\t" if name.endswith(".tsv") else ",", newlines_in_values=True
                    ),
                    convert_options=pacsv.ConvertOptions(
                        include_columns=columns, column_types=dict.fromkeys(columns, pa.string())
                    ),
                )
                yield from reader
    except (pa.ArrowInvalid, pa.ArrowKeyError, KeyError) as error:
        raise DataError(
            f"{uri} cannot be read as a list of URLs ({error}); its columns are named by crawl.url_column and "
            f"crawl.caption_column, now {' and '.join(map(repr, columns))}"
        ) from error
