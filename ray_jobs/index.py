"""Make the index of a search by Ray tasks: ``python -m ray_jobs.index --model URI --data URI --index URI``.

It is the index that ``wukong serve`` makes in one process (``wukong.serve.encode``), under the same key. Pieces of the
collection and blocks of captions are encoded side by side, on GPUs where Ray has a free one; then a task joins each
shard. What is complete leaves a record, so a job that is run again goes on where it stopped. All nodes must reach the
URIs.
"""

import argparse
import logging
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from importlib import import_module
from typing import Any, TypeVar

import ray
import ray.exceptions

import wukong
from ray_jobs import gpus
from ray_jobs.connection import connect
from wukong.errors import WukongError
from wukong.evaluate.model import OwnModel
from wukong.runtime import logs
from wukong.serve import collection, encode
from wukong.store.manifest import Manifest

Work = TypeVar("Work")
Result = TypeVar("Result")

_AT_ONCE = 256
"""Tasks that wait or run at a time; more would only make Ray slower."""

log = logging.getLogger(__name__)


def build(model: str, data: str, index: str) -> Manifest:
    """Make the index of a collection by a model, or find it.

    Args:
        model: URI of the model, which all nodes reach; see ``wukong.load``.
        data: URI of the collection; see ``wukong.serve.collection.of``.
        index: URI under which indexes are kept.

    Raises:
        DataError: model or collection is damaged.
        StorageError: there is nothing at a URI, or the index cannot be written.
        ConfigError: Ray has a GPU that torch cannot use.
    """
    loaded = OwnModel(wukong.load(model), model)
    return encode.build(collection.of(data), loaded, index, on_ray(model))


def on_ray(model: str) -> encode.Run:
    """Run tasks on Ray; those that need the model on GPUs, if any is free now.

    Where all cores are reserved, as by the replicas of a search page, which do not end, one task at a time runs beside
    them.

    Args:
        model: URI of the model, which each worker loads once.
    """
    there, free = ray.cluster_resources(), ray.available_resources()
    on_gpus = free.get("GPU", 0) >= 1
    if not on_gpus and there.get("GPU", 0) >= 1:
        log.warning("all GPUs of Ray are reserved: the model runs on cores")
    beside = free.get("CPU", 0) < 1 <= there.get("CPU", 0)
    if beside:
        log.warning("all %d cores of Ray are reserved: one task at a time runs beside what holds them", there["CPU"])
    at_once = 1 if beside else _AT_ONCE

    def run(task: Callable[[OwnModel | None, Work], Result], work: Sequence[Work], /) -> Iterator[Result]:
        needed = model if task in encode.BY_MODEL else None
        options = {"num_cpus": 0 if beside else 1, "num_gpus": 1 if on_gpus and needed else 0}
        left, waiting = iter(work), deque[Any]()
        while True:
            while len(waiting) < at_once and (each := next(left, None)) is not None:
                waiting.append(_task.options(**options).remote(task, each, needed, on_gpus))
            if not waiting:
                return
            try:
                yield ray.get(waiting.popleft())
            except ray.exceptions.RayTaskError as error:
                if isinstance(error.cause, WukongError):
                    raise error.cause from error
                raise

    return run


@ray.remote(max_retries=2)
def _task(task: Callable[[OwnModel | None, Any], Any], work: Any, model: str | None, on_gpus: bool) -> Any:
    import torch

    torch.set_num_threads(1)
    return task(_loaded(model, on_gpus) if model else None, work)


@lru_cache(maxsize=1)
def _loaded(model: str, on_gpus: bool) -> OwnModel:
    return OwnModel(wukong.load(model, gpus.of_task() if on_gpus else "cpu"), model)


def main(arguments: list[str] | None = None) -> int:
    """Make an index; return 0, or 1 after an error that is explained."""
    parser = argparse.ArgumentParser(prog="python -m ray_jobs.index", description="Make the index of a search.")
    parser.add_argument("--model", required=True, help="URI of the model, which all nodes reach")
    parser.add_argument("--data", required=True, help="URI of the output of a filter or crawl")
    parser.add_argument("--index", required=True, help="URI under which indexes are kept")
    options = parser.parse_args(arguments)
    logs.start()
    connect()
    try:
        made = build(options.model, options.data, options.index)
    except WukongError as error:
        log.error("%s", error)
        return 1
    log.info("%d pictures are indexed at %s", made.counts["pictures"], made.uri)
    return 0


if __name__ == "__main__":
    # A worker finds what a task calls by the name of its module, and `__main__` is another one there.
    sys.exit(import_module("ray_jobs.index").main())
