"""How often each caption occurs in the whole corpus, which the rule ``frequency`` needs (section 3.2).

The filter job counts in three steps on any number of machines. Each group of parts counts the 64-bit hashes of its
captions (``counted``). Each range of hashes is added up by itself, and only those that occur more than once are brought
back to the groups that have them (``repeated``), because most occur once. Then each part looks up its captions
(``CaptionCounts``). Counts are exact unless two hashes collide: among 166 million distinct captions the probability of
one collision is 0.0007.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from wukong.curate.text.normalize import normal_forms

Hashes = npt.NDArray[np.uint64]
Counts = npt.NDArray[np.int64]


def hashes(captions: pl.Series) -> Hashes:
    """64-bit hashes of captions by their normal form. Another version of Polars may compute other hashes."""
    return hashes_of_normal(normal_forms(captions))


def hashes_of_normal(normal: pl.Series) -> Hashes:
    """``hashes`` of captions that are in normal form already."""
    return normal.hash(0).to_numpy()


def counted(*pieces: Hashes) -> pl.DataFrame:
    """Count hashes: each once, as ``hash`` and ``count``."""
    values = pl.Series("hash", np.concatenate([np.empty(0, np.uint64), *pieces]))
    return values.to_frame().group_by("hash").agg(pl.len().cast(pl.Int64).alias("count"))


def repeated(rows: pl.DataFrame) -> pl.DataFrame:
    """Add up the counts of several groups: the rows whose hash occurs more than once in all, with that number.

    Args:
        rows: ``counted`` of each group, with any further columns.
    """
    return rows.with_columns(pl.col("count").sum().over("hash")).filter(pl.col("count") > 1)


@dataclass(frozen=True)
class CaptionCounts:
    """Captions, as sorted hashes, and how often each occurs; those that are not among them occur once."""

    hashes: Hashes
    counts: Counts

    @classmethod
    def of_rows(cls, rows: pl.DataFrame) -> "CaptionCounts":
        """Counts from ``hash`` and ``count``, each hash once."""
        rows = rows.sort("hash")
        return cls(rows["hash"].to_numpy(), rows["count"].to_numpy())

    def of(self, values: Hashes) -> Counts:
        """Look up how often captions of the corpus occur in it, by their hashes."""
        if not len(self.hashes):
            return np.ones(len(values), dtype=np.int64)
        places = np.minimum(np.searchsorted(self.hashes, values), len(self.hashes) - 1)
        return np.where(self.hashes[places] == values, self.counts[places], 1)
