"""Tables of kept and of dropped pairs, and reading the downloaded pairs of one part of a crawl."""

import polars as pl
import pyarrow as pa

from wukong.curate import rules
from wukong.data.schema import CAPTIONS as CRAWLED_CAPTIONS
from wukong.data.schema import CRAWLED
from wukong.errors import DataError
from wukong.store import damage, storage

PAIRS = pa.schema(
    [
        *CRAWLED,
        pa.field("caption_original", pa.string(), nullable=False),
        *(column.field() for column in rules.stored_columns()),
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


OPTIONAL = pa.schema([column.field() for column in rules.stored_columns(optional=True)])
"""Further columns of both tables, each where its rule is on."""

_OF_CAPTIONS = [column.field() for column in rules.stored_columns() if column.of_caption]
_CAPTION = [
    pa.field("caption", pa.string(), nullable=False),
    pa.field("caption_original", pa.string(), nullable=False),
    pa.field("count", pa.int32(), nullable=False),
    pa.field("query", pa.string()),
    *_OF_CAPTIONS,
]
CAPTIONS = pa.field("captions", pa.list_(pa.struct(_CAPTION)))
"""A further column of both tables where the crawl's have it (``wukong.data.schema.CAPTIONS``): the captions that passed
the rules, null where it is one. The columns beside it are those of the first."""


def schema_of(pairs: pl.DataFrame, columns: pa.Schema) -> pa.Schema:
    """The schema that pairs are stored with: some columns, and of ``OPTIONAL`` and ``CAPTIONS`` what they have."""
    further = [field for field in [*OPTIONAL, CAPTIONS] if field.name in pairs.columns]
    return pa.schema([*columns, *further])


def read_pairs(uri: str, sha256: str = "") -> pl.DataFrame:
    """Read the rows of a part's Parquet file that hold a picture (``status`` is ``success``), columns of ``CRAWLED``.

    The column of several captions is among them if the crawl has it.

    Args:
        uri: URI of the file.
        sha256: digest that the file must have; empty for any.

    Raises:
        DataError: a column is missing, has another type, is null where it must not be, or is not UTF-8.
        StorageError: the file cannot be read, is truncated or altered.
    """
    table = storage.read_table(uri, sha256=sha256)
    try:
        columns = CRAWLED.append(CRAWLED_CAPTIONS) if CRAWLED_CAPTIONS.name in table.column_names else CRAWLED
        table = table.select(columns.names).cast(columns)
        table.validate(full=True)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, KeyError, ValueError) as error:
        raise DataError(f"{uri} is not a part of a crawl: {error}; {damage.remedy(uri)}") from error
    return pl.DataFrame(table).filter(pl.col("status") == "success")
