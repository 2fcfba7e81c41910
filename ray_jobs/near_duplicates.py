"""The search for near duplicates (``wukong/curate/near_duplicates.py``) as Ray tasks.

1. sample: each group gives some of its vectors, by their keys;
2. centres: one task computes those of the clusters;
3. divide: each group writes its vectors, sorted by cluster;
4. compare: each range of clusters is answered by itself (``ray_jobs/exchange.py``), and each group is told its own.

A task holds one group or one range of clusters. What a file holds does not depend on how often, where or beside what
its task runs, so a killed run goes on with the files that are there.
"""

from collections.abc import Callable, Sequence
from typing import Any

import polars as pl

from ray_jobs.exchange import ASKER, Answers, ask, run_all
from wukong.curate import exchange, near_duplicates
from wukong.curate.exchange import File, Source
from wukong.store import storage

RANGE_BYTES = 256 << 20
"""About how many bytes of vectors a task compares; one that merges files holds twice as many."""

Rows = Callable[[Any], pl.DataFrame]
"""Gives the vectors of a group: ``key``, ``score`` and ``vector`` as ``wukong.curate.near_duplicates`` has them."""


def nearest(groups: Sequence[Any], rows: Rows, vectors: int, folder: str) -> Answers:
    """Tell each group which of its vectors have one near that is preferred.

    Args:
        groups: in their order.
        rows: gives the vectors of each.
        vectors: about how many there are in all.
        folder: prefix of the files of this search.

    Returns:
        For each group what ``wukong.curate.near_duplicates.nearest`` tells; ``best`` of it has each pair once.
    """
    numbered = list(enumerate(groups))
    samples = run_all(_sample, [(number, group, rows, vectors, folder) for number, group in numbered])
    (centres,) = run_all(_centres, [(samples, vectors, folder)])
    asked = run_all(_divide, [(number, group, rows, centres, folder) for number, group in numbered])
    row_bytes = max([1, *map(len, _read(centres)["vector"])])
    return ask(asked, near_duplicates.nearest, folder, -(-RANGE_BYTES // row_bytes), exchange.merge_once)


def _sample(number: int, group: Any, rows: Rows, vectors: int, folder: str) -> File:
    uri = storage.join(folder, f"samples/{number:05d}.parquet")
    return exchange.present(uri) or exchange.write(
        uri, near_duplicates.sample(rows(group), vectors).select("key", "vector")
    )


def _centres(samples: Sequence[File], vectors: int, folder: str) -> File:
    uri = storage.join(folder, "centres.parquet")
    if (there := exchange.present(uri)) is not None:
        return there
    sampled = pl.concat([_read(file) for file in samples]).sort("key")
    clusters = min(near_duplicates.clusters_for(vectors), len(sampled))
    found = near_duplicates.centres(near_duplicates.unpacked(sampled["vector"]), clusters)
    return exchange.write(uri, pl.DataFrame({"cluster": range(clusters), "vector": near_duplicates.packed(found)}))


def _divide(number: int, group: Any, rows: Rows, centres: File, folder: str) -> File:
    uri = storage.join(folder, f"questions/{number:05d}.parquet")
    if (there := exchange.present(uri)) is not None:
        return there
    found = near_duplicates.divided(rows(group), near_duplicates.unpacked(_read(centres)["vector"]))
    return exchange.write(uri, found.with_columns(pl.lit(number, pl.UInt32).alias(ASKER)))


def _read(file: File) -> pl.DataFrame:
    return Source((file.uri,), None, None).read()
