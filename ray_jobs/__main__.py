"""Run one stage as a Ray driver: ``python -m ray_jobs STAGE --experiment URI --run NAME [--parent URI ...]``.

This is the entry point of a RayJob on a cluster and of the other launchers. It connects to the Ray cluster that
``RAY_ADDRESS`` names, or starts Ray on this machine, runs the stage, and writes a record of how the stage ended.
"""

import argparse
import importlib
import logging
import os
import sys
import time
import traceback

import ray
import ray.exceptions

from ray_jobs import machines, stopped_drivers
from ray_jobs.connection import connect
from wukong import stages
from wukong.config import stored
from wukong.config.experiment import Experiment
from wukong.errors import WukongError
from wukong.runs import run_records
from wukong.runs.run_records import Record
from wukong.runtime import logs
from wukong.runtime.cancel import end_with_parent
from wukong.stages import preflight, preflight_model
from wukong.store import fence, manifest, storage, takedowns
from wukong.store.fence import FencedError, TakenOverError

# Ray's errors after the loss of a node. Errors of the tasks' own code, and processes that were killed for memory, are
# none of them: they would come again.
_LOST = (
    ray.exceptions.NodeDiedError,
    ray.exceptions.ObjectLostError,
    ray.exceptions.ActorUnavailableError,
    ConnectionError,  # of ray.init: the head is gone
)

log = logging.getLogger(__name__)


def main(arguments: list[str] | None = None) -> int:
    """Run the stage and record how it ended; return 0 if it succeeded, 1 if it failed."""
    options = _parser().parse_args(arguments)
    logs.start()
    end_with_parent()
    experiment, filed_as = stored.load(options.experiment), options.filed_as or options.stage
    started = time.monotonic()
    try:
        takedowns.wait_for_end(experiment.root)
        parents = {parent.stage: parent for parent in map(manifest.load, options.parent)}
        fence.claim(experiment.root, options.run, filed_as)
        connect()
        if sum(machine["Alive"] for machine in ray.nodes()) > 1:
            preflight.check_shared_storage(experiment)
        preflight_model.check_weights(experiment)  # the component that checks the rest of a pipeline's run has no torch
        job = importlib.import_module(f"ray_jobs.{options.stage}")
        started, began = time.monotonic(), time.time()
        with stopped_drivers.watched(), machines.noted(experiment, options.run, filed_as):
            result = job.run(experiment, parents)
            seconds = time.monotonic() - started
        fence.check()
    except Exception as error:  # noqa: BLE001 - the record must hold every error
        explained = _explained_cause(error)
        if isinstance(explained, TakenOverError):
            os.environ.pop(fence.VARIABLE, None)  # another run did this, so the record is still this attempt's
        elif isinstance(explained, FencedError):
            log.error("%s", explained)  # the record belongs to the newer attempt
            return 1
        record = Record(
            stage=filed_as,
            state="failed",
            seconds=round(time.monotonic() - started, 3),
            error=str(explained or f"{type(error).__name__}: {error}"),
            traceback="" if explained else traceback.format_exc(),
            infrastructure=isinstance(explained, TakenOverError)
            or (isinstance(error, _LOST) and not isinstance(error, (WukongError, ray.exceptions.RayTaskError))),
        )
        if not _recorded(experiment, options.run, record):
            return 1
        log.error("%s failed: %s", options.stage, record.error)
        if record.traceback:
            log.error("%s", record.traceback)
        return 1
    reused = _created_before(result, began)
    record = Record(
        stage=filed_as,
        state="succeeded",
        manifest=storage.join(result.uri, "manifest.json"),
        reused=reused,
        seconds=round(seconds, 3),
    )
    if not _recorded(experiment, options.run, record):
        return 1
    log.info(
        "%s %s in %.1f s: %s",
        options.stage,
        "was finished already, found" if reused else "finished",
        seconds,
        result.uri,
    )
    return 0


def _recorded(experiment: Experiment, run: str, record: Record) -> bool:
    """Write the record; return whether no newer attempt has begun, whose record it would be."""
    try:
        run_records.write(experiment, run, record)
    except FencedError as error:
        log.error("%s", error)
        return False
    return True


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m ray_jobs", description="Run one stage as a Ray driver.")
    parser.add_argument("stage", choices=stages.JOBS)
    parser.add_argument("--experiment", required=True, help="URI of the experiment as JSON")
    parser.add_argument("--run", required=True, help="name of the pipeline run the record is filed under")
    parser.add_argument("--filed-as", default="", help="name of the record, by default the stage's")
    parser.add_argument("--parent", action="append", default=[], help="URI of a parent's manifest (repeatable)")
    return parser


def _explained_cause(error: BaseException) -> WukongError | None:
    """Return Wukong's own error inside the errors that Ray has wrapped around it; None if there is none."""
    seen: set[int] = set()
    pending: list[BaseException] = [error]
    while pending:
        current = pending.pop()
        if id(current) in seen:
            continue
        seen.add(id(current))
        # Ray raises an error of a class derived from Wukong's and its own; its text is a remote traceback. The cause of
        # that error is Wukong's own, with the original message.
        if isinstance(current, WukongError) and not isinstance(current, ray.exceptions.RayError):
            return current
        inner = [current.__cause__, current.__context__, getattr(current, "cause", None)]
        failures = getattr(current, "worker_failures", None)
        inner += list(failures.values()) if isinstance(failures, dict) else []
        pending += [entry for entry in inner if isinstance(entry, BaseException)]
    return None


def _created_before(result: manifest.Manifest, began: float) -> bool:
    from datetime import datetime

    created = result.provenance.get("created")
    return bool(created) and datetime.fromisoformat(str(created)).timestamp() < int(began)


if __name__ == "__main__":
    status = main()
    if status == 0:
        ray.shutdown()  # else Ray does it at the end, after half a second for last lines of workers
    sys.exit(status)
