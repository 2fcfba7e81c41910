"""Run a stage's Ray job and wait for it.

As a process of this machine that drives the Ray cluster at ``RAY_ADDRESS``; where that is the ``http`` address of a
dashboard, as a job of that cluster; where ``WUKONG_CLUSTER`` names a Kubernetes namespace, as a RayJob there. The
command is the same, and so is what it leaves behind: a manifest under the stage's prefix and a record under the run's.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from ray_jobs.launch.cancel import ENDS_WITH, cancelled_with_us
from wukong import manifest, run_records, storage
from wukong.config import Experiment
from wukong.errors import WukongError
from wukong.manifest import Manifest, digest_of

# What a job on another machine is told of the run it belongs to; where things are, and credentials, it has there.
_TOLD = ("MLFLOW_RUN_ID", "WUKONG_CONNECT_TO")
_GRACE = 4.0  # seconds between SIGTERM and SIGKILL; the driver's death ends what it has on Ray


class JobError(WukongError):
    """A stage's job ended without its manifest; the message is the error that ended it."""


def launch(
    stage: str,
    experiment: Experiment,
    run_name: str,
    parents: Sequence[str],
    environment: Mapping[str, str] | None = None,
) -> Manifest:
    """Run one stage to its end and read its manifest.

    Args:
        stage: the job's name, a module of this package.
        experiment: what to do.
        run_name: the pipeline run this belongs to.
        parents: URIs of the parents' manifests.
        environment: variables the job gets beside this process's own.

    Raises:
        JobError: the job failed; the message is the job's own.
        RayJobError: the cluster ended the job, or never began it.
        JobApiError: Ray's job API did so.
    """
    arguments = [stage, "--experiment", _stored(experiment), "--run", run_name]
    for parent in parents:
        arguments += ["--parent", parent]
    variables = {**os.environ, **(environment or {})}
    if namespace := os.environ.get("WUKONG_CLUSTER"):
        status = _run_on_cluster(stage, experiment, run_name, arguments, variables, namespace)
    elif (address := os.environ.get("RAY_ADDRESS", "")).startswith("http"):
        from ray_jobs.launch import job_api

        storage.delete(run_records.uri_of(experiment, run_name, f"{stage}.json"))
        told = {name: variables[name] for name in _TOLD if name in variables}
        status = job_api.run_job(arguments, told, address)
    else:
        storage.delete(run_records.uri_of(experiment, run_name, f"{stage}.json"))
        command = [sys.executable, "-m", "ray_jobs", *arguments]
        variables[ENDS_WITH] = str(os.getpid())
        with _ended_with_us(subprocess.Popen(command, env=variables)) as process:  # noqa: S603
            status = process.wait()
    record = run_records.read(experiment, run_name, stage)
    if record is None:
        record = run_records.Record(stage=stage, state="failed", error=_without_record(stage, status))
        run_records.write(experiment, run_name, record)
    if record.state == "failed":
        raise JobError(record.error + (f"\n{record.traceback}" if record.traceback else ""))
    return manifest.load(record.manifest)


def _run_on_cluster(
    stage: str,
    experiment: Experiment,
    run_name: str,
    arguments: Sequence[str],
    variables: Mapping[str, str],
    namespace: str,
) -> int:
    from ray_jobs.launch import kuberay

    try:
        kuberay.run_job(stage, experiment, run_name, arguments, variables, namespace)
    except kuberay.RayJobError as error:
        # What the stage itself says of its failure stands in its record, and is the better message.
        record = run_records.read(experiment, run_name, stage)
        if error.reason != "AppFailed" or record is None or record.state != "failed":
            raise
        return 1
    return 0


def _stored(experiment: Experiment) -> str:
    value = experiment.model_dump(mode="json")
    uri = storage.join(experiment.root, "experiments", f"{digest_of(value)[:16]}.json")
    if not storage.exists(uri):
        storage.write_json(uri, value)
    return uri


def _without_record(stage: str, status: int) -> str:
    """Say how a job ended that could not say so itself."""
    if status >= 0:
        return f"the {stage} job ended with status {status} and left no record; its last output is in the log"
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = f"signal {-status}"
    why = " (by a person, or by the system where memory ran out)" if name == "SIGKILL" else ""
    return f"the {stage} job was killed by {name}{why}: run again, and it goes on after what is complete"


@contextmanager
def _ended_with_us(process: "subprocess.Popen[bytes]") -> Iterator["subprocess.Popen[bytes]"]:
    """A cancelled run sends SIGTERM to the component: the job must not outlive it."""
    try:
        with cancelled_with_us(process.terminate):
            yield process
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(timeout=_GRACE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
