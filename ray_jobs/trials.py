"""Run trials of a sweep in one process, which imports torch and Ray once: ``python -m ray_jobs.trials --data URI``.

It reads a line for each trial, ``RUN URI`` of its experiment, and answers with a line of JSON: ``run``, ``manifest``
(of its evaluation) and ``error``. Standard output has these lines alone. A trial's stages are jobs as any others: each
has its record, its run in MLflow and its manifest, and one that has finished is found and not run.
"""

import argparse
import contextlib
import json
import logging
import os
import sys
import time
from collections.abc import Mapping

from wukong import stages
from wukong.config import stored
from wukong.config.experiment import Experiment
from wukong.errors import WukongError
from wukong.evaluate.results import DOCUMENT, headlines_of
from wukong.runs import run_records
from wukong.runtime import logs
from wukong.runtime.cancel import end_with_parent
from wukong.stages import places
from wukong.store import fence, manifest, storage
from wukong.store.manifest import Manifest
from wukong.tracking import mlflow_runs, stage_results

STAGES = (*stages.TRAININGS, "evaluate")
"""The stages of a trial."""

log = logging.getLogger(__name__)


class TrialError(WukongError):
    """A stage of a trial failed; the message is the stage's own."""


def run(experiment: Experiment, name: str, filtered: Manifest) -> Manifest:
    """Train and evaluate a trial, and end its run in MLflow; return its evaluation's manifest.

    Args:
        experiment: the trial's.
        name: name of its run.
        filtered: the manifest of the filtered pairs.

    Raises:
        TrialError: a stage failed, or the pairs have not passed the trial's gate.
    """
    if (validated := places.validation(experiment, filtered).finished()) is None:
        raise TrialError(
            f"the pairs at {filtered.uri} have not passed the gate of {name}: sweep settings of training only"
        )
    made = {"filter": filtered, "validate": validated}
    for stage in STAGES:
        with mlflow_runs.stage_run(experiment, name, stage) as run_id:
            made[stage] = _stage(experiment, name, stage, made, run_id)
            stage_results.log_stage(run_id, made[stage])
    document = storage.read_json(*made["evaluate"].file(DOCUMENT))
    mlflow_runs.complete_run(experiment, name, headlines_of(document))
    return made["evaluate"]


def _stage(experiment: Experiment, name: str, stage: str, made: dict[str, Manifest], run_id: str | None) -> Manifest:
    began = time.monotonic()
    parents = {parent: made[parent] for parent in stages.of(stage).parents}
    with places.reserved(stage, experiment, parents, name, stage) as known:
        if known is None:
            return _run_job(experiment, name, stage, parents, run_id)
        run_records.write_reused(experiment, name, stage, known, time.monotonic() - began)
        return known


def _run_job(
    experiment: Experiment, name: str, stage: str, parents: Mapping[str, Manifest], run_id: str | None
) -> Manifest:
    import ray

    from ray_jobs.__main__ import main as run_job

    if run_id:
        os.environ["MLFLOW_RUN_ID"] = run_id
    arguments = [stage, "--experiment", stored.store(experiment), "--run", name]
    for parent in parents.values():
        arguments += ["--parent", storage.join(parent.uri, "manifest.json")]
    try:
        status = run_job(arguments)
    finally:
        os.environ.pop("MLFLOW_RUN_ID", None)
        os.environ.pop(fence.VARIABLE, None)  # of this job, not of the next
        ray.shutdown()  # its workers know the run that they log to, so each stage has workers of its own
    if (finished := run_records.read(experiment, name, stage)) is None or status:
        raise TrialError(finished.error if finished else f"the {stage} job of {name} left no record")
    return manifest.load(finished.manifest)


def main() -> int:
    """Run the trials that standard input names."""
    parser = argparse.ArgumentParser(prog="python -m ray_jobs.trials", description="Run trials of a sweep.")
    parser.add_argument("--data", required=True, help="URI of the manifest of the filtered pairs")
    options = parser.parse_args()
    logs.start()
    end_with_parent()
    filtered = manifest.load(options.data)
    answers = sys.stdout
    with contextlib.redirect_stdout(sys.stderr):
        for line in sys.stdin:
            name, uri = line.split()
            answer = {"run": name, "manifest": "", "error": ""}
            try:
                made = run(stored.load(uri), name, filtered)
                answer["manifest"] = storage.join(made.uri, "manifest.json")
            except WukongError as error:
                log.error("%s failed: %s", name, error)
                answer["error"] = str(error)
            print(json.dumps(answer, ensure_ascii=False), file=answers, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
