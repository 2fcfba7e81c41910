"""The workers of a training on Ray Train: how many there are, what each has, and what follows when they fail.

Where a worker was lost, Ray Train starts a new group of workers, which finds the last checkpoint by itself; so it does
after each failure that may not come again, until it fails too often without a new checkpoint.
"""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs
import ray
import ray.train
from ray.train import ControllerError, FailureConfig, RunConfig, ScalingConfig, WorkerGroupError
from ray.train.torch import TorchTrainer

from ray_jobs import gpus
from ray_jobs.training_worker import Job, work
from wukong.config.training import Training
from wukong.errors import ConfigError, StorageError, WukongError
from wukong.store import fence, storage
from wukong.train import checkpoint as checkpoints

RESIZE_SECONDS = 60.0
"""Seconds between two looks at whether there are machines for more workers (``min_workers``)."""
_START_SECONDS = 60.0
"""Seconds for which machines are waited for before that counts as a failure, as Ray Train does."""

log = logging.getLogger(__name__)


class _Trainer(TorchTrainer):  # type: ignore[misc]  # Ray publishes no types
    """Ray's trainer, without two processes that do nothing here.

    - One hands out Ray Data's datasets; the workers read the shards themselves.
    - One removes placement groups, where there is a dashboard. It asks the dashboard whether the controller is alive.
      Where there is none, each question takes 40 seconds, and the end of a training waits 12 seconds for the answer.

    This is the only use of Ray's private API (Ray 2.60). Ray has no public way to leave a default callback out, and
    after its start nothing public tells whether there is a dashboard: a second ``ray.init`` would, and would replace
    the handler of SIGTERM. ``tests/ray_jobs/test_worker_group.py`` says when Ray has changed what is used here.
    """

    def _create_default_callbacks(self) -> list[Any]:
        left_out = {"DatasetsCallback"}
        if not ray._private.worker.get_dashboard_url():
            left_out.add("PlacementGroupCleanerCallback")
        return [made for made in super()._create_default_callbacks() if type(made).__name__ not in left_out]


def run(job: Job, records: str) -> None:
    """Train with as many workers as the settings ask for, again after a failure, until the training has ended.

    Args:
        job: what each worker gets.
        records: URI of a folder for Ray's own records.

    Raises:
        WukongError: an error in settings or data, which would come again, at once.
        ConfigError: the workers could not be started, too often; or torch cannot use a machine's GPU, at once.
        TrainingFailedError: another failure, too often.
    """
    filesystem, path = storage.filesystem(records)
    if isinstance(filesystem, pafs.LocalFileSystem):
        Path(path).mkdir(parents=True, exist_ok=True)

    def fit(failures: int) -> None:
        if job.settings.min_workers:
            _wait_for_machines(job.name, job.settings)
        if job.settings.gpus_per_worker:
            gpus.check()
        _Trainer(
            partial(work, job),
            scaling_config=_scaling(job.settings),
            run_config=RunConfig(
                name="-".join(filter(None, [job.name, fence.attempt(), str(failures)])),
                storage_path=path,
                storage_filesystem=filesystem,
                failure_config=FailureConfig(max_failures=0, controller_failure_limit=0),
            ),
        ).fit()

    _until_trained(fit, job.name, job.settings, job.checkpoints)


def _until_trained(fit: Callable[[int], None], name: str, settings: Training, uri: str) -> None:
    """Train, and begin again after a failure that may not come again, until it fails too often without progress.

    Args:
        fit: function that trains from the newest checkpoint; it gets the number of the failures so far.
        name: name of the stage.
        settings: settings of the training.
        uri: prefix of the checkpoints.
    """
    failures, in_a_row, newest = 0, 0, checkpoints.newest(uri)
    while True:
        try:
            return fit(failures)
        except (WorkerGroupError, ControllerError) as error:
            reason = _reason_to_go_on(error, name, settings)
            fence.check()
            last, newest = newest, checkpoints.newest(uri)
            failures, in_a_row = failures + 1, 1 if newest != last else in_a_row + 1
            if in_a_row > gpus.MAX_FAILURES:
                if reason is error:
                    raise
                raise reason from error
            log.warning(
                "%s failed and goes on from %s; failure %d of at most %d without a new checkpoint: %s",
                name,
                newest or "its start",
                in_a_row,
                gpus.MAX_FAILURES,
                reason,
            )


def _reason_to_go_on(error: WorkerGroupError | ControllerError, name: str, settings: Training) -> Exception:
    """Return the error that says why a group of workers failed.

    Raises:
        WukongError: the failure would come again.
    """
    if isinstance(error, ControllerError):
        return _not_started(name, settings, str(error.controller_failure))
    causes = error.worker_failures.values()
    for cause in causes:
        # A store that was away for long may be back.
        if isinstance(cause, WukongError) and not isinstance(cause, StorageError):
            raise cause from error
    return next((cause for cause in causes if isinstance(cause, StorageError)), error)  # not all tracebacks


def _not_started(name: str, settings: Training, why: str) -> ConfigError:
    """Return the error that names what the cluster lacks."""
    least, most, cards = settings.min_workers, settings.workers, settings.gpus_per_worker
    number = f"{least:d} to {most:d}" if least else f"{most}"
    each = f"with one core and {cards} GPUs each" if cards else "with one core each"
    there = ray.cluster_resources()
    return ConfigError(
        f"{number} workers of {name}, {each}, could not be started: the cluster has {there.get('CPU', 0):g} cores and "
        f"{there.get('GPU', 0):g} GPUs ({why}). Add machines, or set {name}.workers or {name}.min_workers lower"
    )


def _scaling(settings: Training) -> ScalingConfig:
    """Return how many workers Ray Train starts, and what Ray reserves for each."""
    scaling = ScalingConfig(
        num_workers=settings.workers,
        use_gpu=settings.gpus_per_worker > 0,
        resources_per_worker=_reserved(settings),
    )
    if settings.min_workers:
        elastic = {"num_workers": (settings.min_workers, settings.workers)}
        scaling = replace(scaling, **elastic, elastic_resize_monitor_interval_s=RESIZE_SECONDS)
    return scaling


def _reserved(settings: Training) -> dict[str, float]:
    """Return what Ray reserves for a worker: a core, one for each of its loader processes, and its GPUs.

    Machines with fewer cores are not waited for: the worker and its loader processes then share those that there are,
    so many for each worker that all workers have room, or that one has where machines are missing.
    """
    loaders = 0 if settings.reads_features else settings.loader_workers
    least = _minimum(settings)
    wanted = settings.workers if _room_for(least) >= settings.workers else 1
    for cores in range(1 + loaders, 0, -1):
        reserved = {**least, "CPU": float(cores)}
        if _room_for(reserved) >= wanted:
            break
    if cores < 1 + loaders:
        log.info("%d loader processes of each worker share %d cores with it: the machines have no more", loaders, cores)
    return reserved


def _minimum(settings: Training) -> dict[str, float]:
    """Return what a worker cannot do without."""
    return {"CPU": 1.0, **({"GPU": float(settings.gpus_per_worker)} if settings.gpus_per_worker else {})}


def _room_for(reserved: Mapping[str, float]) -> int:
    """Return for how many workers the machines of the cluster have room."""
    machines = [machine["Resources"] for machine in ray.nodes() if machine["Alive"]]
    return sum(min(int(there.get(name, 0) // needed) for name, needed in reserved.items()) for there in machines)


def _wait_for_machines(name: str, settings: Training) -> None:
    """Wait until there are machines for ``min_workers``; Ray Train would wait for them without an end or a word.

    Raises:
        ConfigError: there were none for as many minutes as there may be failures, and one more.
    """
    for minute in range(gpus.MAX_FAILURES + 1):
        until = time.monotonic() + _START_SECONDS
        while _room_for(_minimum(settings)) < settings.min_workers:
            if time.monotonic() > until:
                break
            time.sleep(1)
        else:
            return
        missing = _not_started(name, settings, f"none came for {(minute + 1) * _START_SECONDS:.0f} seconds")
        log.warning("%s", missing)
    raise missing
