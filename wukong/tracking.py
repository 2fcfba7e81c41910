"""Logs to MLflow: a parent run for the pipeline, a nested run for each stage, registered models with aliases.

``MLFLOW_TRACKING_URI`` names the server. Without it nothing is tracked, and the log says so. In a stage's job,
``MLFLOW_RUN_ID`` names the stage's run, so that metrics logged on a Ray worker reach that run.

A server that is away (it cannot be reached, does not answer in time, or has an internal error) ends no stage. Each call
is bounded in time; the log says what is left out. Metrics of a training that could not be sent are sent with the next
ones, or at the end from the manifest. Only ``register`` needs MLflow: it waits, as for an object store
(``wukong.patience``). An error of another kind, for instance a refused password, is raised.
"""

import json
import logging
import os
import re
import ssl
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlencode

from wukong import mlflow_rest, patience, storage
from wukong.cancel import JobLeftError
from wukong.config import Experiment
from wukong.errors import ConfigError, DataError, StorageError
from wukong.evaluate.results import DOCUMENT, HOLDOUT, HOLDOUTS, ROLES, metrics_of
from wukong.manifest import Manifest, code_revision, digest_of
from wukong.mlflow_rest import Metric, MlflowError, Run, Server
from wukong.run_records import flatten

if TYPE_CHECKING:
    import pyarrow as pa
    from mlflow import MlflowClient

RUN_TAG = "wukong.run"
ROLE_TAG = "wukong.role"  # of the model that a run of an evaluation logged alone is about
DOUBTFUL = (
    "took an alias by a test of an earlier version, which counted pairs twice where captions have several images. So "
    "it promoted models that are no better too often: compare it with the version that held the alias before "
    "(`wukong compare`), and `wukong rollback` if it is not better"
)
"""What is said of ``doubtful_versions``."""
_EXPERIMENT_TAG = "wukong.experiment"
_SWEEP_TAG, _SWEEP_DIGEST = "wukong.sweep", "wukong.sweep.digest"
PARENT_TAG = "mlflow.parentRunId"
HISTORY_TAG = "wukong.history."  # of a registered model, with an alias behind it: each move of the alias
_STAGE_TAG = "wukong.stage"
_DIGEST_TAG = "wukong.digest"  # of a stage's manifest, or of a model that MLflow knows by its metrics
_MANIFEST_TAG = "wukong.manifest"
_MODEL_TAG = "wukong.model"  # of the pipeline's run: models:/NAME/VERSION
_NOTE_TAG = "mlflow.note.content"  # Markdown, which MLflow shows on the run's page
_REVISION_TAG = "mlflow.source.git.commit"
_PROBE_SECONDS = 5.0
_PAUSE = 2.0  # seconds between two probes
_AT_START = 10.0  # seconds that a stage waits for MLflow before it runs untracked
_AT_END = 60.0  # seconds that a finished stage waits for MLflow before its results are left out
_HISTORY = "history.json"  # of a training stage: its epochs
_LONGEST_DIGEST = 36  # characters of a data set's digest in MLflow
_MOST_METRICS = 500  # in one request
_JOINED = 50  # sets of metrics that are sent together
_COMPARED = 5  # runs in the compare view
_MAX_PARAM = 6000  # characters of a parameter's value; what is longer is cut, the manifest holds it whole

_Answer = TypeVar("_Answer")
_Unsent = tuple[str, list[Metric]]

log = logging.getLogger(__name__)
_outage = patience.Outage(
    "MLflow", ". Is it running? On one machine, `wukong status` shows it and `wukong up` starts it."
)
_unsent: list[_Unsent] = []
"""What this process could not send: the run's ID and its metrics, the oldest first."""


def enabled() -> bool:
    """Tell whether a tracking server is configured."""
    return bool(os.environ.get("MLFLOW_TRACKING_URI"))


def refuse_untracked() -> None:
    """Raise ConfigError if no tracking server is configured, for what is asked to be logged."""
    if not enabled():
        raise ConfigError(
            "MLFLOW_TRACKING_URI is not set: give it the address of MLflow, or start one with `wukong up`"
        )


@contextmanager
def stage_run(experiment: Experiment, run: str, stage: str, *, needed: bool = False) -> Iterator[str | None]:
    """Open the nested MLflow run of one stage. Its parent is the pipeline's run, which the first stage makes.

    Yields the run's ID, for ``MLFLOW_RUN_ID`` of the stage's job, or None if nothing is tracked. The run ends as FAILED
    if the block raises an error, as KILLED if it is cancelled. If this process is ended and leaves its job to a
    later one (``JobLeftError``), or is killed, the run stays open, and the later one goes on with it: the job logs to
    it. If MLflow is away, the stage runs untracked.

    Args:
        experiment: the experiment.
        run: name of the pipeline run.
        stage: name of the stage.
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
    if needed:
        parent, nested = until_answered(lambda: _open(server, experiment, run, stage))
    else:
        opened = _unless_away(
            lambda: _open(server, experiment, run, stage), f"the {stage} stage is not tracked", _AT_START
        )
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
            _unless_away(partial(server.end, ended, status), f"the end of {stage} as {status} is left out")
        raise
    _unless_away(lambda: server.end(nested, "FINISHED"), f"the end of {stage} is left out")


def _open(server: Server, experiment: Experiment, run: str, stage: str) -> tuple[str, str]:
    """Return the IDs of the pipeline's run and of the nested run of a stage: one that was left open, or a new one."""
    parent = _parent(server, experiment, run)
    if parent.tags.get(_EXPERIMENT_TAG) not in (None, digest_of(experiment.model_dump(mode="json"))):
        raise ConfigError(
            f"the run name {run!r} belongs to another experiment called {experiment.name!r} at {server.address}, whose "
            "results it would overwrite: choose another --name, or run with the config that the name was begun with"
        )
    if parent.status != "RUNNING":  # a run that has ended and continues under its name
        server.resume(parent.run_id)
    tags = {PARENT_TAG: parent.run_id, _STAGE_TAG: stage, _REVISION_TAG: code_revision()}
    same = " and ".join([f"tags.`{name}` = '{value}'" for name, value in tags.items()])
    left = server.search_runs(parent.experiment_id, f"{same} and attributes.status = 'RUNNING'", most=1)
    nested = left[0] if left else server.create_run(parent.experiment_id, stage, tags)
    return parent.run_id, nested.run_id


def _is_away(error: BaseException) -> bool:
    """Return whether an error means that MLflow cannot be reached, is overloaded, or fails inside."""
    # What is not imported has raised nothing.
    exceptions, requests = sys.modules.get("mlflow.exceptions"), sys.modules.get("requests.exceptions")
    if isinstance(error, MlflowError):
        status = error.status
    elif exceptions is not None and isinstance(error, exceptions.MlflowException):
        status = error.get_http_status_code()  # of an error that never reached the server: 500
    elif requests is not None and isinstance(error, requests.RequestException):
        status = 500 if error.response is None else error.response.status_code
    else:
        return False
    return status >= 500 or status in (408, 429)


def _answers(within: float) -> bool:
    """Return whether MLflow answers within some seconds."""
    until = time.monotonic() + within
    while True:
        try:
            with urllib.request.urlopen(f"{mlflow_rest.address()}/health", timeout=_PROBE_SECONDS):  # noqa: S310 - http, as checked
                return True
        except urllib.error.HTTPError as error:
            if error.code < 500:
                return True  # whatever is wrong, the request proper says it better
        except ssl.SSLError:
            return True  # MLflow has settings of its own for certificates
        except OSError as error:
            if isinstance(error, urllib.error.URLError) and isinstance(error.reason, ssl.SSLError):
                return True
        left = until - time.monotonic()
        if left <= 0:
            return False
        time.sleep(min(_PAUSE, left))


def _unless_away(request: Callable[[], _Answer], left_out: str, within: float = 0.0) -> _Answer | None:
    """Return the answer to a request; if MLflow is away, log what is left out and return None.

    Args:
        request: is made if MLflow answers.
        left_out: a clause for the log.
        within: seconds to wait for MLflow. Whether it answers is asked once at least, so that a request does not hang.
    """
    if not _answers(within):
        log.warning("MLflow at %s does not answer: %s", mlflow_rest.address(), left_out)
        return None
    try:
        return request()
    except Exception as error:
        if not _is_away(error):
            raise
        log.warning("MLflow at %s is away: %s (%s)", mlflow_rest.address(), left_out, error)
        return None


def until_answered(request: Callable[[], _Answer]) -> _Answer:
    """Make a request that can be repeated, again and again while MLflow is away, for as long as for an object store.

    Raises:
        AwayError: MLflow was away for longer than the patience (``wukong.patience``).
    """

    def ask() -> _Answer:
        if not _answers(0):  # known after seconds; a request proper to a server that hangs takes minutes
            raise MlflowError(f"{mlflow_rest.address()} does not answer", 503)
        return request()

    return patience.until_answered(ask, _is_away, _outage)


def log_stage(run_id: str | None, manifest: Manifest) -> None:
    """Log a finished stage: config, counts, metrics, digests, its parents as inputs, its ``docs/`` as artifacts.

    All metrics but those of an evaluation begin with the stage's name: ``crawl/count/urls``, ``filter/dropped/RULE``,
    ``pretrain/loss``. Counts of 0 are left out, and metrics that the stage's job has logged step by step: their last
    value again, at step 0, would spoil the curves. A training that is reused gets the curve of its loss from the run
    that trained it, and the pipeline's run gets it from either, so that two runs can be compared.
    """
    if run_id is None:
        return
    left_out = f"results of the {manifest.stage} stage are left out; {manifest.uri} holds them"
    _unless_away(lambda: _log_stage(Server(), run_id, manifest), left_out, _AT_END)


def _log_stage(server: Server, run_id: str, manifest: Manifest) -> None:
    tags = {_MANIFEST_TAG: manifest.uri, _DIGEST_TAG: manifest.digest}
    tags |= {f"wukong.parent.{parent.stage}": parent.digest for parent in manifest.parents}
    stage = manifest.stage
    # There is a count for each reason that a rule or the crawl knows, and most of them are 0.
    metrics = {f"{stage}/count/{name}": float(count) for name, count in manifest.counts.items() if count}
    metrics |= {f"{stage}/dropped/{name}": float(count) for name, count in manifest.dropped.items() if count}
    evaluated = any(part.path == DOCUMENT for part in manifest.parts)
    metrics |= {} if evaluated else {f"{stage}/{name}": value for name, value in manifest.metrics.items()}
    if any(part.path == _HISTORY for part in manifest.parts):
        _log_curves(server, server.run(run_id), manifest)
    logged = set(server.run(run_id).metrics)
    metrics = {name: value for name, value in metrics.items() if name not in logged}
    server.log(run_id, metrics=_metrics(metrics, 0), params=_params(manifest.config), tags=tags)
    if evaluated:
        _log_document(_client(), run_id, document := storage.read_json(storage.join(manifest.uri, DOCUMENT)))
        _log_pretrained(server, run_id, document, tags)
    _log_parts(run_id, manifest, "docs/")
    if manifest.parents:
        server.log_inputs(
            run_id, {parent.stage: (parent.uri, parent.digest[:_LONGEST_DIGEST]) for parent in manifest.parents}
        )


def log_evaluation(
    name: str, document: Mapping[str, Any], page: str, tables: Mapping[str, Mapping[str, "pa.Table"]]
) -> list[str]:
    """Log an evaluation to an experiment of MLflow, a run for each model, which the compare view shows side by side.

    Args:
        name: of MLflow's experiment, which is made where there is none.
        document: of ``wukong.evaluate.results.document``.
        page: of ``wukong.report.evaluation.render``.
        tables: by the model's role and by task the answers (``wukong.evaluate.answers.table``), which pair two runs.

    Returns:
        The addresses of the runs.

    Raises:
        ConfigError: no tracking server is configured.
        StorageError: MLflow does not answer.
    """
    refuse_untracked()
    if not _answers(_AT_START):
        raise StorageError(f"MLflow at {mlflow_rest.address()} does not answer: start it, and log the evaluation again")
    server, client, addresses = Server(), _client(), []
    experiment_id = server.experiment(name)
    for model in document["models"]:
        tags = {_REVISION_TAG: code_revision(), ROLE_TAG: model["role"]}
        run = server.create_run(experiment_id, model["name"], tags)
        try:
            _log_document(client, run.run_id, document, model["role"])
            client.log_text(run.run_id, page, "evaluation.html")
            client.log_dict(run.run_id, dict(document), DOCUMENT)
            _log_answers(client, run.run_id, tables.get(model["role"], {}))
        except BaseException:
            server.end(run.run_id, "FAILED")
            raise
        server.end(run.run_id, "FINISHED")
        addresses.append(_page_of(run))
    return addresses


def _log_answers(client: "MlflowClient", run_id: str, tables: Mapping[str, "pa.Table"]) -> None:
    """Log answers to a run as the evaluate stage stores them, a Parquet file for each task."""
    from wukong.evaluate.answers import FOLDER

    if not tables:
        return
    with tempfile.TemporaryDirectory() as folder:
        for task, table in tables.items():
            storage.write_table(storage.from_path(Path(folder, f"{task}.parquet")), table)
        client.log_artifacts(run_id, folder, FOLDER)


def _log_pretrained(server: Server, run_id: str, document: Mapping[str, Any], tags: Mapping[str, str]) -> None:
    """Log what the pre-trained model reached to a run beside that of the stage, under the same names."""
    if any(model["role"] == "pretrained" for model in document["models"]):
        of_stage = server.run(run_id)
        kept = {name: value for name, value in of_stage.tags.items() if name in (PARENT_TAG, _REVISION_TAG)}
        beside = server.create_run(of_stage.experiment_id, f"{of_stage.name} {ROLES['pretrained']}", {**kept, **tags})
        _log_document(_client(), beside.run_id, document, "pretrained")
        server.end(beside.run_id, "FINISHED")


def _log_document(client: "MlflowClient", run_id: str, document: Mapping[str, Any], role: str = "finetuned") -> None:
    """Log one model's results to a run: each metric with the ID of the model and the digest of its set.

    Each model has a run of its own, in which its metrics have the names of ``results.metrics_of``.
    """
    from mlflow.entities import Dataset, DatasetInput, InputTag, LoggedModelInput
    from mlflow.entities import Metric as LinkedMetric

    experiment_id, now = client.get_run(run_id).info.experiment_id, mlflow_rest.now()
    sets = {task["task"]: task for task in document["tasks"]}
    digests = {name: task["digest"] for name, task in sets.items()}
    held = sorted(task["digest"] for task in sets.values() if task["split"] == HOLDOUT)
    digests[HOLDOUTS] = digest_of(held)
    metrics, models = [], []
    for model in (model for model in document["models"] if model["role"] == role):
        model_id = _logged_model(client, experiment_id, run_id, model)
        models.append(LoggedModelInput(model_id))
        for name, value in metrics_of(document["tasks"], role).items():
            of = name.split("/")[2]
            known = {"model_id": model_id, "dataset_name": of, "dataset_digest": digests[of][:_LONGEST_DIGEST]}
            metrics.append(LinkedMetric(name, value, now, 0, **known))
    for first in range(0, len(metrics), _MOST_METRICS):
        client.log_batch(run_id, metrics=metrics[first : first + _MOST_METRICS])
    inputs = []
    for name, task in sets.items():
        source = json.dumps({"uri": f"{name}, split {task['split']}, protocol {task['protocol']}"})
        data_set = Dataset(name, task["digest"][:_LONGEST_DIGEST], "uri", source)
        inputs.append(DatasetInput(data_set, [InputTag("mlflow.data.context", "evaluation")]))
    client.log_inputs(run_id, inputs, models)
    client.set_tag(run_id, "wukong.protocols", ", ".join(sorted(document["protocols"])))


def _logged_model(client: "MlflowClient", experiment_id: str, run_id: str, model: Mapping[str, Any]) -> str:
    """Return the ID of the model in MLflow that has this digest, or of a new one."""
    found = client.search_logged_models([experiment_id], f"tags.`{_DIGEST_TAG}` = '{model['digest']}'", max_results=1)
    if found:
        return str(found[0].model_id)
    name = re.sub(r"[^\w@ -]+", "-", model["name"])  # MLflow refuses a path's characters
    made = client.create_logged_model(experiment_id, name, run_id, tags={_DIGEST_TAG: model["digest"]})
    client.finalize_logged_model(made.model_id, "READY")
    return str(made.model_id)


def _log_curves(server: Server, run: Run, manifest: Manifest) -> None:
    """Log what the run of a training lacks: its epochs, if MLflow was away, and the loss, if the training is reused.

    The pipeline's run gets the curve of the loss too.
    """
    loss, of_epoch = f"{manifest.stage}/loss", epoch_metric(manifest.stage, "loss")
    there = {entry.step for entry in server.metric_history(run.run_id, of_epoch)} if of_epoch in run.metrics else set()
    for epoch in storage.read_json(storage.join(manifest.uri, _HISTORY))["history"]:
        if epoch["epoch"] not in there:
            values = {epoch_metric(manifest.stage, name): value for name, value in epoch.items() if name != "epoch"}
            server.log(run.run_id, metrics=_metrics(values, epoch["epoch"]))
    if loss in run.metrics:
        curve = server.metric_history(run.run_id, loss)
    else:
        same = f"tags.`{_DIGEST_TAG}` = '{manifest.digest}'"
        found = [entry for entry in server.search_runs(run.experiment_id, same) if loss in entry.metrics]
        curve = server.metric_history(found[-1].run_id, loss) if found else []
        if curve:
            server.log(run.run_id, metrics=curve)
    if curve and (parent := run.tags.get(PARENT_TAG)):
        server.log(parent, metrics=curve)


def epoch_metric(stage: str, name: str) -> str:
    """Name of a metric of a training's epochs, whose steps are epochs: ``pretrain/epoch/loss``."""
    return f"{stage}/epoch/{name}"


def log_metrics(metrics: Mapping[str, float], step: int = 0) -> None:
    """Log metrics to the run that ``MLFLOW_RUN_ID`` names; without one this does nothing.

    What cannot be sent, because MLflow is away, is kept and sent with the next metrics.
    """
    if keep_metrics(metrics, step):
        send_metrics()


def keep_metrics(metrics: Mapping[str, float], step: int = 0) -> bool:
    """Keep metrics for ``send_metrics``, which may run in another thread; return whether there is a run to log to."""
    run_id = os.environ.get("MLFLOW_RUN_ID")
    if not enabled() or not run_id:
        return False
    _unsent.append((run_id, _metrics(metrics, step)))
    return True


def send_metrics() -> None:
    """Send all metrics that are kept; if MLflow is away, they stay."""
    _unless_away(_send, f"metrics are kept for later, {unsent()} sets so far")


def unsent() -> int:
    """Return how many sets of metrics are kept and not sent."""
    return len(_unsent)


def _send() -> None:
    server = Server()
    while sets := _unsent[:_JOINED]:
        run_id = sets[0][0]
        joined = [values for run, values in sets if run == run_id]
        server.log(run_id, metrics=[value for values in joined for value in values])
        # Only this thread takes sets away, and those that were added meanwhile stand behind these.
        _unsent[: len(sets)] = [entry for entry in sets if entry[0] != run_id]


def register(
    experiment: Experiment, run_id: str, model: Manifest, evaluation: Manifest, tags: Mapping[str, str]
) -> str:
    """Register a model as a new version and return its number. ``wukong.model_registry`` gives it the alias.

    The version is an MLflow model (``wukong.model.pyfunc``) with the saved model among its artifacts. A version with
    the same evaluation digest is used again; no second one is made.

    Args:
        experiment: names the model and the metric that decides.
        run_id: the stage's MLflow run. The artifacts of the pipeline's run, its parent, hold the saved model.
        model: manifest of the stage whose ``model/`` folder is registered.
        evaluation: manifest of the evaluation of that model.
        tags: further tags of the version.

    Raises:
        DataError: the evaluation did not measure the metric that decides.
    """
    registry = experiment.registry
    if registry.metric not in evaluation.metrics:
        known = ", ".join(sorted(evaluation.metrics))
        raise DataError(f"registry.metric is {registry.metric!r}, but the evaluation measured only: {known}")
    own = {
        "wukong.evaluation": evaluation.digest,
        "wukong.origin": _origin(experiment),
        "wukong.data": next((p.digest for p in evaluation.parents if p.stage == "filter"), ""),
        "wukong.model": model.uri,
        "wukong.metric": registry.metric,
        "wukong.value": repr(evaluation.metrics[registry.metric]),
        "wukong.revision": code_revision(),
    }
    return until_answered(lambda: _register(_client(), registry.model_name, run_id, model, {**own, **tags}))


def _register(client: "MlflowClient", name: str, run_id: str, model: Manifest, tags: Mapping[str, str]) -> str:
    if not client.search_registered_models(f"name = '{name}'"):
        client.create_registered_model(name, description="Chinese dual encoders trained by Wukong")
    known_as = f"name = '{name}' and tags.`wukong.evaluation` = '{tags['wukong.evaluation']}'"
    versions = client.search_model_versions(known_as)
    if versions:
        return str(versions[0].version)
    # MLflow shows a version on the page of the run that it belongs to: that of the pipeline.
    owner = client.get_run(run_id).data.tags.get(PARENT_TAG, run_id)
    _log_model(client, owner, model)
    return str(client.create_model_version(name, f"runs:/{owner}/model", owner, tags=dict(tags)).version)


def _origin(experiment: Experiment) -> str:
    """Return what two models must share to be compared: the experiment's name, and where its images come from."""
    return digest_of([experiment.name, experiment.crawl.engine, experiment.crawl.endpoint])[:16]


def complete_run(experiment: Experiment, run: str, metrics: Mapping[str, float]) -> None:
    """Log the final metrics to the pipeline's run and end it, and nested runs whose end could not be sent.

    Raises:
        AwayError: MLflow was away for longer than the patience.
    """

    def complete() -> None:
        server = Server()
        parent = _parent(server, experiment, run)
        server.log(parent.run_id, metrics=_metrics(metrics, 0))
        for entry in [*_nested(server, parent), parent]:
            if entry.status == "RUNNING" or entry is parent:
                server.end(entry.run_id, "FINISHED")

    if enabled():
        until_answered(complete)


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
        parent = _parent(server, experiment, run)
        for entry in [*_nested(server, parent), parent]:
            if entry.status == "RUNNING":
                server.end(entry.run_id, status)

    if enabled():
        try:
            _unless_away(end, f"the runs of {run} could not be ended as {status}")
        except (MlflowError, ConfigError) as error:
            log.warning("the runs of %s could not be ended as %s: %s", run, status, error)


def log_page(experiment: Experiment, run: str, page: str, name: str) -> None:
    """Log an HTML page as a file of the pipeline's run; MLflow shows files with the suffix ``.html``."""

    def send() -> None:
        _client().log_text(_parent(Server(), experiment, run).run_id, page, name)

    if enabled():
        _unless_away(send, f"{name} is left out", _AT_END)


def sweep_run(server: Server, base: Experiment, name: str, settings: Mapping[str, Any]) -> Run:
    """Return the run of a sweep, open: the one that an earlier attempt began, or a new one.

    Args:
        server: MLflow's.
        base: the experiment that the sweep's trials start from.
        name: of the sweep.
        settings: the sweep as JSON.

    Raises:
        ConfigError: another sweep has the name.
    """
    experiment_id, digest = server.experiment(base.name), digest_of([dict(settings), base.model_dump(mode="json")])
    runs = server.search_runs(experiment_id, f"tags.`{_SWEEP_TAG}` = '{name}'", most=1)
    if not runs:
        run = server.create_run(experiment_id, name, {_SWEEP_TAG: name, _SWEEP_DIGEST: digest})
        server.log(run.run_id, params=_params({"sweep": settings}))
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
    server.log(sweep.run_id, metrics=_metrics({metric: value}, 0), tags=tags)


def log_files(server: Server, run: Run, files: Mapping[str, str]) -> str:
    """Log texts as files of a run and return the address of the run's page.

    Args:
        server: MLflow's.
        run: the run.
        files: by the path below the run's artifacts what is in the file.
    """
    for path, text in files.items():
        if run.artifacts.startswith("mlflow-artifacts:"):
            server.write_file(run, path, text.encode())
        else:  # the server does not pass files on, so its client writes to their store
            _client().log_text(run.run_id, text, path)
    return _page_of(run)


def log_docs(experiment: Experiment, run: str, docs: str) -> None:
    """Log the files below a prefix as ``docs/`` of the pipeline's run, which its report links to."""
    if not enabled():
        return
    with tempfile.TemporaryDirectory() as folder:
        for uri in storage.list_files(docs):
            storage.download(uri, Path(folder, uri[len(docs) :].lstrip("/")))

        def send() -> None:
            _client().log_artifacts(_parent(Server(), experiment, run).run_id, folder, "docs")

        _unless_away(send, "the data docs are left out")


@dataclass(frozen=True)
class Pages:
    """Addresses of pages in MLflow that are about one pipeline run.

    Attributes:
        experiment: of all runs of the experiment.
        run: of the pipeline's run.
        compare: of this run beside the ones before it; empty if it is the first.
    """

    experiment: str
    run: str
    compare: str = ""

    def artifact(self, path: str) -> str:
        """Address of the page that shows one file of the run."""
        return f"{self.run}/artifacts/{path}"


def pages(experiment: Experiment, run: str) -> Pages | None:
    """Return the addresses of a pipeline run's pages in MLflow, or None if nothing is tracked or MLflow is away.

    The compare view is of the last runs that have finished, five at most.
    """
    if not enabled():
        return None

    def ask() -> Pages:
        server = Server()
        found = _parent(server, experiment, run)
        ended = f"tags.`{RUN_TAG}` LIKE '%' AND attributes.status = 'FINISHED'"
        last = [entry.run_id for entry in server.search_runs(found.experiment_id, ended, most=_COMPARED)]
        base = f"{_public_address()}/#/experiments/{found.experiment_id}"
        compared = list(dict.fromkeys([found.run_id, *last]))[:_COMPARED]
        return Pages(
            base,
            f"{base}/runs/{found.run_id}",
            compare_url(found.experiment_id, compared) if len(compared) > 1 else "",
        )

    return _unless_away(ask, "there are no links to the run's pages", _AT_START)


def compare_url(experiment_id: str, run_ids: Sequence[str]) -> str:
    """Address of MLflow's page that compares some runs of an experiment."""
    asked = {"runs": list(run_ids), "experiments": [experiment_id]}
    query = urlencode({name: json.dumps(value, separators=(",", ":")) for name, value in asked.items()})
    return f"{_public_address()}/#/compare-runs?{query}"


@dataclass(frozen=True)
class Tracked:
    """What MLflow knows of a pipeline run.

    Attributes:
        status: in MLflow's words, for instance ``KILLED``.
        model: ``models:/NAME/VERSION``, if the run registered a model.
        url: of its page.
        is_doubtful: whether its model took an alias by a test of an earlier version, see ``doubtful_versions``.
    """

    status: str
    model: str | None
    url: str
    is_doubtful: bool = False


def tracked_runs(name: str) -> dict[str, Tracked]:
    """Return the pipeline runs of an experiment that MLflow knows, by name; none if it is away or not configured."""

    def ask() -> dict[str, Tracked]:
        server = Server()
        experiment_id = server.find_experiment(name)
        runs = server.search_runs(experiment_id, f"tags.`{RUN_TAG}` LIKE '%'") if experiment_id else []
        models = [run.tags[_MODEL_TAG] for run in runs if _MODEL_TAG in run.tags]
        names = sorted({model.removeprefix("models:/").rpartition("/")[0] for model in models})
        doubtful = {f"models:/{name}/{version}" for name in names for version in doubtful_versions(server, name)}
        return {
            run.tags[RUN_TAG]: Tracked(
                run.status, run.tags.get(_MODEL_TAG), _page_of(run), run.tags.get(_MODEL_TAG) in doubtful
            )
            for run in runs
        }

    return (_unless_away(ask, "what it knows of the runs is left out") or {}) if enabled() else {}


def doubtful_versions(server: Server, model: str) -> set[str]:
    """Return the versions of a model that took an alias by a test of retrieval with the units of an earlier version.

    Those units counted pairs twice, so models that are no better were promoted too often. A version that takes the
    alias again by today's test is no longer among them. Nor is one that a person has forced.
    """
    try:
        found = server.ask("GET", "registered-models/get", {"name": model})["registered_model"]
    except MlflowError as error:
        if error.code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return set()
    doubtful: set[str] = set()
    for tag in found.get("tags", []):
        for move in json.loads(tag["value"]) if tag["key"].startswith(HISTORY_TAG) else []:
            if move["action"] == "promote":
                tested = "/retrieval/" in move["reason"] and "by more than noise" in move["reason"]
                (doubtful.add if tested and "units" not in move else doubtful.discard)(move["version"])
    return doubtful


def doubtful_holder(model: str, alias: str) -> str:
    """Return the version that holds an alias if it is one of ``doubtful_versions``; empty otherwise, or without MLflow.

    Args:
        model: the registered model's name.
        alias: the alias.
    """

    def ask() -> str:
        server = Server()
        doubtful = doubtful_versions(server, model)
        found = server.ask("GET", "registered-models/get", {"name": model})["registered_model"] if doubtful else {}
        held = (str(entry["version"]) for entry in found.get("aliases", []) if entry["alias"] == alias)
        return next((version for version in held if version in doubtful), "")

    return (_unless_away(ask, "who holds the alias is left out") or "") if enabled() else ""


def storage_of_run(run_id: str) -> str:
    """Return the URI of what a run of MLflow left: the manifest of a stage, or the folder of a pipeline run.

    Raises:
        ConfigError: no tracking server is configured.
        DataError: the run is not one of Wukong's.
        MlflowError: the server has no such run.
    """
    refuse_untracked()
    server = Server()
    run = server.run(run_id)
    if uri := run.tags.get(_MANIFEST_TAG):
        return storage.join(uri, "manifest.json")
    if folder := folder_of(run):
        return folder
    raise DataError(f"the run {run_id} at {server.address} has no manifest: it is not a finished stage of Wukong's")


def folder_of(run: Run) -> str | None:
    """Return the URI of the folder of a pipeline's run, which its parameters tell; None if they do not."""
    if RUN_TAG not in run.tags or not {"storage", "name"} <= run.params.keys():
        return None
    return storage.join(run.params["storage"], run.params["name"], "runs", run.tags[RUN_TAG])


def file_of_run(run_id: str, path: str) -> str:
    """Download a file or folder among the artifacts of a run of MLflow; return the URI of the copy in a new folder.

    Raises:
        ConfigError: no tracking server is configured.
        DataError: the run has no such file.
    """
    refuse_untracked()
    client = _client()
    from mlflow.exceptions import MlflowException

    try:
        copy = client.download_artifacts(run_id, path, tempfile.mkdtemp(prefix="wukong-show-"))
    except (MlflowException, OSError) as error:
        raise DataError(f"the run {run_id} at {mlflow_rest.address()} has no file {path}: {error}") from error
    return storage.from_path(Path(copy))


def storage_of_model(name: str, version: str) -> str:
    """Return the URI of the folder of a registered model.

    Args:
        name: of the model in MLflow.
        version: a number, or ``@ALIAS``.

    Raises:
        ConfigError: no tracking server is configured.
        DataError: the model was not registered by Wukong.
        MlflowError: the server has no such model or version.
    """
    refuse_untracked()
    tags = Server().model_tags(name, version)
    if uri := tags.get("wukong.model"):
        return storage.join(uri, "model")
    raise DataError(f"models:/{name}/{version} does not say where its files are: it was not registered by Wukong")


def describe_run(experiment: Experiment, run: str, note: str, registration: Mapping[str, float], digest: str) -> None:
    """Say on the page of the pipeline's run which model it made, and where its pages are.

    Args:
        experiment: names the registered model.
        run: name of the pipeline run.
        note: Markdown.
        registration: what ``register`` returned; empty if nothing was registered.
        digest: of the manifest of the model, under which the evaluation has logged it.
    """

    def send() -> None:
        server = Server()
        parent = _parent(server, experiment, run)
        tags = {_NOTE_TAG: note}
        if registration:
            tags[_MODEL_TAG] = f"models:/{experiment.registry.model_name}/{registration['version']:.0f}"
        server.log(parent.run_id, tags=tags)
        known = server.logged_models(parent.experiment_id, f"tags.`{_DIGEST_TAG}` = '{digest}'")
        server.log_outputs(parent.run_id, known[:1])

    if enabled():
        _unless_away(send, f"the description of {run} is left out", _AT_END)


def model_url(name: str, version: int | None = None) -> str:
    """Address of a registered model's page in MLflow, or of the page of one version."""
    return f"{_public_address()}/#/models/{name}" + (f"/versions/{version}" if version is not None else "")


def _page_of(run: Run) -> str:
    """Address of a run's page in MLflow."""
    return f"{_public_address()}/#/experiments/{run.experiment_id}/runs/{run.run_id}"


def _public_address() -> str:
    """Where a person's browser finds the server; the address that programs use may have a meaning in a cluster only."""
    return os.environ.get("MLFLOW_PUBLIC_URL", "").rstrip("/") or mlflow_rest.address()


def _client() -> "MlflowClient":
    """MLflow's own client, for artifacts and models; its import takes seconds."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("DO_NOT_TRACK", "true")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    for name, value in mlflow_rest.BOUNDS.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    return MlflowClient()


def _parent(server: Server, experiment: Experiment, run: str) -> Run:
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
    own = {RUN_TAG: run, _REVISION_TAG: code_revision(), _EXPERIMENT_TAG: digest_of(value)}
    parent = server.create_run(experiment_id, run, {**own, **tags})
    server.log(parent.run_id, params=_params(value))
    return parent


def _metrics(metrics: Mapping[str, float], step: int) -> list[Metric]:
    now = mlflow_rest.now()
    return [Metric(name, float(value), now, step) for name, value in metrics.items()]


def _params(value: Mapping[str, Any]) -> dict[str, str]:
    return {name: str(entry)[:_MAX_PARAM] for name, entry in flatten(value).items()}


def _log_parts(run_id: str, manifest: Manifest, prefix: str) -> None:
    parts = [part.path for part in manifest.parts if part.path.startswith(prefix)]
    if not parts:
        return
    with tempfile.TemporaryDirectory() as folder:
        for path in parts:
            storage.download(storage.join(manifest.uri, path), Path(folder, path))
        _client().log_artifacts(run_id, str(Path(folder, prefix)), prefix.rstrip("/"))


def _log_model(client: "MlflowClient", run_id: str, manifest: Manifest) -> None:
    """Log a stage's ``model/`` folder as an MLflow model, which ``mlflow.pyfunc.load_model`` loads."""
    from wukong.model import pyfunc

    parts = [part.path for part in manifest.parts if part.path.startswith("model/")]
    with tempfile.TemporaryDirectory() as folder:
        for path in parts:
            storage.download(storage.join(manifest.uri, path), Path(folder, path))
        similarity = storage.read_json(storage.join(manifest.uri, "model", "config.json"))["model"]["similarity"]
        pyfunc.save(Path(folder, "mlflow"), Path(folder, "model"), similarity)
        client.log_artifacts(run_id, str(Path(folder, "mlflow")), "model")
