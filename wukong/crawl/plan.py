"""Plan a crawl: merge duplicate URLs, with all their captions, and divide them into parts, with limited memory.

The part of a URL depends only on its hash, so the same set of URLs gives the same parts in any order. Keys are hashes,
so ranges of keys with equal width hold about the same number of URLs. Each range is planned separately, from the files
of the search, which are merged first where they are many (``wukong.curate.exchange``).
"""

import polars as pl
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from wukong.crawl.found import MAX_CAPTION
from wukong.curate import exchange
from wukong.data.schema import CAPTIONS
from wukong.store import storage

PLANNED = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("url", pa.string(), nullable=False),
        pa.field("caption", pa.string(), nullable=False),
        pa.field("queries", pa.list_(pa.string()), nullable=False),
        pa.field("page_url", pa.string()),
        CAPTIONS,
    ]
)
"""Schema of the plan: one row for each URL, sorted by key. Each row group is a part."""

RANGE_ROWS = 500_000
"""Number of results that one range of keys should hold; it limits the memory of planning."""

MERGE_ROWS = 1_000_000
"""Number of results that a merge of search files should hold."""

_PREFIX = 8


def ranges_for(results: int) -> int:
    """Return the number of ranges of keys for this many results."""
    return max(1, -(-results // RANGE_ROWS))


def edges(count: int) -> list[str]:
    """Return the keys that divide ``count`` ranges of equal width: the first key of each but the first."""
    return [f"{edge:0{_PREFIX}x}" for edge in exchange.edges(16**_PREFIX, count)]


def merge(results: pl.DataFrame) -> pa.Table:
    """Merge results with the same URL; keep all queries that found it, and all captions.

    The caption of the first result is the first. The others follow, those that more results have before, then those
    that were found earlier; they are kept up to ``MAX_CAPTION`` characters in all. A caption that is longer than this
    by itself is kept only where there is no other.

    Args:
        results: rows of ``found.FOUND``, in any order.

    Returns:
        Rows of ``PLANNED``, sorted by key.
    """
    if results.is_empty():
        return PLANNED.empty_table()
    results = results.sort("key", "order")
    captions = _captions(results)
    urls = results.group_by("key", maintain_order=True).agg(
        pl.col("url").first(),
        pl.col("query").drop_nulls().unique(maintain_order=True).alias("queries"),
        pl.col("page_url").first(),
    )
    planned = urls.join(captions, on="key", how="left", maintain_order="left")
    return planned.select(PLANNED.names).to_arrow().cast(PLANNED)


def _captions(results: pl.DataFrame) -> pl.DataFrame:
    """The first caption of each key, and all of them where there are several; the results are in order."""
    length = pl.col("caption").str.len_chars()
    others = ~pl.col("first")
    ranked = (
        results.group_by("key", "caption", maintain_order=True)
        .agg(pl.len().cast(pl.Int32).alias("count"), pl.col("query").first())
        .filter((length <= MAX_CAPTION) | (length > MAX_CAPTION).all().over("key"))
        .with_columns(first=pl.col("key").is_first_distinct(), place=pl.int_range(pl.len()))
        .filter(pl.col("first") | (length > 0))
        .sort("key", others, -pl.col("count"), "place")
        .filter(pl.col("first") | ((length * others).cum_sum().over("key") <= MAX_CAPTION))
    )
    together = pl.struct("caption", "count", "query")
    return ranked.group_by("key", maintain_order=True).agg(
        pl.col("caption").first(), pl.when(pl.len() > 1).then(together.implode()).alias("captions")
    )


def part_sizes(urls: int, part_size: int) -> list[int]:
    """Divide a range into parts of at most ``part_size`` URLs, as equal as possible."""
    count = -(-urls // part_size)
    return [urls * (i + 1) // count - urls * i // count for i in range(count)]


def write_range(uri: str, planned: pa.Table, part_size: int) -> list[tuple[int, str, str]]:
    """Write the plan of a range, one row group for each part.

    Returns:
        For each part the number of URLs, the first key and the last key.
    """
    sizes = part_sizes(planned.num_rows, part_size)
    with storage.open_output(uri) as stream, pq.ParquetWriter(stream, PLANNED, compression="zstd") as writer:
        parts, start = [], 0
        for size in sizes:
            rows = planned.slice(start, size)
            writer.write_table(rows, row_group_size=size)
            parts.append((size, rows["key"][0].as_py(), rows["key"][-1].as_py()))
            start += size
    return parts


def with_several(planned: pa.Table) -> int:
    """Return how many URLs have several captions."""
    return int(len(planned) - planned["captions"].null_count)


def read_part(uri: str, row_group: int) -> pa.Table:
    """Read the URLs of one part from the plan of its range."""

    def read(store: pafs.FileSystem, path: str) -> pa.Table:
        with pq.ParquetFile(path, filesystem=store) as file:
            return file.read_row_group(row_group)

    return storage.read_with(uri, read)
