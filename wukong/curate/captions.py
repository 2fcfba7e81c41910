"""Pairs with several captions: taken apart, so that each caption is judged by itself, and put together again.

A table of pairs has a column ``captions`` only if the crawl found a URL with several (``wukong.data.schema.CAPTIONS``).
Its entries have what the table's columns have of the first caption. Where the column is missing, nothing is done here.
"""

import polars as pl

from wukong.curate.pairs import CAPTIONS

PAIR = "pair"
"""Column of captions that were taken apart: the row of their pair."""

_ENTRY = [field.name for field in CAPTIONS.type.value_type]


def apart(pairs: pl.DataFrame) -> pl.DataFrame:
    """Make one row of each caption; what belongs to the picture is the same in all rows of a pair.

    Args:
        pairs: one row a pair.

    Returns:
        The columns of ``pairs`` without ``captions``, with those of its entries, and ``PAIR``, the row in ``pairs``.
        ``count`` is null where a pair has one caption.
    """
    if CAPTIONS.name not in pairs.columns:
        return pairs
    rows = pairs.with_row_index(PAIR).explode(CAPTIONS.name)
    entries = rows[CAPTIONS.name].struct.unnest()
    several = entries["count"].is_not_null()
    rows = rows.drop(CAPTIONS.name)
    return rows.with_columns(
        rows[name].zip_with(~several, entries[name]) if name in rows.columns else entries[name]
        for name in entries.columns
    )


def alone(pairs: pl.DataFrame) -> pl.DataFrame:
    """Make a pair of each caption, as if there were no pairs with several."""
    return apart(pairs).drop(PAIR, "count", "query", strict=False)


def together(rows: pl.DataFrame) -> pl.DataFrame:
    """Make one row of each pair again, that of its first caption that is left, with all captions that are left.

    A caption is left if no rule drops it (``dropped_by``); of a pair without such captions all are. Captions of a pair
    that have become equal, for instance when names were masked, are one, which occurs as often as all of them.

    Args:
        rows: what ``apart`` returned, with any columns changed or added.
    """
    if PAIR not in rows.columns:
        return rows
    several = rows.filter(pl.col("count").is_not_null())
    if "dropped_by" in rows.columns:
        left = pl.col("dropped_by").is_null()
        several = several.filter(left | ~left.any().over(PAIR))
    distinct = several.group_by(PAIR, "caption", maintain_order=True).agg(pl.exclude("count").first(), pl.sum("count"))
    entries = pl.struct(name for name in _ENTRY if name in rows.columns).implode()
    pairs = distinct.group_by(PAIR, maintain_order=True).agg(
        pl.all().first(), pl.when(pl.len() > 1).then(entries).alias(CAPTIONS.name)
    )
    one = rows.filter(pl.col("count").is_null())
    return pl.concat([one, pairs], how="diagonal").sort(PAIR).drop(PAIR, "count", "query")


def several(pairs: pl.DataFrame) -> int:
    """Count the pairs with several captions."""
    return len(pairs) - pairs[CAPTIONS.name].null_count() if CAPTIONS.name in pairs.columns else 0
