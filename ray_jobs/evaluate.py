"""The evaluate job: the hold-outs, and published sets under a named protocol (paper, sections 5.2 to 5.4).

Each hold-out, classification set and published set is a Ray task that measures both models and writes a record, so a
job that was killed goes on after the finished ones.
"""

import logging
from collections.abc import Mapping
from typing import Any

import ray

from ray_jobs import features, metrics
from wukong.config.experiment import Experiment
from wukong.data import shards
from wukong.errors import DataError
from wukong.evaluate import answers, holdouts, results, set_folders, sets, trained_on
from wukong.evaluate import run as evaluation
from wukong.evaluate.model import OwnModel
from wukong.evaluate.protocol import OWN, Protocol, named
from wukong.evaluate.results import MeasuredModel
from wukong.evaluate.run import Task
from wukong.evaluate.trained_on import Pairs
from wukong.model import saved_model
from wukong.report import evaluation as page
from wukong.runtime import progress
from wukong.stages import places
from wukong.store import storage
from wukong.store.manifest import Manifest, Stage

log = logging.getLogger(__name__)


def run(experiment: Experiment, parents: Mapping[str, Manifest]) -> Manifest:
    """Measure the fine-tuned model, and the pre-trained one beside it.

    Writes ``answers/TASK.parquet`` for each task (``wukong.evaluate.answers``), and three files. ``evaluation.json`` is
    the document of ``wukong.evaluate.results``, with the epochs of ``pretrain`` and ``finetune`` under ``training`` (as
    ``wukong.train.state.Epoch``, without measured times). ``evaluation.html`` is the page that shows it.
    ``metrics.json`` has the flat numbers of ``results.metrics_of``; those of the pre-trained model begin with
    ``pretrained/`` in place of ``eval/``.

    Args:
        experiment: its ``evaluate`` section and the filter's hold-outs say what is measured.
        parents: the manifests of ``filter``, ``pretrain`` and ``finetune``.

    Returns:
        The manifest; ``metrics`` has what ``metrics.json`` has.

    Raises:
        DataError: every hold-out is empty; a published set is missing or damaged.
    """
    filtered = parents["filter"]
    if not any(shards.names_of(filtered, holdout.name) for holdout in experiment.filter.split.holdouts):
        raise DataError("every hold-out is empty: mend the sources in filter.split.holdouts, or crawl more")
    computed = {
        role: features.run(experiment, parents, parents[parent], "holdouts")
        for role, parent in places.EVALUATED.items()
    }
    stage = places.evaluation(experiment, parents, list(computed.values()))
    return stage.made(lambda: _evaluate(stage, experiment, parents, computed))


def _evaluate(
    stage: Stage, experiment: Experiment, parents: Mapping[str, Manifest], computed: Mapping[str, Manifest]
) -> Manifest:
    records = _records(stage, experiment, parents, computed)
    used = [named(experiment.evaluate.protocol)] if experiment.evaluate.tasks else []
    evaluated = places.EVALUATED.items()
    models = [
        MeasuredModel(
            role,
            f"{experiment.name}, {results.ROLES[role]}",
            parents[parent].digest,
            experiment.model.is_token_wise,
        )
        for role, parent in evaluated
    ]
    trained: dict[str, set[Pairs] | str] = {role: trained_on.pairs_of(parents[parent]) for role, parent in evaluated}
    document = evaluation.document(models, [*used, _of_holdouts(experiment)], records, trained)
    document["training"] = {
        parent: storage.read_json(storage.join(parents[parent].uri, "history.json"))["history"]
        for parent in places.EVALUATED.values()
    }
    metrics = results.metrics_of(document["tasks"], "finetuned")
    before = results.metrics_of(document["tasks"], "pretrained")
    metrics |= {f"pretrained/{name.partition('/')[2]}": value for name, value in before.items()}
    pictures = {record["name"]: record["pictures"] for record in records}
    storage.write_json(stage.path("metrics.json"), metrics)
    storage.write_json(stage.path(results.DOCUMENT), document)
    storage.write_bytes(stage.path("evaluation.html"), page.render(document, pictures).encode())
    parts = [stage.describe(name) for name in ("evaluation.html", results.DOCUMENT, "metrics.json")]
    parts += [stage.describe(record["answers"], record["queries"]) for record in records if "answers" in record]
    images = {entry["task"]: entry["sizes"]["images"] for entry in document["tasks"] if entry["model"] == "finetuned"}
    return stage.commit(parts, counts=images, metrics=metrics)


def _records(
    stage: Stage, experiment: Experiment, parents: Mapping[str, Manifest], computed: Mapping[str, Manifest]
) -> list[dict[str, Any]]:
    """Return the record of each task, in the experiment's order; those of an earlier attempt are not made again."""
    names = [*experiment.held_out_tasks, *experiment.evaluate.tasks]
    records = {name: record for name in names if (record := stage.finished_task(name)) is not None}
    waiting = {
        _measure.remote(stage, experiment, dict(parents), dict(computed), name): name
        for name in names
        if name not in records
    }
    with progress.track("evaluate", len(names), "tasks") as advance:
        advance(len(records))
        metrics.show("wukong_evaluate_tasks", len(names), state="all")
        metrics.show("wukong_evaluate_tasks", len(records), state="done")
        while waiting:
            (done,), _ = ray.wait(list(waiting), num_returns=1)
            records[waiting.pop(done)] = ray.get(done)
            advance(1)
            metrics.show("wukong_evaluate_tasks", len(records), state="done")
    return [records[name] for name in names]


@ray.remote(num_cpus=1, max_retries=2)
def _measure(
    stage: Stage, experiment: Experiment, parents: dict[str, Manifest], computed: dict[str, Manifest], name: str
) -> dict[str, Any]:
    """Measure both models on one task; return its record.

    It is that of ``wukong.evaluate.run.Task.record``, with ``answers`` and ``queries``, the path of the task's answers
    and their number.
    """
    record: dict[str, Any] = {"name": name, **evaluation.NOTHING}
    if name in experiment.held_out_tasks:
        if (held := holdouts.read(experiment, parents["filter"], name)) is not None:
            record = _measured(stage, experiment, parents, computed, Task(held, _of_holdouts(experiment)))
    else:
        rules = named(experiment.evaluate.protocol)
        with set_folders.local(experiment.evaluate.sets, name) as folder:
            data = sets.of(name).read(folder, rules.split(name))
            record = _measured(stage, experiment, parents, None, Task(data, rules))
    stage.commit_task(name, record)
    return record


def _measured(
    stage: Stage,
    experiment: Experiment,
    parents: Mapping[str, Manifest],
    computed: Mapping[str, Manifest] | None,
    task: Task,
) -> dict[str, Any]:
    """Measure both models and store their answers; ``computed`` are features of hold-outs, None for a published set."""
    for role, parent in places.EVALUATED.items():
        uri = storage.join(parents[parent].uri, "model")
        saved = saved_model.load_for_features(uri) if computed is not None else saved_model.load(uri)
        model, encoded = OwnModel(saved, results.ROLES[role]), None
        if computed is not None:
            stored = holdouts.features(experiment, parents["filter"], computed[role].uri, task.data)
            encoded = model.encode_features(stored)
        task.measure(role, model, encoded=encoded)
        if role != "finetuned" or not model.token_wise:
            task.draw(role)
        else:
            task.draw(role, saved if computed is None else saved_model.load(uri))
    record = task.record()
    if (table := task.table(*places.EVALUATED)) is not None:
        record |= {"answers": f"{answers.FOLDER}/{task.data.name}.parquet", "queries": table.num_rows}
        storage.write_table(stage.path(record["answers"]), table)
    return record


def _of_holdouts(experiment: Experiment) -> Protocol:
    return OWN.for_pairs(experiment.evaluate.captions)
