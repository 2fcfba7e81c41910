"""What a finished stage or an evaluation logs to its run: parameters, metrics, inputs, pages, curves."""

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from wukong.config.evaluators import HOLDOUTS
from wukong.errors import StorageError
from wukong.evaluate.results import DOCUMENT, HOLDOUT, ROLES, metrics_of, role_of, without_overlap_of
from wukong.store import storage
from wukong.store.manifest import Manifest, code_revision, digest_of
from wukong.tracking import mlflow_rest
from wukong.tracking.availability import AT_END, AT_START, answers, refuse_untracked, unless_away
from wukong.tracking.mlflow_rest import LONGEST_DIGEST, Metric, Run, Server
from wukong.tracking.mlflow_runs import as_metrics, as_params, page_of
from wukong.tracking.tags import COST_TAG, DIGEST_TAG, IMAGES_TAG, MANIFEST_TAG, PARENT_TAG, REVISION_TAG, ROLE_TAG
from wukong.tracking.training_metrics import epoch_metric

if TYPE_CHECKING:
    import pyarrow as pa

_HISTORY = "history.json"  # of a training stage: its epochs


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
    run = server.run(run_id)
    metrics = {name: value for name, value in metrics.items() if name not in run.metrics}
    server.log(run_id, metrics=as_metrics(metrics, 0), params=as_params(manifest.config), tags=tags)
    if evaluated:
        document = storage.read_json(*manifest.file(DOCUMENT))
        _log_document(server, run, document, role_of(document))
        _log_pretrained(server, run, document, tags)
    for path in manifest.parts.below("docs/").paths:
        server.write_file(run, path, storage.read_bytes(*manifest.file(path)))
    if manifest.parents:
        server.log_inputs(run_id, {parent.stage: (parent.uri, parent.digest) for parent in manifest.parents})


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
    from wukong.evaluate.answers import FOLDER

    server, addresses = Server(), []
    experiment_id = server.experiment(name)
    for model in document["models"]:
        tags = {REVISION_TAG: code_revision(), ROLE_TAG: model["role"]}
        run = server.create_run(experiment_id, model["name"], tags)
        try:
            _log_document(server, run, document, model["role"])
            server.write_file(run, "evaluation.html", page.encode())
            server.write_file(run, DOCUMENT, storage.json_bytes(document))
            for task, table in tables.get(model["role"], {}).items():
                server.write_file(run, f"{FOLDER}/{task}.parquet", bytes(storage.table_bytes(table)))
        except BaseException:
            server.end(run.run_id, "FAILED")
            raise
        server.end(run.run_id, "FINISHED")
        addresses.append(page_of(run))
    return addresses


def _log_pretrained(server: Server, of_stage: Run, document: Mapping[str, Any], tags: Mapping[str, str]) -> None:
    """Log what the pre-trained model reached, where it is the second, to a run beside that of the stage."""
    if len(document["models"]) > 1:
        kept = {name: value for name, value in of_stage.tags.items() if name in (PARENT_TAG, REVISION_TAG)}
        beside = server.create_run(of_stage.experiment_id, f"{of_stage.name} {ROLES['pretrained']}", {**kept, **tags})
        _log_document(server, beside, document, "pretrained")
        server.end(beside.run_id, "FINISHED")


def _log_document(server: Server, run: Run, document: Mapping[str, Any], role: str) -> None:
    """Log one model's results to a run: each metric with the ID of the model and the digest of its set.

    Each model has a run of its own, in which its metrics have the names of ``results.metrics_of`` and
    ``results.without_overlap_of``.
    """
    sets = {task["task"]: task for task in document["tasks"]}
    digests = {name: task["digest"] for name, task in sets.items()}
    digests[HOLDOUTS] = digest_of(sorted(task["digest"] for task in sets.values() if task["split"] == HOLDOUT))
    metrics, models, now = [], [], mlflow_rest.now()
    for model in (model for model in document["models"] if model["role"] == role):
        name = re.sub(r"[^\w@ -]+", "-", model["name"])  # MLflow refuses a path's characters
        models.append(server.logged_model(run, name, DIGEST_TAG, model["digest"]))
        for key, value in (metrics_of(document["tasks"], role) | without_overlap_of(document, role)).items():
            task_name = key.split("/")[2]
            measured = {"dataset_name": task_name, "dataset_digest": digests[task_name][:LONGEST_DIGEST]}
            metrics.append(Metric(key, value, now, 0, {"model_id": models[-1], **measured}))
    server.log(run.run_id, metrics=metrics, tags={"wukong.protocols": ", ".join(sorted(document["protocols"]))})
    inputs = {
        name: (f"{name}, split {task['split']}, protocol {task['protocol']}", task["digest"])
        for name, task in sets.items()
    }
    server.log_inputs(run.run_id, inputs, "evaluation", models)


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
