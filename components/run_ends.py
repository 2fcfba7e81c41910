"""Begin and end of a pipeline run on a cluster: make the experiment from parameters, record how the run ended."""

import logging
import os
from collections.abc import Sequence

from pydantic import ValidationError

from components import cost
from components.parameters import Parameters
from wukong.config import documents, stored
from wukong.config.experiment import Experiment
from wukong.errors import ConfigError, DataError
from wukong.runs import origin, run_records
from wukong.runs.origin import Source
from wukong.runs.run import Run
from wukong.runs.run_records import Record
from wukong.stages import preflight, run_paths
from wukong.stages import start as start_model
from wukong.tracking import mlflow_runs

log = logging.getLogger(__name__)

_SUCCEEDED = ("SUCCEEDED", "COMPLETE", "CACHED")
_CANCELLED = ("CANCELLED", "CANCELED", "RUNNING", "NEW")
"""The exit handler gets the state of the run's execution in ML Metadata: COMPLETE for a run that succeeded; RUNNING for
one that was terminated, whose execution nobody ended."""


def configured(asked: Parameters) -> tuple[str, str, str]:
    """Check what a run is asked to do, store its experiment, and take the run's name for it.

    Returns:
        URI of the experiment, the run's name, and the URI of the pre-training to start from, empty for none.

    Raises:
        ConfigError: the run cannot be done as it is asked for; the message says what to change.
    """
    run, names = asked.name, asked.stages
    try:
        run_paths.check_name(run)
    except ConfigError as error:
        raise ConfigError(f"run: {error}; or leave the parameter run empty for KFP's name of the run") from error
    changed = asked.changed_experiment()
    experiment, start = start_model.as_it_begins(changed, names), ""
    log.info("Check: the run %s of experiment %s: %s", run, experiment.name, ", ".join(names))
    preflight.check_stages(experiment, names)
    if os.environ.get("WUKONG_CLUSTER"):  # each stage is a RayJob with a head and workers
        preflight.check_shared_storage(experiment)
    preflight.check_access(experiment)
    preflight.check_world(experiment, names)
    if "crawl" in names:  # a pipeline that crawls reads the lists, another reads none
        preflight.check_lists(experiment)
        preflight.check_store(experiment)
        preflight.warn_of_few(experiment)
    if asked.continue_last_run:
        experiment, start = continue_experiment(experiment)
    run_records.claim(experiment, run, asked.job)
    note_origin(experiment, run, asked.source, origin.digest_of_experiment(changed))
    uri = stored.store(experiment)
    log.info("the run %s does what %s says", run, uri)
    return uri, run, start


def note_origin(experiment: Experiment, run: str, source: str, digest: str) -> None:
    """Store where a run comes from and with which images it begins; say if what submitted it is of another revision.

    Args:
        experiment: the experiment.
        run: name of the run.
        source: a ``wukong.runs.origin.Source`` as JSON; empty if nobody says where the run comes from.
        digest: of the experiment as it was asked for. Another than that of ``source`` is that of a run that was cloned
            and changed: its revision has another config.

    Raises:
        ConfigError: ``source`` is not what ``wukong submit`` writes.
    """
    try:
        given = Source.model_validate_json(source) if source.strip() else Source()
    except ValidationError as error:
        raise ConfigError(f"source: leave it empty, `wukong submit` fills it in: {error}") from error
    if given.digest and given.digest != digest:
        log.warning("this is not the experiment that was submitted: revision %s has another", given.revision or "-")
        given = given.model_copy(update={"dirty": True, "digest": digest})
    if difference := origin.store(experiment, run, given).difference:
        log.warning("%s", difference)
    if namespace := os.environ.get("WUKONG_CLUSTER"):
        from ray_jobs.launch import kuberay

        kuberay.keep_images(experiment, run, namespace)
        if images := kuberay.images_of_this_pod():
            origin.store_images(experiment, run, origin.COMPONENTS, "configure", images)


def continue_experiment(experiment: Experiment) -> tuple[Experiment, str]:
    """Make an experiment continue its own last run.

    Returns:
        The experiment with ``crawl.previous`` set to the newest crawl, and the URI of the newest pre-training's
        manifest, whose model the next one starts from. For a first run: the experiment unchanged and an empty URI.
    """
    previous, start = run_records.latest(experiment, "crawl"), run_records.latest(experiment, "pretrain")
    if previous is None:
        return experiment, ""
    for taken in filter(None, (previous, start)):
        log.info("this run goes on from %s, of the run %s", taken.uri, taken.run)
    crawl = experiment.crawl.model_copy(update={"previous": previous.uri})
    return experiment.model_copy(update={"crawl": crawl}), start.uri if start else ""


def manifest_of(experiment: Experiment, run: str, stage: str) -> str:
    """Return the URI of the manifest that a stage of a run wrote.

    Raises:
        DataError: the run has no record of the stage, or the stage failed.
    """
    record = run_records.read(experiment, run, stage)
    if record is None or not record.manifest:
        state = f"it failed: {record.error}" if record else "there is no record of it"
        raise DataError(f"run {run} of experiment {experiment.name} has no finished {stage} stage: {state}")
    return record.manifest


def record_end_of(
    text: str, overrides: Sequence[str], run: str, job: str, names: Sequence[str], state: str, message: str
) -> None:
    """Record how a run ended; end RayJobs and MLflow runs that it has left.

    A run whose stages have all succeeded has succeeded. If KFP calls it failed, a page beside the stages could not be
    made; that is a warning.

    If the run's name belongs to another run, nothing under that name changes. What cannot be ended is logged and stops
    nothing else: an exit handler that fails would show a run as failed that succeeded.

    Args:
        text: the experiment as YAML or JSON, as the pipeline got it.
        overrides: as the pipeline got them.
        run: name of the run.
        job: KFP's name of the run.
        names: names of the pipeline's stages.
        state: how the run ended, as KFP says it, of itself or of the run's execution in ML Metadata.
        message: KFP's message, or empty.
    """
    try:
        experiment = documents.loads(text, list(overrides))
        run_paths.check_name(run)
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
            cancelled = cancelled or (not succeeded and kuberay.was_terminated())
        except kuberay.RayJobError as error:
            log.error("RayJobs of the run may be left: %s", error)
    records = Run.of(experiment, run).records.values()
    why = message or "; ".join(f"{entry.stage}: {entry.error}" for entry in records if entry.state == "failed") or state
    if not (succeeded or cancelled) and {*names} <= {entry.stage for entry in records if entry.state == "succeeded"}:
        log.warning("all stages of the run have succeeded, and something beside them has not: %s", why)
        succeeded = True
    if cancelled:
        why = "terminated" if why == state else f"terminated; {why}"
    elif succeeded:
        why = ""
    run_records.write(experiment, run, Record(stage="run", state="succeeded" if succeeded else "failed", error=why))
    if not succeeded:
        mlflow_runs.end_open_runs(experiment, run, "KILLED" if cancelled else "FAILED")
        cost.note_run(experiment, run)
    log.info("run %s: %s %s", run, state, why)
