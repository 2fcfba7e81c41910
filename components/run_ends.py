"""Begin and end of a pipeline run on a cluster: make the experiment from parameters, record how the run ended."""

import json
import logging
import os
from collections.abc import Mapping, Sequence

from wukong import config, run_records, tracking
from wukong.config import Experiment
from wukong.errors import ConfigError, DataError

log = logging.getLogger(__name__)

_SUCCEEDED = ("SUCCEEDED", "COMPLETE", "CACHED")
_CANCELLED = ("CANCELLED", "CANCELED", "RUNNING", "NEW")
"""The exit handler gets the state of the run's execution in ML Metadata: COMPLETE for a run that succeeded; RUNNING for
one that was terminated, whose execution nobody ended."""

AS_IS = -1
"""Default of numeric parameters: the experiment's own value stays."""


def experiment_of(text: str, overrides: Sequence[str], values: Mapping[str, float | str]) -> Experiment:
    """Make the experiment from a pipeline's parameters.

    Args:
        text: the experiment as YAML or JSON.
        overrides: ``key.path=value`` entries, applied first.
        values: by dotted key; values that are ``AS_IS`` or empty change nothing.

    Raises:
        ConfigError: the result is not a valid experiment.
    """
    given = [f"{key}={json.dumps(value)}" for key, value in values.items() if value not in (AS_IS, "")]
    return config.loads(text, [*overrides, *given], where="the pipeline's experiment")


def continue_experiment(experiment: Experiment) -> tuple[Experiment, str]:
    """Make an experiment continue its own last run.

    Returns:
        The experiment with ``crawl.previous`` set to the newest crawl, and the URI of the newest pre-training's
        manifest, whose model the next one starts from. For a first run: the experiment unchanged and an empty URI.
    """
    previous = run_records.latest(experiment, "crawl")
    if previous is None:
        return experiment, ""
    crawl = experiment.crawl.model_copy(update={"previous": previous})
    return experiment.model_copy(update={"crawl": crawl}), run_records.latest(experiment, "pretrain") or ""


def manifest_of(experiment: Experiment, run: str, stage: str) -> str:
    """Return the URI of the manifest that a stage of a run wrote.

    Raises:
        DataError: the run has no record of the stage, or the stage failed.
    """
    record = run_records.read(experiment, run, stage)
    if record is None or not record.manifest:
        state = "it failed: " + record.error if record else "there is no record of it"
        raise DataError(f"run {run} of experiment {experiment.name} has no finished {stage} stage: {state}")
    return record.manifest


def record_end_of(text: str, overrides: Sequence[str], run: str, job: str, state: str, message: str) -> None:
    """Record how a run ended; end RayJobs and MLflow runs that it has left.

    If the run's name belongs to another run, nothing under that name changes. What cannot be ended is logged and stops
    nothing else: an exit handler that fails would show a run as failed that succeeded.

    Args:
        text: the experiment as YAML or JSON, as the pipeline got it.
        overrides: as the pipeline got them.
        run: name of the run.
        job: KFP's name of the run.
        state: how the run ended, as KFP says it, of itself or of the run's execution in ML Metadata.
        message: KFP's message, or empty.
    """
    try:
        experiment = config.loads(text, list(overrides))
        run_records.check_name(run)
    except ConfigError as error:
        log.error("nothing to record, the run never had a valid experiment and name: %s", error)
        return
    holder = run_records.claimed(experiment, run)
    if holder is not None and holder.holder != job:
        log.error("nothing to record, the name %s belongs to the run %s", run, holder.holder or "of another machine")
        return
    succeeded, cancelled = state in _SUCCEEDED, state in _CANCELLED
    if namespace := os.environ.get("WUKONG_CLUSTER"):
        from ray_jobs.launch import kuberay

        try:
            for name in kuberay.end_run(experiment, run, namespace):
                log.warning("RayJob %s was still there and is deleted", name)
        except kuberay.RayJobError as error:
            log.error("RayJobs of the run may be left: %s", error)
    failed = [record for record in run_records.read_all(experiment, run) if record.state == "failed"]
    why = "; ".join(f"{entry.stage}: {entry.error}" for entry in failed)
    why = "" if succeeded else message or why or ("terminated" if cancelled else state)
    run_records.write(
        experiment, run, run_records.Record(stage="run", state="succeeded" if succeeded else "failed", error=why)
    )
    if not succeeded:
        tracking.end_open_runs(experiment, run, "KILLED" if cancelled else "FAILED")
    log.info("run %s: %s %s", run, state, why)
