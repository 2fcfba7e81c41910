"""The table of what a search, a list or a folder found: its schema, and how it is made and written."""

import pyarrow as pa
import pyarrow.parquet as pq

from wukong.crawl.url import MAX_URL, bounded, key_of
from wukong.store import fence

FOUND = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("url", pa.string(), nullable=False),
        pa.field("caption", pa.string(), nullable=False),
        pa.field("query", pa.string()),
        pa.field("order", pa.int64(), nullable=False),
        pa.field("page_url", pa.string()),
    ]
)
"""Schema of the results, one row for each, sorted by key. ``order`` numbers them over the whole crawl, by query and
rank."""

ROW_GROUP = 8_192
"""Rows in a row group. It is small, so that a reader of one range of keys reads few other rows."""

FoundRow = tuple[str, str, str, str | None, int, str | None]
"""The fields of ``FOUND``, in the same order."""

MAX_CAPTION = 10_000
"""A picture whose captions all have more characters is not fetched, and only the first's beginning is stored."""


def found_row(url: str, caption: str, query: str | None, order: int, page_url: str | None = None) -> FoundRow:
    """Return a result as it is stored, with its key; texts from outside are limited here, wherever they come from.

    Of a URL that is too long a text is stored that names it (``wukong.crawl.url.bounded``). A caption that is too long
    is cut to one character more than ``MAX_CAPTION``, so that the download knows it.
    """
    page = page_url if page_url is not None and len(page_url) <= MAX_URL else None
    url = bounded(url)
    return key_of(url), url, caption[: MAX_CAPTION + 1], query, order, page


def write_found(uri: str, table: pa.Table) -> None:
    """Write a ``FOUND`` table in small row groups, so that one range of keys can be read alone."""
    with fence.output(uri) as stream:
        pq.write_table(table, stream, compression="zstd", row_group_size=ROW_GROUP)


def as_table(rows: list[FoundRow]) -> pa.Table:
    """Build a sorted ``FOUND`` table from rows in any order."""
    rows.sort(key=lambda row: (row[0], row[4]))
    columns = list(zip(*rows, strict=True)) or [()] * len(FOUND)
    return pa.table([pa.array(column, type=f.type) for column, f in zip(columns, FOUND, strict=True)], schema=FOUND)
