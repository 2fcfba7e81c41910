"""Runs of MLflow: a parent run for the pipeline, a nested run for each stage, runs of sweeps and their trials.

In a stage's job, ``MLFLOW_RUN_ID`` names the stage's run, so that metrics logged on a Ray worker reach that run.
"""

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

from wukong.config.experiment import Experiment
from wukong.config.section import flatten
from wukong.errors import ConfigError
from wukong.runtime.cancel import JobLeftError
from wukong.store import storage
from wukong.store.manifest import code_revision, digest_of
from wukong.tracking import mlflow_rest
from wukong.tracking.availability import (
    AT_END,
    AT_START,
    AT_START_ON_CLUSTER,
    MLFLOW,
    answers,
    enabled,
    page,
    unless_away,
)
from wukong.tracking.mlflow_rest import Metric, MlflowError, Run, Server
from wukong.tracking.tags import (
    COST_TAG,
    DIGEST_TAG,
    EXPERIMENT_TAG,
    MODEL_TAG,
    PARENT_TAG,
    REVISION_TAG,
    RUN_TAG,
    STAGE_TAG,
)

log = logging.getLogger(__name__)

_SWEEP_TAG, _SWEEP_DIGEST = "wukong.sweep", "wukong.sweep.digest"
_NOTE_TAG = "mlflow.note.content"  # Markdown, which MLflow shows on the run's page
_MAX_PARAM = 6000  # characters of a parameter's value; what is longer is cut, the manifest holds it whole


@contextmanager
def stage_run(
    experiment: Experiment, run: str, stage: str, tags: Mapping[str, str] | None = None, *, needed: bool = False
) -> Iterator[str | None]:
    """Open the nested MLflow run of one stage. Its parent is the pipeline's run, which the first stage makes.

    Yields the run's ID, for ``MLFLOW_RUN_ID`` of the stage's job, or None if nothing is tracked. The run ends as FAILED
    if the block raises an error, as KILLED if it is cancelled. If this process is ended and leaves its job to a
    later one (``JobLeftError``), or is killed, the run stays open, and the later one goes on with it: the job logs to
    it. If MLflow is away, the stage runs untracked; on a cluster it waits first, for a server that is being replaced.

    Args:
        experiment: the experiment.
        run: name of the pipeline run.
        stage: name of the stage.
        tags: of the pipeline's run.
        needed: whether the stage can do nothing without MLflow. Then it waits for it.

    Raises:
        ConfigError: the pipeline's run of that name is another experiment's.
        AwayError: MLflow is needed and was away for longer than the patience.
    """
    if not enabled():
        log.warning("MLFLOW_TRACKING_URI is not set: the %s stage is not tracked", stage)
        yield None
        return
    server = Server()
    open_runs = partial(_open, server, experiment, run, stage, tags or {})
    if needed:
        parent, nested = MLFLOW.until_answered(open_runs)
    else:
        within = AT_START
        if os.environ.get("WUKONG_CLUSTER") and not answers(AT_START):
            # The component holds nothing yet: its RayJob is made when this is over.
            within = AT_START_ON_CLUSTER
            log.warning("MLflow does not answer: the %s stage waits for it, %.0f s at most", stage, within)
        opened = unless_away(open_runs, f"the {stage} stage is not tracked", within)
        if opened is None:
            yield None
            return
        parent, nested = opened
    try:
        yield nested
    except JobLeftError:
        raise
    except BaseException as error:
        status = "FAILED" if isinstance(error, Exception) else "KILLED"
        for ended in (nested, parent):
            unless_away(partial(server.end, ended, status), f"the end of {stage} as {status} is left out")
        raise
    unless_away(lambda: server.end(nested, "FINISHED"), f"the end of {stage} is left out")


def _open(
    server: Server, experiment: Experiment, run: str, stage: str, of_parent: Mapping[str, str]
) -> tuple[str, str]:
    """Return the IDs of the pipeline's run and of the nested run of a stage: one that was left open, or a new one."""
    parent = pipeline_run(server, experiment, run)
    if parent.tags.get(EXPERIMENT_TAG) not in (None, digest_of(experiment.model_dump(mode="json"))):
        raise ConfigError(
            f"the run name {run!r} belongs to another experiment called {experiment.name!r} at {server.address}, whose "
            "results it would overwrite: choose another --name, or run with the config that the name was begun with"
        )
    if parent.status != "RUNNING":  # a run that has ended and continues under its name
        server.resume(parent.run_id)
    if not of_parent.items() <= parent.tags.items():  # of a run that is repeated they may be others
        server.log(parent.run_id, tags=of_parent)
    tags = {PARENT_TAG: parent.run_id, STAGE_TAG: stage, REVISION_TAG: code_revision()}
    same = " and ".join([f"tags.`{name}` = '{value}'" for name, value in tags.items()])
    left = server.search_runs(parent.experiment_id, f"{same} and attributes.status = 'RUNNING'", most=1)
    nested = left[0] if left else server.create_run(parent.experiment_id, stage, tags)
    return parent.run_id, nested.run_id


def complete_run(experiment: Experiment, run: str, metrics: Mapping[str, float]) -> None:
    """Log the final metrics to the pipeline's run, then the curves of losses, and end it and its nested runs.

    MLflow's page that compares runs begins with the metric that was logged first: that which decides between models.

    Raises:
        AwayError: MLflow was away for longer than the patience.
    """

    def complete() -> None:
        server = Server()
        parent = pipeline_run(server, experiment, run)
        ordered = dict(sorted(metrics.items(), key=lambda metric: metric[0] != experiment.registry.metric))
        server.log(parent.run_id, metrics=as_metrics(ordered, 0))
        nested = _nested(server, parent)
        for entry in nested:
            if (loss := f"{entry.tags.get(STAGE_TAG)}/loss") in entry.metrics:
                server.log(parent.run_id, metrics=server.metric_history(entry.run_id, loss))
        for entry in [*nested, parent]:
            if entry.status == "RUNNING" or entry is parent:
                server.end(entry.run_id, "FINISHED")

    if enabled():
        MLFLOW.until_answered(complete)


def _nested(server: Server, parent: Run) -> list[Run]:
    return server.search_runs(parent.experiment_id, f"tags.`{PARENT_TAG}` = '{parent.run_id}'")


def end_open_runs(experiment: Experiment, run: str, status: str) -> None:
    """End the pipeline's run and its nested runs that are still open, if the components could not do so themselves.

    If the server does not answer, the log says so and no error is raised, which would hide what ended the pipeline.

    Args:
        experiment: the experiment.
        run: name of the pipeline run.
        status: MLflow's word for how it ended: ``FAILED`` or ``KILLED``.
    """

    def end() -> None:
        server = Server()
        parent = pipeline_run(server, experiment, run)
        for entry in [*_nested(server, parent), parent]:
            if entry.status == "RUNNING":
                server.end(entry.run_id, status)

    if enabled():
        try:
            unless_away(end, f"the runs of {run} could not be ended as {status}")
        except (MlflowError, ConfigError) as error:
            log.warning("the runs of %s could not be ended as %s: %s", run, status, error)


def log_page(experiment: Experiment, run: str, page: str, name: str) -> None:
    """Log an HTML page as a file of the pipeline's run; MLflow shows files with the suffix ``.html``."""

    def send() -> None:
        server = Server()
        server.write_file(pipeline_run(server, experiment, run), name, page.encode())

    if enabled():
        unless_away(send, f"{name} is left out", AT_END)


def sweep_run(server: Server, base: Experiment, name: str, settings: Mapping[str, Any]) -> Run:
    """Return the run of a sweep, open: the one that an earlier attempt began, or a new one.

    Args:
        server: MLflow's.
        base: the experiment that the sweep's trials start from.
        name: name of the sweep.
        settings: the sweep as JSON.

    Raises:
        ConfigError: another sweep has the name.
    """
    experiment_id, digest = server.experiment(base.name), digest_of([dict(settings), base.model_dump(mode="json")])
    runs = server.search_runs(experiment_id, f"tags.`{_SWEEP_TAG}` = '{name}'", most=1)
    if not runs:
        run = server.create_run(experiment_id, name, {_SWEEP_TAG: name, _SWEEP_DIGEST: digest})
        server.log(run.run_id, params=as_params({"sweep": settings}))
        return run
    if runs[0].tags.get(_SWEEP_DIGEST) != digest:
        raise ConfigError(
            f"the name {name!r} belongs to another sweep of {base.name!r} at {server.address}: give this one a new name"
        )
    server.resume(runs[0].run_id)
    return runs[0]


def trial_run(server: Server, sweep: Run, experiment: Experiment, run: str) -> Run:
    """Return the run of a sweep's trial, nested below the sweep's run; its stages' runs are nested below it."""
    runs = server.search_runs(sweep.experiment_id, f"tags.`{RUN_TAG}` = '{run}'", most=1)
    return runs[0] if runs else _create_parent(server, sweep.experiment_id, experiment, run, {PARENT_TAG: sweep.run_id})


def log_best(server: Server, sweep: Run, run: str, metric: str, value: float, values: Mapping[str, Any]) -> None:
    """Log to a sweep's run which trial is the best, and with which values."""
    tags = {"wukong.best": run, **{f"wukong.best.{key}": str(each) for key, each in values.items()}}
    server.log(sweep.run_id, metrics=as_metrics({metric: value}, 0), tags=tags)


def log_files(server: Server, run: Run, files: Mapping[str, str]) -> str:
    """Log texts as files of a run and return the address of the run's page.

    Args:
        server: MLflow's.
        run: the run.
        files: by the path below the run's artifacts what is in the file.
    """
    for path, text in files.items():
        server.write_file(run, path, text.encode())
    return page_of(run)


def log_docs(experiment: Experiment, run: str, docs: str) -> None:
    """Log the files below a prefix as ``docs/`` of the pipeline's run, which its report links to."""

    def send() -> None:
        server = Server()
        own = pipeline_run(server, experiment, run)
        for uri in storage.list_files(docs):
            server.write_file(own, storage.join("docs", uri[len(docs) :]), storage.read_bytes(uri))

    if enabled():
        unless_away(send, "the data docs are left out")


def describe_run(experiment: Experiment, run: str, note: str, registration: Mapping[str, float], digest: str) -> None:
    """Say on the page of the pipeline's run which model it made, and where its pages are.

    Args:
        experiment: names the registered model.
        run: name of the pipeline run.
        note: Markdown.
        registration: what ``register`` returned; empty if nothing was registered.
        digest: digest of the manifest of the model, under which the evaluation has logged it.
    """

    def send() -> None:
        server = Server()
        parent = pipeline_run(server, experiment, run)
        tags = {_NOTE_TAG: note}
        if registration:
            tags[MODEL_TAG] = f"models:/{experiment.registry.model_name}/{registration['version']:.0f}"
        server.log(parent.run_id, tags=tags)
        known = server.logged_models(parent.experiment_id, f"tags.`{DIGEST_TAG}` = '{digest}'")
        server.log_outputs(parent.run_id, known[:1])

    if enabled():
        unless_away(send, f"the description of {run} is left out", AT_END)


def log_cost(experiment: Experiment, run: str, said: str, numbers: Mapping[str, float]) -> None:
    """Log to the pipeline's run what it has cost: a sentence as a tag, and metrics ``cost/NAME``.

    It is logged when the run has ended: MLflow's page that compares runs begins with the metric that was logged first.
    """

    def send() -> None:
        server = Server()
        metrics = as_metrics({f"cost/{name}": value for name, value in numbers.items()}, 0)
        server.log(pipeline_run(server, experiment, run).run_id, metrics=metrics, tags={COST_TAG: said})

    if enabled():
        unless_away(send, f"the cost of {run} is left out", AT_END)


def page_of(run: Run) -> str:
    """Address of a run's page in MLflow."""
    return page(f"experiments/{run.experiment_id}/runs/{run.run_id}")


def pipeline_run(server: Server, experiment: Experiment, run: str) -> Run:
    """The pipeline's run, which is made if there is none."""
    experiment_id = server.experiment(experiment.name)
    runs = server.search_runs(experiment_id, f"tags.`{RUN_TAG}` = '{run}'", most=1)
    if runs:
        return runs[0]
    return _create_parent(server, experiment_id, experiment, run, {})


def _create_parent(
    server: Server, experiment_id: str, experiment: Experiment, run: str, tags: Mapping[str, str]
) -> Run:
    value = experiment.model_dump(mode="json")
    own = {RUN_TAG: run, REVISION_TAG: code_revision(), EXPERIMENT_TAG: digest_of(value)}
    parent = server.create_run(experiment_id, run, {**own, **tags})
    server.log(parent.run_id, params=as_params(value))
    return parent


def as_metrics(metrics: Mapping[str, float], step: int) -> list[Metric]:
    """Return metrics of a step as MLflow takes them, with the time of now."""
    now = mlflow_rest.now()
    return [Metric(name, float(value), now, step) for name, value in metrics.items()]


def as_params(value: Mapping[str, Any]) -> dict[str, str]:
    """Return nested settings as parameters of a run: dotted keys and texts, of which long ones are cut."""
    return {name: str(entry)[:_MAX_PARAM] for name, entry in flatten(value).items()}
