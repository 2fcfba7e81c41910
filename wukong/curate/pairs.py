"""Reading the downloaded pairs of one part of a crawl."""

import polars as pl
import pyarrow as pa

from wukong import storage
from wukong.data.schema import CRAWLED
from wukong.errors import DataError


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
