"""What a finished stage or an evaluation logs to its run: parameters, metrics, inputs, pages, curves."""

import json
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wukong.config.evaluators import HOLDOUTS
from wukong.errors import StorageError
from wukong.evaluate.results import DOCUMENT, HOLDOUT, ROLES, metrics_of, without_overlap_of
from wukong.store import storage
from wukong.store.manifest import Manifest, code_revision, digest_of
from wukong.tracking import mlflow_rest
from wukong.tracking.availability import AT_END, AT_START, answers, mlflow_client, refuse_untracked, unless_away
from wukong.tracking.mlflow_rest import Run, Server
from wukong.tracking.mlflow_runs import as_metrics, as_params, page_of
from wukong.tracking.tags import COST_TAG, DIGEST_TAG, IMAGES_TAG, MANIFEST_TAG, PARENT_TAG, REVISION_TAG, ROLE_TAG
from wukong.tracking.training_metrics import epoch_metric

if TYPE_CHECKING:
    import pyarrow as pa
    from mlflow import MlflowClient

_HISTORY = "history.json"  # of a training stage: its epochs
_LONGEST_DIGEST = 36  # characters of a data set's digest in MLflow
_MOST_METRICS = 500  # in one request


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
    unless_away(lambda: _log_stage(Server(), run_id, manifest), left_out, AT_END)


def _log_stage(server: Server, run_id: str, manifest: Manifest) -> None:
    tags = {MANIFEST_TAG: manifest.uri, DIGEST_TAG: manifest.digest}
    tags |= {f"wukong.parent.{parent.stage}": parent.digest for parent in manifest.parents}
    stage = manifest.stage
    # There is a count for each reason that a rule or the crawl knows, and most of them are 0.
    metrics = {f"{stage}/count/{name}": float(count) for name, count in manifest.counts.items() if count}
    metrics |= {f"{stage}/dropped/{name}": float(count) for name, count in manifest.dropped.items() if count}
    evaluated = manifest.parts.has(DOCUMENT)
    metrics |= {} if evaluated else {f"{stage}/{name}": value for name, value in manifest.metrics.items()}
    if manifest.parts.has(_HISTORY):
        _log_curves(server, server.run(run_id), manifest)
    logged = set(server.run(run_id).metrics)
    metrics = {name: value for name, value in metrics.items() if name not in logged}
    server.log(run_id, metrics=as_metrics(metrics, 0), params=as_params(manifest.config), tags=tags)
    if evaluated:
        _log_document(mlflow_client(), run_id, document := storage.read_json(*manifest.file(DOCUMENT)))
        _log_pretrained(server, run_id, document, tags)
    _log_parts(run_id, manifest, "docs/")
    if manifest.parents:
        server.log_inputs(
            run_id, {parent.stage: (parent.uri, parent.digest[:_LONGEST_DIGEST]) for parent in manifest.parents}
        )


def log_cost(run_id: str | None, stage: str, said: str, numbers: Mapping[str, float]) -> None:
    """Log to a stage's run what the stage has cost: a sentence as a tag, and metrics ``STAGE/cost/NAME``."""
    if run_id is None:
        return
    metrics = as_metrics({f"{stage}/cost/{name}": value for name, value in numbers.items()}, 0)
    left_out = f"the cost of {stage} is left out"
    unless_away(lambda: Server().log(run_id, metrics=metrics, tags={COST_TAG: said}), left_out, AT_END)


def log_images(run_id: str | None, stage: str, images: Sequence[str]) -> None:
    """Log to a stage's run which images its pods have run."""
    if run_id is not None and images:
        tags = {IMAGES_TAG: " ".join(images)}
        unless_away(lambda: Server().log(run_id, tags=tags), f"the images of {stage} are left out", AT_END)


def log_evaluation(
    name: str, document: Mapping[str, Any], page: str, tables: Mapping[str, Mapping[str, "pa.Table"]]
) -> list[str]:
    """Log an evaluation to an experiment of MLflow, a run for each model, which the compare view shows side by side.

    Args:
        name: name of MLflow's experiment, which is made where there is none.
        document: result of ``wukong.evaluate.results.document``.
        page: result of ``wukong.report.evaluation.render``.
        tables: by the model's role and by task the answers (``wukong.evaluate.answers.table``), which pair two runs.

    Returns:
        The addresses of the runs.

    Raises:
        ConfigError: no tracking server is configured.
        StorageError: MLflow does not answer.
    """
    refuse_untracked()
    if not answers(AT_START):
        raise StorageError(f"MLflow at {mlflow_rest.address()} does not answer: start it, and log the evaluation again")
    server, client, addresses = Server(), mlflow_client(), []
    experiment_id = server.experiment(name)
    for model in document["models"]:
        tags = {REVISION_TAG: code_revision(), ROLE_TAG: model["role"]}
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
        addresses.append(page_of(run))
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
        kept = {name: value for name, value in of_stage.tags.items() if name in (PARENT_TAG, REVISION_TAG)}
        beside = server.create_run(of_stage.experiment_id, f"{of_stage.name} {ROLES['pretrained']}", {**kept, **tags})
        _log_document(mlflow_client(), beside.run_id, document, "pretrained")
        server.end(beside.run_id, "FINISHED")


def _log_document(client: "MlflowClient", run_id: str, document: Mapping[str, Any], role: str = "finetuned") -> None:
    """Log one model's results to a run: each metric with the ID of the model and the digest of its set.

    Each model has a run of its own, in which its metrics have the names of ``results.metrics_of`` and
    ``results.without_overlap_of``.
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
        for name, value in (metrics_of(document["tasks"], role) | without_overlap_of(document, role)).items():
            task_name = name.split("/")[2]
            known = {
                "model_id": model_id,
                "dataset_name": task_name,
                "dataset_digest": digests[task_name][:_LONGEST_DIGEST],
            }
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
    known_models = client.search_logged_models(
        [experiment_id], f"tags.`{DIGEST_TAG}` = '{model['digest']}'", max_results=1
    )
    if known_models:
        return str(known_models[0].model_id)
    name = re.sub(r"[^\w@ -]+", "-", model["name"])  # MLflow refuses a path's characters
    made = client.create_logged_model(experiment_id, name, run_id, tags={DIGEST_TAG: model["digest"]})
    client.finalize_logged_model(made.model_id, "READY")
    return str(made.model_id)


def _log_curves(server: Server, run: Run, manifest: Manifest) -> None:
    """Log what the run of a training lacks: its epochs, if MLflow was away, and the loss, if the training is reused."""
    loss, of_epoch = f"{manifest.stage}/loss", epoch_metric(manifest.stage, "loss")
    there = {entry.step for entry in server.metric_history(run.run_id, of_epoch)} if of_epoch in run.metrics else set()
    for epoch in storage.read_json(*manifest.file(_HISTORY))["history"]:
        if epoch["epoch"] not in there:
            values = {epoch_metric(manifest.stage, name): value for name, value in epoch.items() if name != "epoch"}
            server.log(run.run_id, metrics=as_metrics(values, epoch["epoch"]))
    if loss not in run.metrics:
        same = f"tags.`{DIGEST_TAG}` = '{manifest.digest}'"
        same_runs = [entry for entry in server.search_runs(run.experiment_id, same) if loss in entry.metrics]
        if same_runs:
            server.log(run.run_id, metrics=server.metric_history(same_runs[-1].run_id, loss))


def _log_parts(run_id: str, manifest: Manifest, prefix: str) -> None:
    parts = manifest.parts.below(prefix)
    if not parts:
        return
    with tempfile.TemporaryDirectory() as folder:
        for part in parts:
            storage.download(storage.join(manifest.uri, part.path), Path(folder), part.path, part.sha256)
        mlflow_client().log_artifacts(run_id, str(Path(folder, prefix)), prefix.rstrip("/"))
