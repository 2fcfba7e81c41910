"""The evaluate job: the hold-outs, and published sets under a named protocol (paper, sections 5.2 to 5.4).

Both models are measured on each hold-out, classification set and published set in blocks
(``wukong.evaluate.blocks``). A Ray task does one block on a core, or many on a GPU, and leaves a record of each. The
last task of a set makes the set's record. So a job that was killed goes on after the finished sets and blocks. The
blocks of a small set are one task.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property, lru_cache
from typing import Any

import ray
from torch import Tensor

from ray_jobs import features, gpus, metrics, packing
from wukong.config.experiment import Experiment
from wukong.data import shards
from wukong.data.views import Loaders
from wukong.errors import DataError
from wukong.evaluate import (
    answers,
    classification,
    encoding,
    holdouts,
    packed,
    prompts,
    results,
    tasks,
    trained_on,
)
from wukong.evaluate import run as evaluation
from wukong.evaluate.answers import Answers
from wukong.evaluate.blocks import Block, Files, Sizes, Work
from wukong.evaluate.data_set import ClassificationData, Data
from wukong.evaluate.model import OwnModel
from wukong.evaluate.protocol import OWN, Protocol, named
from wukong.evaluate.results import MeasuredModel
from wukong.evaluate.run import Task
from wukong.evaluate.trained_on import Pairs
from wukong.model import cost, saved_model
from wukong.report import evaluation as page
from wukong.runtime import progress
from wukong.runtime.language import _
from wukong.stages import estimate, places
from wukong.store import fence, storage
from wukong.store.manifest import Manifest, Stage

log = logging.getLogger(__name__)

_FEW = 5
"""Blocks of a set that are one task: of two models the texts and the scores, and the images of both."""
_BLOCKS_ON_A_GPU = 64
"""Most blocks of a task on a GPU: loading the models takes as long as some blocks do."""


@dataclass(frozen=True)
class _Job:
    """What all tasks of the job are given: the stage, the experiment, its parents, and features of the hold-outs.

    ``packed`` has the published sets that lie in an object store.
    """

    stage: Stage
    experiment: Experiment
    parents: Mapping[str, Manifest]
    computed: Mapping[str, Manifest]
    packed: Mapping[str, Manifest] = field(default_factory=dict)

    @cached_property
    def models(self) -> Mapping[str, str]:
        """The models that are measured, by role, and the stage of each."""
        return places.evaluated(self.parents)

    def uri(self, role: str) -> str:
        """Return the URI of a model's folder."""
        return storage.join(self.parents[self.models[role]].uri, "model")

    def protocol(self, name: str) -> Protocol:
        """Return the protocol of a task."""
        held = name in self.experiment.held_out_tasks
        return _of_holdouts(self.experiment) if held else named(self.experiment.evaluate.protocol)

    def blocks_of(self, name: str) -> Files:
        """Return the folder of the files, and of the records, of a task's blocks."""
        return Files(self.stage.path(f"_work/{name}"), fenced=True)


@dataclass(frozen=True)
class _Read:
    """The data of a task, and the sizes of its blocks."""

    data: Data
    sizes: Sizes


def run(experiment: Experiment, parents: Mapping[str, Manifest]) -> Manifest:
    """Measure the fine-tuned model, and the pre-trained one beside it; only that one if fine-tuning has handed it on.

    Writes ``answers/TASK.parquet`` for each task (``wukong.evaluate.answers``), and three files. ``evaluation.json`` is
    the document of ``wukong.evaluate.results``, with the epochs of ``pretrain`` and ``finetune`` under ``training`` (as
    ``wukong.train.state.Epoch``, without measured times). ``evaluation.html`` is the page that shows it.
    ``metrics.json`` has the flat numbers of ``results.metrics_of`` and ``results.without_overlap_of``; those of the
    pre-trained model begin with ``pretrained/`` in place of ``eval/``.

    Args:
        experiment: its ``evaluate`` section and the filter's hold-outs say what is measured.
        parents: the manifests of ``filter``, ``pretrain`` and ``finetune``.

    Returns:
        The manifest; ``metrics`` has what ``metrics.json`` has.

    Raises:
        DataError: every hold-out is empty; a published set is missing or damaged.
    """
    filtered = parents["filter"]
    held = (shards.names_of(filtered, holdout.name) for holdout in experiment.filter.split.holdouts)
    if not any(held) and (experiment.filter.split.holdouts or not experiment.evaluate.tasks):
        raise DataError("every hold-out is empty: mend the sources in filter.split.holdouts, or crawl more")
    computed = {
        role: features.run(experiment, parents, parents[parent], "holdouts")
        for role, parent in places.evaluated(parents).items()
    }
    stage = places.evaluation(experiment, parents, list(computed.values()))
    return stage.made(lambda: _evaluate(stage, experiment, parents, computed))


def _evaluate(
    stage: Stage, experiment: Experiment, parents: Mapping[str, Manifest], computed: Mapping[str, Manifest]
) -> Manifest:
    records = _records(_Job(stage, experiment, parents, computed))
    used = [named(experiment.evaluate.protocol)] if experiment.evaluate.tasks else []
    evaluated = places.evaluated(parents).items()
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
    paths = {record["name"]: record["answers"] for record in records if "answers" in record}

    def answered(name: str, role: str) -> Answers | None:
        return answers.read(storage.read_table(stage.path(paths[name])), role) if name in paths else None

    document = evaluation.document(models, [*used, _of_holdouts(experiment)], records, trained, answered)
    document["training"] = {
        parent: storage.read_json(*parents[parent].file("history.json"))["history"]
        for parent in places.EVALUATED.values()
    }
    metrics, before = (
        results.metrics_of(document["tasks"], role) | results.without_overlap_of(document, role)
        for role in (models[0].role, "pretrained")
    )
    metrics |= {f"pretrained/{name.partition('/')[2]}": value for name, value in before.items()}
    pictures = {record["name"]: record["pictures"] for record in records}
    storage.write_json(stage.path("metrics.json"), metrics)
    storage.write_json(stage.path(results.DOCUMENT), document)
    storage.write_bytes(stage.path("evaluation.html"), page.render(document, pictures).encode())
    parts = [stage.describe(name) for name in ("evaluation.html", results.DOCUMENT, "metrics.json")]
    parts += [stage.describe(record["answers"], record["queries"]) for record in records if "answers" in record]
    shown = models[0].role
    images = {entry["task"]: entry["sizes"]["images"] for entry in document["tasks"] if entry["model"] == shown}
    return stage.commit(parts, counts=images, metrics=metrics)


def _records(job: _Job) -> list[dict[str, Any]]:
    """Return the record of each task, in the experiment's order; those of an earlier attempt are not made again."""
    names = [*job.experiment.held_out_tasks, *job.experiment.evaluate.tasks]
    found = {name: job.stage.finished_task(name, _answers_of) for name in names}
    records = {name: record for name, record in found.items() if record is not None}
    published = [name for name in job.experiment.evaluate.tasks if name not in records]
    splits = [(name, job.protocol(name).split(name)) for name in published]
    made = packing.made(job.experiment, splits, job.stage.config.get("sets", {}))
    cards, shared = gpus.count(), ray.put(replace(job, packed=made))
    waiting: dict[Any, tuple[str, Any]] = {}
    for name in names:
        if name not in records:
            read, phases = _read.remote(shared, name, gpu=cards > 0)
            waiting[phases] = name, read
    with progress.track(_("evaluate"), len(names), _("tasks")) as advance:
        advance(len(records))
        metrics.show("wukong_evaluate_tasks", len(names), state="all")
        metrics.show("wukong_evaluate_tasks", len(records), state="done")
        while waiting:
            done = gpus.first_done(list(waiting), on_gpus=cards > 0)
            name, read = waiting.pop(done)
            if read is not None:
                waiting[_submit(shared, name, read, ray.get(done), cards)] = name, None
                continue
            records[name] = ray.get(done)
            advance(1)
            metrics.show("wukong_evaluate_tasks", len(records), state="done")
    return [records[name] for name in names]


def _answers_of(record: Mapping[str, Any]) -> list[str]:
    return [record["answers"]] if "answers" in record else []


@ray.remote(num_cpus=1, max_retries=2, num_returns=2)
def _read(job: _Job, name: str, *, gpu: bool) -> tuple[_Read | None, list[list[Block]]]:
    """Read a task, without its images, and divide it.

    Returns:
        The task, and its blocks that are not done, by phase. None, and no block, where there is nothing to measure.
    """
    protocol = job.protocol(name)
    if name in job.experiment.held_out_tasks:
        data = holdouts.read(job.experiment, job.parents["filter"], name)
        if data is None:
            return None, []
        read = _Read(data, Sizes(len(data)))  # its features are there
    else:
        data = packed.data(job.experiment.evaluate.sets, name, protocol.split(name), job.packed.get(name))
        read = _Read(data, _sizes(job.experiment, data, protocol, gpu=gpu))
    phases = tasks.blocks(read.data, protocol, list(job.models), read.sizes)
    there = {*storage.list_files(job.blocks_of(name).uri)}
    left = [[block for block in phase if not there.issuperset(_left_by(job, name, block))] for phase in phases]
    log.info(
        "%s: %d of %d blocks are to be done, of %d images and %d x %d scores at most",
        *(name, sum(map(len, left)), sum(map(len, phases)), read.sizes.images, read.sizes.side, read.sizes.side),
    )
    return read, left


def _sizes(experiment: Experiment, data: Data, protocol: Protocol, *, gpu: bool) -> Sizes:
    """Return the sizes of the blocks of a published set."""
    model = experiment.model
    tower, width = cost.empty_tower(model), model.embedding or model.text.width
    shape = cost.feature_shape(model, tower)
    of_pair, of_image = cost.pair_flops(model, shape, estimate.CAPTION_TOKENS), cost.tower_flops(model, tower)
    if isinstance(data, ClassificationData):
        texts = len(data.classes) * len(prompts.of(protocol.prompts, data.name))
        of_image += len(places.EVALUATED) * texts * of_pair
    sizes = Sizes.of(of_image, of_pair, 4 * cost.compared_vectors(model, shape) * width, gpu=gpu)
    # A GPU has compared as soon as the texts of all classes are read.
    return replace(sizes, images=classification.IMAGES) if gpu and isinstance(data, ClassificationData) else sizes


def _left_by(job: _Job, name: str, block: Block) -> Iterator[str]:
    """Return the URIs of the record and the files of a block that is done."""
    yield _record_of(job, name, block)
    for role in [block.role] if block.role else job.models:
        yield storage.join(job.blocks_of(name).uri, role, f"{block.name}.safetensors")


def _record_of(job: _Job, name: str, block: Block) -> str:
    return storage.join(job.blocks_of(name).uri, f"{block.name}.json")


def _submit(job: Any, name: str, read: Any, phases: Sequence[Sequence[Block]], cards: int) -> Any:
    """Start the tasks of a set; return the last one, which waits for the others and returns the set's record."""
    task = _task_on_gpu() if cards else _on_core
    every = [block for phase in phases for block in phase]
    if len(every) <= _FEW:
        return (task if every else _on_core).remote(job, name, read, every, finish=True)
    before: Any = None
    for phase in phases:
        if started := [task.remote(job, name, read, group, before) for group in _groups(phase, cards)]:
            before = _after.remote(*started)
    return _on_core.remote(job, name, read, [], before, finish=True)


@ray.remote(num_cpus=0)
def _after(*_done: None) -> None:
    """Stand for many tasks: as many as the next phase has wait for this one, and not each for each."""


def _groups(phase: Sequence[Block], cards: int) -> Iterator[Sequence[Block]]:
    """Cut blocks into what a task does: one on a core; on GPUs several, and at least four tasks for each."""
    size = min(_BLOCKS_ON_A_GPU, max(1, len(phase) // (4 * cards))) if cards else 1
    return (phase[start : start + size] for start in range(0, len(phase), size))


@ray.remote(num_cpus=1, max_retries=2)
def _on_core(
    job: _Job, name: str, read: _Read | None, some: Sequence[Block], _before: None = None, *, finish: bool = False
) -> dict[str, Any] | None:
    import torch

    torch.set_num_threads(1)
    return _work(job, name, read, some, "cpu", finish=finish)


def _on_gpu(
    job: _Job, name: str, read: _Read | None, some: Sequence[Block], _before: None = None, *, finish: bool = False
) -> dict[str, Any] | None:
    return _work(job, name, read, some, gpus.of_task(), finish=finish)


@cache
def _task_on_gpu() -> Any:
    """Return ``_on_gpu`` as a task whose process lives on with its models and loaders, where its GPU stays the same.

    Of several GPUs of a machine Ray would give it another one, which torch cannot take any more.
    """
    calls = 0 if gpus.most_of_a_machine() == 1 else 1
    return ray.remote(num_cpus=1, num_gpus=1, max_retries=2, max_calls=calls)(_on_gpu)


def _work(
    job: _Job, name: str, read: _Read | None, some: Sequence[Block], device: str, *, finish: bool
) -> dict[str, Any] | None:
    """Do blocks of a task, and leave a record of each; if they are the last ones, return the task's record.

    It is that of ``wukong.evaluate.run.Task.record``, with ``answers`` and ``queries``, the path of the task's answers
    and their number.
    """
    record: dict[str, Any] = {"name": name, **evaluation.NOTHING}
    if read is not None:
        work = _work_of(job, name, read, device)
        for block in some:
            tasks.make(work, block)
            fence.publish(_record_of(job, name, block), {"rows": block.rows[1] - block.rows[0]})
        if finish:
            record = _finished(job, work)
    if not finish:
        return None
    job.stage.commit_task(name, record)
    return record


def _work_of(job: _Job, name: str, read: _Read, device: str) -> Work:
    held_out = name in job.experiment.held_out_tasks
    uris = tuple((role, job.uri(role)) for role in job.models)
    models = _models(uris, device, with_towers=not held_out)
    protocol = job.protocol(name)

    def encode(rows: slice) -> Mapping[str, Tensor]:
        if not held_out:
            loading = _loaders(uris, device, job.experiment.pretrain.loader_workers if device != "cpu" else 0)
            return encoding.encode(models, read.data, protocol, rows, loading)
        return {
            role: model.encode_features(
                holdouts.features(job.experiment, job.parents["filter"], job.computed[role].uri, read.data)[rows]
            )
            for role, model in models.items()
        }

    classes = Files(job.stage.path("_work/classes"), fenced=True)
    return Work(read.data, protocol, models, encode, job.blocks_of(name), classes, read.sizes)


@lru_cache(maxsize=1)
def _models(uris: tuple[tuple[str, str], ...], device: str, *, with_towers: bool) -> dict[str, OwnModel]:
    # Cached because one process does many blocks.
    load = saved_model.load if with_towers else saved_model.load_for_features
    models = {role: OwnModel(load(uri, device), results.ROLES[role]) for role, uri in uris}
    encoding.share_towers(models.values())
    return models


@lru_cache(maxsize=1)
def _loaders(uris: tuple[tuple[str, str], ...], device: str, processes: int) -> Loaders[Any, Tensor]:
    return encoding.loaders(_models(uris, device, with_towers=True), processes)


def _finished(job: _Job, work: Work) -> dict[str, Any]:
    """Give the record of a task whose blocks are done; store the models' answers."""
    task = Task(work.data, work.protocol, {role: tasks.outcome(work, role) for role in work.models})
    for role, model in work.models.items():
        is_aligned = role == next(iter(work.models)) and model.token_wise
        task.draw(role, saved_model.load(job.uri(role)) if is_aligned else None)
    record = task.record()
    if (table := task.table(*job.models)) is not None:
        record |= {"answers": f"{answers.FOLDER}/{task.data.name}.parquet", "queries": table.num_rows}
        storage.write_table(job.stage.path(record["answers"]), table)
    return record


def _of_holdouts(experiment: Experiment) -> Protocol:
    return OWN.for_pairs(experiment.evaluate.captions)
