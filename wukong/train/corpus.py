"""The pairs that a training run reads: names, sizes and tables of shards."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pyarrow as pa

from wukong.data import shards
from wukong.data.schema import MORE_CAPTIONS
from wukong.data.shards import matching
from wukong.errors import DataError
from wukong.runtime.language import _
from wukong.store import damage, storage
from wukong.store.manifest import Manifest, digest_of

_READERS = 8
"""Tables that are read at the same time to count their rows."""


@dataclass(frozen=True)
class Corpus:
    """The pairs that a training run reads, as the filter stage wrote them.

    Attributes:
        prefix: URI of the filter stage's output.
        names: names of the shards, for instance ``00000``.
        rows: number of pairs of each shard that are trained on.
        digest: digest of the data; it decides the order.
        sources: shell patterns; only pairs whose URL matches one of them are trained on.
        split: name of the split, ``train``.
        tables: SHA-256 of each shard's table; empty where they are not known and not checked.
        all_captions: whether the captions of pairs that have several are read too.
    """

    prefix: str
    names: tuple[str, ...]
    rows: tuple[int, ...]
    digest: str
    sources: tuple[str, ...] = ("*",)
    split: str = "train"
    tables: tuple[str, ...] = ()
    all_captions: bool = False

    @classmethod
    def of(
        cls,
        filtered: Manifest,
        sources: tuple[str, ...] = ("*",),
        rows: Sequence[int] | None = None,
        *,
        sampled: bool = False,
    ) -> "Corpus":
        """Return the training pairs of a filter stage.

        Args:
            filtered: the filter's manifest.
            sources: shell patterns; only pairs whose URL matches one of them are trained on.
            rows: number of those pairs of each shard, from ``count_rows``; None to count them here, which reads the
                tables of all shards unless all sources are wanted.
            sampled: whether the training draws among the captions of a pair.

        Raises:
            DataError: no pair matches.
        """
        names = shards.names_of(filtered, "train")
        parts = filtered.parts.below("train/")
        with_pairs = [(part.rows, part.sha256) for part in parts.below(suffix=".parquet") if part.rows]
        if rows is None and sources == ("*",):
            rows = [number for number, _ in with_pairs]
        elif rows is None:
            rows = count_rows(filtered.uri, "train", names, sources)
        identity = [[part.path, part.rows, part.sha256] for part in parts]
        tables = tuple(sha256 for _, sha256 in with_pairs)
        several = sampled and MORE_CAPTIONS in filtered.counts
        digest = digest_of([identity, sources])
        return cls(filtered.uri, tuple(names), tuple(rows), digest, sources, tables=tables, all_captions=several)

    def uri(self, shard: int, suffix: str) -> str:
        """Return the URI of a shard's ``.parquet`` or ``.tar``."""
        return storage.join(self.prefix, self.split, f"{self.names[shard]}{suffix}")

    def pairs(self, shard: int) -> pa.Table:
        """Read the pairs of a shard: ``row``, their rows in its table, ``key``, ``caption``; ``captions`` if wanted.

        Raises:
            DataError: the table is damaged, or has another number of pairs than it had when they were counted.
            StorageError: it cannot be read, or was altered.
        """
        uri = self.uri(shard, ".parquet")
        columns = ["key", "caption", *(["captions"] if self.all_captions else [])]
        matched = [] if self.sources == ("*",) else ["url"]
        table = storage.read_table(uri, [*columns, *matched], self.tables[shard] if self.tables else "")
        try:
            table.validate(full=True)
            rows = list(range(len(table))) if self.sources == ("*",) else _chosen(table, self.sources)
        except (pa.ArrowInvalid, UnicodeDecodeError) as error:
            raise DataError(f"{uri} is damaged ({error}); {damage.remedy(uri)}") from error
        if len(rows) != self.rows[shard]:
            raise DataError(
                f"{uri} has {len(rows)} pairs to train on and had {self.rows[shard]} when they were counted: the "
                "shard was replaced; start the training again"
            )
        numbers = pa.array(rows, pa.int64())
        return table.select(columns).take(numbers).add_column(0, _("row"), numbers)


def count_rows(prefix: str, split: str, names: Sequence[str], sources: Sequence[str]) -> list[int]:
    """Count the pairs of each shard whose URL matches one of some shell patterns.

    Raises:
        DataError: no pair matches.
    """

    def count(name: str) -> int:
        table = storage.read_table(storage.join(prefix, split, f"{name}.parquet"), ["url"])
        return len(_chosen(table, sources))

    with ThreadPoolExecutor(_READERS) as readers:
        rows = list(readers.map(count, names))
    if not sum(rows):
        raise DataError(f"no pair of {split} comes from {', '.join(sources)}: correct these patterns on its URL")
    return rows


def _chosen(table: pa.Table, sources: Sequence[str]) -> list[int]:
    """Return the rows of a table whose URL matches one of the patterns."""
    return [row for row, wanted in enumerate(matching(table["url"].to_pylist(), sources)) if wanted]
