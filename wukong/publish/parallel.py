"""Apply a function to files on all cores, and show the progress."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

from wukong.runtime import cancel, progress
from wukong.runtime.language import _

Item = TypeVar("Item")
Result = TypeVar("Result")

FEW = 2_000
"""Files that threads are enough for: to start processes takes seconds."""

_THREADS = 8
_AT_A_TIME = 16
_work: Callable[[Any], Any]  # of this worker process


def for_each(
    what: str, items: Sequence[Item], work: Callable[[Item], Result], *, many: bool | None = None
) -> Iterator[Result]:
    """Apply a function to items, and yield its results in their order. No work is done before the first is asked for.

    Args:
        what: what is done, for the progress display.
        items: mostly files.
        work: the function. For many items it is sent to processes of this machine, so it must be one of a module.
        many: whether processes are worth their start; by default if there are more than ``FEW`` items.
    """
    pool: Executor
    if len(items) > FEW if many is None else many:
        pool = ProcessPoolExecutor(_cores(), get_context("spawn"), _begin, (work, os.getpid()))
        results = pool.map(_apply, items, chunksize=_AT_A_TIME if len(items) > FEW else 1)
    else:
        pool = ThreadPoolExecutor(_THREADS)
        results = pool.map(work, items)
    try:
        with progress.track(what, len(items), _("files")) as advance:
            for result in results:
                yield result
                advance(1)
    finally:
        pool.shutdown(cancel_futures=True)


def _cores() -> int:
    """Return how many cores this process may use; in a container its quota says it."""
    cores = len(os.sched_getaffinity(0))
    quota = Path("/sys/fs/cgroup/cpu.max")
    limit, _, period = quota.read_text().partition(" ") if quota.exists() else ("max", "", "")
    return cores if limit == "max" else max(1, min(cores, int(limit) // int(period)))


def _begin(work: Callable[[Any], Any], parent: int) -> None:
    global _work  # noqa: PLW0603
    _work = work
    os.environ[cancel.ENDS_WITH] = str(parent)
    cancel.end_with_parent()


def _apply(item: Any) -> Any:
    return _work(item)
