"""Columns of the tables that the crawl hands on; ``wukong.curate.pairs`` adds those of the filter.

A shard is a WebDataset tar (``KEY.jpg``, ``KEY.txt``, ``KEY.json``) beside a Parquet file of the same name with one row
a pair. The crawl's Parquet files also hold a row for every URL that gave no pair, with the reason in ``status``.
"""

import pyarrow as pa

CRAWLED = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("url", pa.string(), nullable=False),
        pa.field("caption", pa.string(), nullable=False),
        pa.field("queries", pa.list_(pa.string()), nullable=False),
        pa.field("engine", pa.string(), nullable=False),
        pa.field("page_url", pa.string()),
        pa.field("status", pa.string(), nullable=False),
        pa.field("error", pa.string()),
        pa.field("http_status", pa.int32()),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("mime", pa.string()),
        pa.field("bytes", pa.int64()),
        pa.field("sha256", pa.string()),
        pa.field("exif_orientation", pa.int32()),
        pa.field("stored_width", pa.int32()),
        pa.field("stored_height", pa.int32()),
        pa.field("usage", pa.string()),
    ]
)
"""One row a URL: ``width`` and ``height`` in pixels and ``bytes`` are the original's, ``sha256`` is of its bytes.

``usage`` is what the owner says about the use of the picture (``wukong.crawl.usage``); null if nothing is known."""

_CAPTION = [
    pa.field("caption", pa.string(), nullable=False),
    pa.field("count", pa.int32(), nullable=False),
    pa.field("query", pa.string()),
]
CAPTIONS = pa.field("captions", pa.list_(pa.struct(_CAPTION)))
"""A further column of a crawl in which a URL was found with several captions: all of them, null where there is one.

Of each, ``count`` is the number of searches that found the URL with it, and ``query`` the first of them. The first is
the pair's ``caption``. In other crawls the column is missing, so that their files are as if there were none."""

MORE_CAPTIONS = "more_captions"
"""Name, in the counts of a manifest whose tables have ``captions``, of the pairs that have several."""

OVERLAPS = "overlaps.parquet"
"""Part of a filter stage that compared its pairs with test sets: which pair shows which test picture. The other tables
of the stage hold pairs."""
