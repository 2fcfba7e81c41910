"""Start a stage's Ray job, wait for its end, and read the manifest it wrote.

A stage that has finished already costs no job: ``launch`` looks for its manifest first, under the key that the job
would compute (``wukong.stages.places``). Otherwise it chooses one of three launchers, each a module with a function
``run_job``:

- ``kuberay``: ``WUKONG_CLUSTER`` names a Kubernetes namespace; the job becomes a RayJob there.
- ``job_api``: ``RAY_ADDRESS`` is the ``http`` address of a Ray dashboard; the job runs on that cluster's head.
- ``local``: otherwise; the job is a process on this machine. It connects to the Ray cluster at ``RAY_ADDRESS``, or
  starts Ray here.

All three run the same command, ``python -m ray_jobs STAGE``, and leave the same results: a manifest under the stage's
prefix and a record under the run's. This module writes the experiment to storage for the job to read, and afterwards
reads the record.
"""

import logging
import os
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

from ray_jobs.launch import local
from wukong.config import stored
from wukong.config.experiment import Experiment
from wukong.errors import WukongError
from wukong.runs import run_records
from wukong.runs.run_records import Record
from wukong.runtime import forwarded
from wukong.stages import places, run_paths
from wukong.store import manifest, storage, takedowns
from wukong.store.manifest import Manifest

log = logging.getLogger(__name__)


class JobError(WukongError):
    """A stage's job ended without a manifest; the message is the error that ended the job."""


def launch(
    stage: str,
    experiment: Experiment,
    run_name: str,
    parents: Sequence[str],
    environment: Mapping[str, str] | None = None,
    *,
    filed_as: str = "",
) -> Manifest:
    """Run one stage to its end and read its manifest.

    Args:
        stage: name of the stage; ``ray_jobs`` has a module of this name.
        experiment: the experiment that the stage belongs to.
        run_name: name of the pipeline run.
        parents: URIs of the parents' manifests.
        environment: variables for the job, in addition to those of this process.
        filed_as: name of the run's record of this job, where the run does the stage more than once; empty for the
            stage's.

    Raises:
        JobError: the job failed; the message is the job's own.
        RayJobError: Kubernetes or KubeRay refused the job, or ended it.
        JobApiError: Ray's job API could not be reached or refused the job, or Ray ended the job.
    """
    record_name = filed_as or stage
    with _reserved(stage, experiment, run_name, parents, record_name) as known:
        if known is not None:
            return known
        return _launched(stage, experiment, run_name, parents, environment, filed_as)


def _launched(
    stage: str,
    experiment: Experiment,
    run_name: str,
    parents: Sequence[str],
    environment: Mapping[str, str] | None,
    filed_as: str,
) -> Manifest:
    """Run a stage's job to its end and read its manifest; for arguments and errors see ``launch``."""
    record_name = filed_as or stage
    arguments = [stage, "--experiment", stored.store(experiment), "--run", run_name]
    if filed_as:
        arguments += ["--filed-as", filed_as]
    for parent in parents:
        arguments += ["--parent", parent]
    variables = {**os.environ, **(environment or {})}
    status = _run_job(stage, experiment, run_name, arguments, variables, record_name)
    record = run_records.read(experiment, run_name, record_name)
    if record is None:
        record = Record(stage=record_name, state="failed", error=_explain_missing_record(stage, status))
        run_records.write(experiment, run_name, record)
    if record.state == "failed":
        raise JobError("\n".join(filter(None, (record.error, record.traceback))))
    return manifest.load(record.manifest)


def evaluate_champion(experiment: Experiment, run_name: str, parents: Sequence[str]) -> Manifest:
    """Evaluate a registered model on the test set of a run's own model; the run files it as ``champion``.

    It is the evaluate stage with other parents (``wukong.stages.places.rematch``), so an evaluation that is there is
    found.

    Args:
        experiment: the first result of ``rematch``.
        run_name: name of the run whose model competes with the registered one.
        parents: URIs of the parents' manifests.

    Raises:
        JobError: for this and the other errors see ``launch``.
    """
    return launch("evaluate", experiment, run_name, parents, filed_as="champion")


@contextmanager
def _reserved(
    stage: str, experiment: Experiment, run_name: str, parents: Sequence[str], record_name: str
) -> Iterator[Manifest | None]:
    """Yield the manifest that the stage's job would find, recorded as reused; None if there is work to do.

    Another run that is doing this work is waited for (``wukong.stages.places.reserved``). What cannot be read from here
    is left to the job, which may be on a machine that can.
    """
    began = time.monotonic()
    with ExitStack() as reservation:
        try:
            takedowns.wait_for_end(experiment.root)  # before the parents are read, which it changes
            handed_on = {parent.stage: parent for parent in map(manifest.load, parents)}
            finished = reservation.enter_context(places.reserved(stage, experiment, handed_on, run_name, record_name))
        except WukongError as error:
            log.info("whether %s has finished is left to its job: %s", stage, error)
            finished = None
        if finished is not None:
            seconds = time.monotonic() - began
            run_records.write_reused(experiment, run_name, record_name, finished, seconds)
            log.info("%s was finished already, found in %.1f s: %s", stage, seconds, finished.uri)
        yield finished


def _run_job(
    stage: str,
    experiment: Experiment,
    run_name: str,
    arguments: Sequence[str],
    variables: Mapping[str, str],
    record_name: str,
) -> int:
    """Choose the launcher, run the job to its end, and return its exit status (negative: the signal that killed it)."""
    sent = {name: variables[name] for name in forwarded.TO_JOBS if name in variables}
    if namespace := os.environ.get("WUKONG_CLUSTER"):
        from ray_jobs.launch import kuberay

        try:
            kuberay.run_job(stage, experiment, run_name, arguments, sent, namespace, record_name=record_name)
        except kuberay.RayJobError as error:
            # The stage's own record explains its failure better than KubeRay does.
            record = run_records.read(experiment, run_name, record_name)
            if error.reason not in kuberay.INFRASTRUCTURE or record is None or record.state != "failed":
                raise
            return 1
        return 0
    # An earlier attempt's record must not be taken for this one's. The KubeRay launcher deletes it itself, and only
    # when it makes a new RayJob: it may instead wait for one that an earlier process started.
    storage.delete(run_paths.uri_of(experiment, run_name, f"{record_name}.json"))
    if (address := os.environ.get("RAY_ADDRESS", "")).startswith("http"):
        from ray_jobs.launch import job_api

        return job_api.run_job(arguments, sent, address)
    return local.run_job(arguments, variables)


def _explain_missing_record(stage: str, status: int) -> str:
    """Return a message for a job that left no record, from its exit status."""
    if status >= 0:
        return f"the {stage} job ended with status {status} and left no record; its last output is in the log"
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = f"signal {-status:d}"
    if name == "SIGKILL":
        name = f"{name} (by a person, or by the system where memory ran out)"
    return f"the {stage} job was killed by {name}: run again, and it goes on after what is complete"
