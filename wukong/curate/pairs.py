"""Tables of kept and of dropped pairs, and reading the downloaded pairs of one part of a crawl."""

import polars as pl
import pyarrow as pa

from wukong.curate import rules
from wukong.data.schema import CRAWLED
from wukong.errors import DataError
from wukong.store import storage

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


def read_pairs(uri: str) -> pl.DataFrame:
    """Read the rows of a part's Parquet file that hold a picture (``status`` is ``success``), columns of ``CRAWLED``.

    Raises:
        DataError: a column is missing, has another type, is null where it must not be, or is not UTF-8.
        StorageError: the file cannot be read or is truncated.
    """
    table = storage.read_table(uri)
    try:
        if "usage" not in table.column_names:  # of a crawl before version 4, which did not ask
            table = table.append_column("usage", pa.nulls(len(table), pa.string()))
        table = table.select(CRAWLED.names).cast(CRAWLED)
        table.validate(full=True)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, KeyError, ValueError) as error:
        raise DataError(
            f"{uri} is not a part of a crawl: {error}. Delete the crawl's output and run it again"
        ) from error
    return pl.DataFrame(table).filter(pl.col("status") == "success")
