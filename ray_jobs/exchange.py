"""The merges of an exchange (``wukong/curate/exchange.py``) as Ray tasks, and questions to the whole corpus.

A question is a table with a hash in each row: each group of parts writes one. Each range of hashes is answered by
itself, and the answers are brought back to the groups that asked. No task and no driver holds what all groups ask.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import polars as pl
import ray

from wukong.curate import exchange
from wukong.curate.exchange import File, Key, Merge, Source, Span
from wukong.store import storage

ASKER = "asker"
"""Column of a question, and the first of an answer: the number of the group that asks."""

RANGE_ROWS = 2_000_000
"""About how many rows the reader of a range of hashes holds."""

_MERGE_ROWS = 4_000_000
_HASHES = 2**64


@dataclass(frozen=True)
class Answers:
    """The answers to one question, by the number of the group that asked."""

    spans: tuple[Span, ...]
    askers: int

    def of(self, asker: int) -> pl.DataFrame:
        """Read the answers to one group, without the column ``ASKER``."""
        return exchange.source(self.spans, range(1, self.askers), asker).read().drop(ASKER)


def run_all(task: Callable[..., Any], arguments: Sequence[tuple[Any, ...]], num_gpus: int = 0) -> list[Any]:
    """Run a task for each tuple of arguments, and return what they return."""
    remote = _remote(task).options(num_gpus=num_gpus)
    return list(ray.get([remote.remote(*entry) for entry in arguments]))


@cache
def _remote(task: Callable[..., Any]) -> Any:
    """Return a function as a task of Ray, always the same one: each worker fetches each of them once."""
    return ray.remote(task)


def in_order(task: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]) -> Iterator[Any]:
    """Run a task for each tuple of arguments, and yield what they return, of which only one is held here."""
    remote = _remote(task)
    for reference in [remote.remote(*entry) for entry in arguments]:
        yield ray.get(reference)


def gathered(
    files: Sequence[File],
    edges: Sequence[Key],
    folder: str,
    rows: int = _MERGE_ROWS,
    fan: int | None = None,
    merge: Callable[..., File] = exchange.merge,
) -> list[Span]:
    """Merge files until each range of keys lies in few; for the arguments see ``wukong.curate.exchange.rounds``."""
    rounds, spans = exchange.rounds(files, edges, folder, rows, fan)
    for merges in rounds:
        run_all(merge, [(job,) for job in merges])
    return spans


def hash_ranges(
    files: Sequence[File], folder: str, rows: int | None = None, merge: Callable[..., File] = exchange.merge
) -> list[Source]:
    """Bring tables together whose key is a hash: ranges of hashes that hold about ``rows`` rows each.

    Args:
        files: the tables.
        folder: prefix of the merged files.
        rows: by default ``RANGE_ROWS``.
        merge: does one merge.
    """
    edges = exchange.edges(_HASHES, max(1, -(-sum(file.rows for file in files) // (rows or RANGE_ROWS))))
    spans = gathered(files, edges, folder, 2 * rows if rows else _MERGE_ROWS, merge=merge)
    return [exchange.source(spans, edges, number) for number in range(len(edges) + 1)]


def ask(
    asked: Sequence[File],
    answer: Callable[[pl.DataFrame], pl.DataFrame],
    folder: str,
    rows: int | None = None,
    merge: Callable[..., File] = exchange.merge,
) -> Answers:
    """Answer a question that every group has asked.

    Args:
        asked: the question of each group: a hash, ``ASKER``, and what else the answer needs.
        answer: makes the rows of the answer, with ``ASKER``, from the rows of all groups in a range of hashes.
        folder: prefix of the files of this question.
        rows: about how many are answered at a time; by default ``RANGE_ROWS``.
        merge: does one merge: ``wukong.curate.exchange.merge_once`` where a killed run should go on inside a question.
    """
    sources = hash_ranges(asked, storage.join(folder, "asked"), rows, merge)
    merges = [
        Merge(source, storage.join(folder, f"answers/{number:05d}.parquet")) for number, source in enumerate(sources)
    ]
    answers = run_all(merge, [(job, partial(_by_asker, answer)) for job in merges])
    spans = gathered(answers, range(1, len(asked)), storage.join(folder, "answered"), fan=1, merge=merge)
    return Answers(tuple(spans), len(asked))


def _by_asker(answer: Callable[[pl.DataFrame], pl.DataFrame], rows: pl.DataFrame) -> pl.DataFrame:
    return answer(rows).select(ASKER, pl.exclude(ASKER))
