"""Columns of the tables that stages hand on, and the keys of pairs.

A shard is a WebDataset tar (``KEY.jpg``, ``KEY.txt``, ``KEY.json``) beside a Parquet file of the same name with one row
a pair. The crawl's Parquet files also hold a row for every URL that gave no pair, with the reason in ``status``.
"""

import hashlib

import pyarrow as pa

from wukong.crawl.url import identity
from wukong.curate import rules

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

PAIRS = pa.schema(
    [
        *CRAWLED,
        pa.field("caption_original", pa.string(), nullable=False),
        *(
            pa.field(column.name, pa.type_for_alias(column.type), nullable=column.nullable)
            for column in rules.stored_columns()
        ),
        pa.field("split", pa.string(), nullable=False),
    ]
)
"""A kept pair: ``caption`` has names masked, ``caption_original`` has not; ``split`` is ``train`` or a hold-out. The
columns between them are those that the rules store (``wukong/curate/rules``): ``length`` in the configured unit,
``aspect_ratio``, ``caption_count``, and ``image_hash`` and ``similarity``, which are null unless their rules are on."""

DROPPED = pa.schema(
    [*(field for field in PAIRS if field.name != "split"), pa.field("dropped_by", pa.string(), nullable=False)]
)
"""A dropped pair, with the name of the first rule that drops it."""


def key_of(url: str) -> str:
    """The key of a pair: 20 hex digits of the SHA-256 of its URL, so that it does not depend on order or part.

    All spellings of one URL have one key (``wukong.crawl.url.identity``).
    """
    return hashlib.sha256(identity(url).encode("utf-8", "surrogatepass")).hexdigest()[:20]
