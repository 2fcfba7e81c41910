"""Groups of consecutive parts of a crawl, on which the filter works, and what was decided of their pairs so far.

A Ray task works on one group, part by part, and leaves a record when it is done, by which a killed run goes on.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import polars as pl

from ray_jobs.exchange import ASKER, Answers, ask, run_all
from ray_jobs.repacking import Piece
from wukong.config.filter import Filter
from wukong.curate import apply, exchange, rules
from wukong.curate.caption_counts import Hashes
from wukong.data.crawl_part import CrawlPart, parts_of
from wukong.errors import DataError
from wukong.store import manifest, storage
from wukong.store.manifest import Manifest, Stage
from wukong.store.parts import Parts

log = logging.getLogger(__name__)

_GROUPS = 64
_MAX_ROWS = 100_000
_READERS = 32


@dataclass(frozen=True)
class Group:
    """Consecutive parts of the crawl, and the number of the first."""

    number: int
    first: int
    parts: tuple[CrawlPart, ...]

    @property
    def numbers(self) -> range:
        """Numbers of its parts."""
        return range(self.first, self.first + len(self.parts))


@dataclass(frozen=True)
class Compared:
    """What the rules found that compare pairs, as it is told to each group.

    Attributes:
        repeats: by the column of a rule's comparison, the keys of the pairs that repeat an earlier one.
        near: what ``wukong.curate.near_duplicates.nearest`` found.
        tested: whether what would be trained on was compared with test sets: the files of the pass ``overlap`` exist.
    """

    repeats: Mapping[str, Answers] = field(default_factory=dict)
    near: Answers | None = None
    tested: bool = False


def groups_of(crawl: Manifest) -> list[Group]:
    """Divide the parts of a crawl into groups of at most about 100,000 rows, and at least some groups.

    Raises:
        DataError: the crawl has no row.
    """
    parts = crawl.parts.below("parts/", ".parquet")
    if not parts.rows:
        raise DataError(f"the crawl at {crawl.uri} is empty: its queries found nothing")
    limit = min(_MAX_ROWS, -(-parts.rows // _GROUPS))
    cuts, rows = [0], 0
    for number, part in enumerate(parts):
        if number > cuts[-1] and rows + part.rows > limit:
            cuts.append(number)
            rows = 0
        rows += part.rows
    found, ends = list(parts_of(crawl)), [*cuts[1:], len(parts)]
    return [Group(n, low, tuple(found[low:high])) for n, (low, high) in enumerate(zip(cuts, ends, strict=True))]


def run_missing(
    name: str,
    stage: Stage,
    task: Callable[..., dict[str, Any]],
    units: Sequence[Group] | Sequence[Piece],
    shared: Callable[[], tuple[Any, ...]],
    num_gpus: int = 0,
    work_files: Callable[[Any], Iterable[str]] = lambda _: (),
) -> list[dict[str, Any]]:
    """Run a task for each group or piece that has no record yet, or lacks a file, and return the records of all.

    Args:
        name: name of the pass, by which records are found again.
        stage: that keeps the records.
        task: takes the stage, the group or piece, and what ``shared`` returns.
        units: all groups or pieces.
        shared: makes what the tasks share; it is called only if a task must run.
        num_gpus: what each task asks for.
        work_files: takes a group or piece; returns the paths of the task's files that are no parts of the output.
    """

    def finished(unit: Group | Piece) -> dict[str, Any] | None:
        def files(record: dict[str, Any]) -> Iterator[str]:
            yield from (part["path"] for part in record.get("parts", ()))
            yield from work_files(unit)

        return stage.finished_task(f"{name}-{unit.number:05d}", files)

    with ThreadPoolExecutor(_READERS) as readers:
        records = dict(zip((unit.number for unit in units), readers.map(finished, units), strict=True))
    missing = [unit for unit in units if records[unit.number] is None]
    if missing:
        common = shared()
        made = run_all(_run_and_record, [(task, name, stage, unit, *common) for unit in missing], num_gpus)
        records |= {unit.number: record for unit, record in zip(missing, made, strict=True)}
    log.info("filter: %s: %d of %d groups done, the others were done before", name, len(missing), len(units))
    return [record for record in records.values() if record is not None]


def _run_and_record(
    task: Callable[..., dict[str, Any]], name: str, stage: Stage, unit: Group | Piece, *shared: Any
) -> dict[str, Any]:
    record = task(stage, unit, *shared)
    stage.commit_task(f"{name}-{unit.number:05d}", record)
    return record


def ask_all(
    name: str,
    stage: Stage,
    groups: Sequence[Group],
    question: Callable[..., pl.DataFrame],
    answer: Callable[[pl.DataFrame], pl.DataFrame],
    *shared: Any,
) -> Answers:
    """Each group asks the whole corpus.

    Args:
        name: name of the question.
        stage: that keeps its files.
        groups: that ask.
        question: takes the stage, the group and what they share; returns a table whose first column is a hash.
        answer: makes the rows of the answer from the rows of all groups with a hash in some range.
        shared: what the groups share.
    """
    folder = stage.path(f"_work/{name}")
    asked = run_all(_write_question, [(question, folder, stage, group, *shared) for group in groups])
    return ask(asked, answer, folder)


def _write_question(
    question: Callable[..., pl.DataFrame], folder: str, stage: Stage, group: Group, *shared: Any
) -> exchange.File:
    rows = question(stage, group, *shared).with_columns(pl.lit(group.number, pl.UInt32).alias(ASKER))
    return exchange.write(storage.join(folder, f"questions/{group.number:05d}.parquet"), rows)


def pairs_so_far(stage: Stage, group: Group, settings: Filter, compared: Compared) -> Iterator[pl.DataFrame]:
    """The rows of a group's parts with the decisions so far, one table a part.

    Args:
        stage: the filter.
        group: whose rows.
        settings: which rules are on.
        compared: what the rules found so far that compare pairs.
    """
    own = {column: told(answers, group, "key") for column, answers in compared.repeats.items()}
    near = None if compared.near is None else compared.near.of(group.number)
    for number in group.numbers:
        uri = stage.path(judged_path(number, by_pictures=decides_late(settings)))
        pairs = apply.apply_comparisons(pl.DataFrame(storage.read_table(uri)), own, near, settings)
        if compared.tested:
            uris = map(stage.path, overlap_paths(number))
            found, found_captions = (pl.DataFrame(storage.read_table(each)) for each in uris)
            pairs = apply.apply_overlaps(pairs, found, found_captions, settings)
        yield pairs


def pairs_left(stage: Stage, group: Group, settings: Filter, compared: Compared) -> Iterator[pl.DataFrame]:
    """The rows of ``pairs_so_far`` that no rule has dropped."""
    for frame in pairs_so_far(stage, group, settings, compared):
        yield frame.filter(pl.col("dropped_by").is_null())


def told(answers: Answers, group: Group, column: str) -> Hashes:
    """A column of the answers to a group, sorted, each value once."""
    return np.unique(answers.of(group.number)[column].to_numpy())


def judged_path(part: int, *, by_pictures: bool = False) -> str:
    """Where the rows of a part stand with what the rules decided, or decided after its pictures were read."""
    return f"_work/{'looked' if by_pictures else 'rules'}/{part:05d}.parquet"


def decides_late(settings: Filter) -> bool:
    """Whether the pass after the pictures is done."""
    return rules.needs_pictures(settings) or bool(rules.decided("pictures", settings))


def columns_path(part: int) -> str:
    """Where the stage ``look`` has what was computed from the pictures of a part."""
    return f"parts/{part:05d}.parquet"


def read_columns(look: Stage, part: int, columns: Sequence[str] | None = None) -> pl.DataFrame:
    """Read what was computed from the pictures of a part.

    Args:
        look: the stage that has computed it, finished.
        part: number of the part.
        columns: those to read, of which some may not be there; None for all.

    Raises:
        StorageError: the file cannot be read, or was altered.
    """
    path = columns_path(part)
    digest = _parts_of(look.uri).sha256(path)
    return pl.DataFrame(storage.read_table(look.path(path), columns, digest, present_only=columns is not None))


@lru_cache(maxsize=1)
def _parts_of(uri: str) -> Parts:
    # Cached because one process reads the columns of many groups.
    return manifest.load(uri).parts


def overlap_paths(part: int) -> list[str]:
    """Where the pairs of a part stand that show a test picture, and the captions that are a test's."""
    return [f"_work/{folder}/{part:05d}.parquet" for folder in ("overlaps", "overlap-captions")]
