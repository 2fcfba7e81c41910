"""Reading the rows of lists: CSV, TSV, JSON lines and Parquet. A row that cannot be read is that row's problem."""

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from typing import IO, Any, Self

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from wukong.crawl.engine import clean

MAX_FIELD = 1 << 20
"""A CSV field with more characters makes its row unreadable."""

MAX_LINE = 8 << 20
"""A line with more characters is unreadable."""

_BATCH_ROWS = 1_000
_SHOWN = 200

Row = tuple[int, Mapping[str, Any] | str]
"""The number of a row, from 1, and its fields; or a message if it cannot be read."""


def rows_of_json(text: IO[str]) -> Iterator[Row]:
    """Iterate over JSON lines; the names of the fields are in lower case."""
    lines = _Lines(text)
    for number in count(1):
        try:
            if (line := next(lines, None)) is None:
                return
            if not line.strip():
                continue
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            yield number, f"it is no JSON ({clean(str(error))[:_SHOWN]})"
            continue
        if isinstance(row, dict):
            yield number, {str(key).strip().lower(): value for key, value in row.items()}
        else:
            yield number, "it is no JSON object"


def csv_reader(text: IO[str], delimiter: str) -> tuple[list[str], Iterator[Row]]:
    """Return the names in the header, in lower case, and an iterator over the rows below it.

    Args:
        text: opened with ``newline=""``.
        delimiter: what stands between two fields.
    """
    csv.field_size_limit(MAX_FIELD)
    reader = csv.reader(_Lines(text), delimiter=delimiter)
    try:
        header = [name.strip().lower() for name in next(reader, [])]
    except csv.Error:  # it names no column that anybody looks for
        header = []
    return header, _rows_of_csv(reader, header)


def rows_of_parquet(file: pq.ParquetFile, columns: Sequence[str]) -> Iterator[Row]:
    """Iterate over the rows of a Parquet file; what is no UTF-8 has lone surrogates in its place.

    Args:
        file: the opened file.
        columns: names of those to read; the names of the fields are these in lower case.
    """
    names = [name.strip().lower() for name in columns]
    number = 0
    for batch in file.iter_batches(_BATCH_ROWS, columns=list(columns)):
        fields = [_values(batch.column(batch.schema.get_field_index(name))) for name in columns]
        for values in zip(*fields, strict=True):
            number += 1
            yield number, dict(zip(names, values, strict=True))


class _TooLongError(csv.Error, ValueError):
    """A line is longer than any that is read."""


class _Lines:
    """The lines of a text. One that is too long is an error, behind which the next line follows."""

    def __init__(self, text: IO[str]) -> None:
        self._text = text

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> str:
        line = read = self._text.readline(MAX_LINE + 1)
        while len(read) > MAX_LINE and not read.endswith(("\n", "\r")):
            read = self._text.readline(MAX_LINE + 1)
        if not line:
            raise StopIteration
        if line is not read or len(line) > MAX_LINE:
            raise _TooLongError(f"it has more than {MAX_LINE:,} characters")
        return line


def _rows_of_csv(reader: Iterator[list[str]], header: Sequence[str]) -> Iterator[Row]:
    number = 1
    while True:
        number += 1
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield number, f"it is no CSV ({error})"
            continue
        if not row:
            continue
        if len(row) != len(header):
            yield (
                number,
                f"it has {len(row)} values and the header {len(header)}: put captions with commas in quotes",
            )
        else:
            yield number, dict(zip(header, row, strict=True))


def _values(column: Any) -> list[Any]:
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        return list(column.to_pylist())
    # pyarrow does not check UTF-8 when it reads a file, and raises for the whole column when it makes Python texts.
    values = pc.cast(column, pa.large_binary()).to_pylist()
    return [value if value is None else value.decode("utf-8", "surrogateescape") for value in values]
