"""An independent search for what names a pair, in every object of a store, in every file, and in MLflow's database.

It shares nothing with the code under test: Parquet is read by column, tars and JSON are opened, HTML is unescaped.
"""

import html
import io
import json
import sqlite3
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import pyarrow.parquet as pq


def texts(name: str, data: bytes) -> Iterator[str]:
    """All texts of a file, whatever kind it is."""
    if data[:4] == b"PAR1":
        table = pq.read_table(io.BytesIO(data))
        yield json.dumps(table.to_pydict(), ensure_ascii=False, default=str)
        yield str(table.schema.metadata)
        file = pq.ParquetFile(io.BytesIO(data))
        groups = [file.metadata.row_group(number) for number in range(file.num_row_groups)]
        yield str([group.column(place).statistics for group in groups for place in range(group.num_columns)])
    elif name.endswith(".tar"):
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            for member in tar:
                yield member.name
                if not member.name.endswith(".jpg"):
                    yield from texts(member.name, tar.extractfile(member).read())
    elif name.endswith((".safetensors", ".pth")):
        return
    else:
        text = data.decode("utf-8", "replace")
        yield text
        if name.endswith((".html", ".json")):
            yield html.unescape(text)
        if name.endswith(".json") and text.strip():
            yield json.dumps(json.loads(text), ensure_ascii=False)


def rows_of_database(path: Path) -> Iterator[tuple[str, bytes]]:
    with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as database:
        for (table,) in database.execute("select name from sqlite_master where type = 'table'").fetchall():
            rows = database.execute(f'select * from "{table}"').fetchall()
            yield f"{path.name}/{table}", json.dumps(rows, ensure_ascii=False, default=str).encode()


def found(files: Iterable[tuple[str, bytes]], wanted: Mapping[str, str]) -> set[tuple[str, str]]:
    """Where something is found: the file's name and what was found, by the names of ``wanted``."""
    hits = set()
    for name, data in files:
        for text in (name, *texts(name, data)):
            hits |= {(name, what) for what, word in wanted.items() if word in text}
    return hits
