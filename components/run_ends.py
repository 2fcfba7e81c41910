"""The two ends of a pipeline run on a cluster: the experiment made of its parameters, and how the run ended."""

import json
import logging
import os
from collections.abc import Mapping, Sequence

from wukong import config, run_records, tracking
from wukong.config import Experiment
from wukong.errors import ConfigError, DataError

log = logging.getLogger(__name__)

AS_IS = -1
"""A numeric parameter with this value leaves the experiment as it is."""


def experiment_of(text: str, overrides: Sequence[str], values: Mapping[str, float | str]) -> Experiment:
    """Make the experiment of a pipeline's parameters.

    Args:
        text: the experiment as YAML or JSON.
        overrides: ``key.path=value`` entries, applied first.
        values: by dotted key; those that are ``AS_IS`` or empty are left out.

    Raises:
        ConfigError: the result is not a valid experiment.
    """
    given = [f"{key}={json.dumps(value)}" for key, value in values.items() if value not in (AS_IS, "")]
    return config.loads(text, [*overrides, *given], where="the pipeline's experiment")


def continued(experiment: Experiment) -> tuple[Experiment, str]:
    """Make an experiment go on from its own last run.

    Returns:
        The experiment with ``crawl.previous`` set to the newest crawl, and the URI of the manifest of the newest
        pre-training, whose model the next one starts from. On the first run nothing changes and the URI is empty.
    """
    previous = run_records.latest(experiment, "crawl")
    if previous is None:
        return experiment, ""
    crawl = experiment.crawl.model_copy(update={"previous": previous})
    return experiment.model_copy(update={"crawl": crawl}), run_records.latest(experiment, "pretrain") or ""


def manifest_of(experiment: Experiment, run: str, stage: str) -> str:
    """URI of the manifest that a run's stage ended with.

    Raises:
        DataError: that run has no such stage, or it failed.
    """
    record = run_records.read(experiment, run, stage)
    if record is None or not record.manifest:
        state = "it failed: " + record.error if record else "there is no record of it"
        raise DataError(f"run {run} of experiment {experiment.name} has no finished {stage} stage: {state}")
    return record.manifest


def finish(text: str, overrides: Sequence[str], run: str, job: str, state: str, message: str) -> None:
    """Record how a run ended, and end what it may have left behind: RayJobs and runs in MLflow.

    A run that was refused because its name belongs to another touches nothing under that name.

    Args:
        text: the experiment as YAML or JSON, as the pipeline got it.
        overrides: as the pipeline got them.
        run: name of the run.
        job: KFP's name of the run.
        state: KFP's word for how the run ended: ``SUCCEEDED``, ``FAILED`` or ``CANCELLED``.
        message: KFP's message, if it has one.
    """
    try:
        experiment = config.loads(text, list(overrides))
    except ConfigError as error:
        log.error("nothing to record, the run never had a valid experiment: %s", error)
        return
    holder = run_records.claimed(experiment, run)
    if holder is not None and holder.holder != job:
        log.error("nothing to record, the name %s belongs to the run %s", run, holder.holder or "of another machine")
        return
    succeeded = state == "SUCCEEDED"
    if namespace := os.environ.get("WUKONG_CLUSTER"):
        from ray_jobs.launch import kuberay

        for name in kuberay.end_run(experiment, run, namespace):
            log.warning("RayJob %s was still there and is deleted", name)
    failed = [record for record in run_records.read_all(experiment, run) if record.state == "failed"]
    why = "" if succeeded else message or "; ".join(f"{entry.stage}: {entry.error}" for entry in failed) or state
    run_records.write(
        experiment, run, run_records.Record(stage="run", state="succeeded" if succeeded else "failed", error=why)
    )
    if not succeeded:
        tracking.end(experiment, run, "KILLED" if state == "CANCELLED" else "FAILED")
    log.info("run %s: %s %s", run, state, why)
