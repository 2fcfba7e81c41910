"""Features: the output of a locked image tower for every image and view, computed once and stored.

Features of the training pairs and of the hold-outs are two outputs of the stage. Each key consists of the filter's
manifest, the image encoder, the views and how features are stored. So pre-training and fine-tuning, or all
evaluations, in this run and in later ones, read the same files, whatever their text towers are. The jobs that need
features call ``run``. A view of a shard is one file, and a task computes one file on a core, or several on a GPU. A job
that was killed goes on after the finished files. If a training stage trained the tower itself, later stages use
features of that tower.

``decide`` decides for ``store_features: auto`` whether a training stores features at all.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NamedTuple

import ray

from ray_jobs import gpus
from wukong import stages
from wukong.config.experiment import Experiment
from wukong.config.features import Features
from wukong.config.model import Model
from wukong.config.training import Training
from wukong.data import feature_files, shards
from wukong.data.feature_files import File
from wukong.model import cost
from wukong.runtime import progress
from wukong.runtime.language import _
from wukong.stages import estimate, places
from wukong.stages.capacity import Machine
from wukong.stages.estimate import Rate, RateName
from wukong.store import storage
from wukong.store.conditional_store import ChangedError, UnconditionalError
from wukong.store.manifest import Manifest, Part, Stage
from wukong.train import features

_AT_ONCE = 256
"""Tasks that wait or run at a time; more would only make Ray slower."""
_READERS = 32
_FILES_ON_A_GPU = 64
"""Most files of a task on a GPU: loading the tower takes as long as some files do."""
_ROOM = 0.9
"""Share of the free room that features may take."""
_GIB = 2**30

log = logging.getLogger(__name__)


class _Work(NamedTuple):
    """A file to compute, the number of its images, and the digests of its shard."""

    tar: PurePosixPath
    view: int
    rows: int
    tar_sha256: str
    table_sha256: str

    @property
    def target(self) -> str:
        return feature_files.path_of(self.tar.parent.name, self.tar.stem, self.view)


def run(
    experiment: Experiment,
    parents: Mapping[str, Manifest],
    model: Manifest | None = None,
    pairs: Literal["train", "holdouts"] = "train",
    *,
    on_gpus: bool = False,
) -> Manifest:
    """Compute the features of shards: the evaluation view of each, and of training shards the augmented views too.

    Args:
        experiment: its ``model.image``, ``model.similarity``, ``features.dtype`` and ``pretrain.precision``, and the
            ``views`` of both trainings decide the output.
        parents: the filter's manifest under ``filter``.
        model: the training stage whose image tower is used; None for the tower that the experiment names.
        pairs: ``train`` for the training pairs, ``holdouts`` for every hold-out.
        on_gpus: whether there will be GPUs; those that Ray has already are used in any case.

    Raises:
        ConfigError: the image encoder or its weights cannot be had, or GPUs are needed and do not come.
        DataError: a shard is damaged.
    """
    filtered = parents["filter"]
    stage = places.features(experiment, filtered, model, pairs)
    return stage.made(lambda: _make(stage, experiment, filtered, model, pairs, on_gpus=on_gpus))


def _make(
    stage: Stage, experiment: Experiment, filtered: Manifest, model: Manifest | None, pairs: str, *, on_gpus: bool
) -> Manifest:
    trained = places.trained_tower(model)
    tower = storage.join(trained.uri, "model") if trained else None
    there = gpus.count()
    task = _on_gpu if there or on_gpus else _on_core
    decoders = experiment.pretrain.loader_workers
    work = _work(filtered, pairs, int(stage.config["views"]))
    parts = _finished(stage, work)
    left = [entry for entry in work if entry.target not in parts]
    with progress.track(_("features"), sum(entry.rows for entry in work), _("pictures")) as advance:
        advance(sum(part.rows for part in parts.values()))
        groups = _groups(left, max(there, 1) if task is _on_gpu else 0)
        waiting: dict[Any, None] = {}
        while True:
            while len(waiting) < _AT_ONCE and (group := next(groups, None)):
                waiting[task.remote(stage, filtered.uri, group, experiment.model, tower, decoders)] = None
            if not waiting:
                break
            done = gpus.first_done(list(waiting), on_gpus=task is _on_gpu)
            del waiting[done]
            for record in ray.get(done):
                part = Part.model_validate(record)
                parts[part.path] = part
                advance(part.rows)
    return stage.commit([*parts.values()], counts={"pictures": sum(part.rows for part in parts.values())})


def _work(filtered: Manifest, pairs: str, views: int) -> Sequence[_Work]:
    """Return all files, the largest first, so that workers end together."""
    holdouts = [holdout["name"] for holdout in filtered.config["split"]["holdouts"]]
    splits = ["train"] if pairs == "train" else holdouts
    rows = {part.path: part.rows for part in filtered.parts.below(suffix=".parquet")}
    digest = filtered.parts.sha256
    work = [
        _Work(
            PurePosixPath(f"{path}.tar"),
            view,
            rows[f"{path}.parquet"],
            digest(f"{path}.tar"),
            digest(f"{path}.parquet"),
        )
        for split in splits
        for path in (f"{split}/{shard}" for shard in shards.names_of(filtered, split))
        for view in range(views + 1)
    ]
    return sorted(work, key=lambda entry: -entry.rows)


def _finished(stage: Stage, work: Sequence[_Work]) -> dict[str, Part]:
    """Return the files that an earlier attempt has finished, by path. One listing says which those are."""
    there = {*storage.list_files(stage.path("_parts"), ".json")}
    targets = [entry.target for entry in work if stage.path(f"_parts/{entry.target}.json") in there]
    with ThreadPoolExecutor(_READERS) as readers:
        records = list(readers.map(lambda target: stage.finished_task(target, _file), targets))
    return {target: Part.model_validate(record) for target, record in zip(targets, records, strict=True) if record}


def _file(record: Mapping[str, Any]) -> list[str]:
    return [record["path"]]


def _groups(work: Sequence[_Work], gpus: int) -> Iterator[Sequence[_Work]]:
    """Cut work into what a task does: one file on a core; on GPUs several, and at least four tasks for each."""
    size = min(_FILES_ON_A_GPU, max(1, len(work) // (4 * gpus))) if gpus else 1
    return (work[start : start + size] for start in range(0, len(work), size))


def _compute(
    stage: Stage,
    filtered_uri: str,
    work: Sequence[_Work],
    model: Model,
    tower: str | None,
    device: str,
    decoders: int,
) -> list[dict[str, object]]:
    """Compute files that are not finished yet; commit each when it is. Return the records of all."""
    import torch

    precision = stage.config["precision"]
    if precision == "tf32":
        torch.set_float32_matmul_precision("high")
    records = {entry.target: stage.finished_task(entry.target, _file) for entry in work}
    files = [
        File(
            storage.join(filtered_uri, str(entry.tar)),
            entry.view,
            stage.path(entry.target),
            entry.tar_sha256,
            entry.table_sha256,
        )
        for entry in work
        if records[entry.target] is None
    ]
    dtype = stage.config["dtype"]
    for file, rows in features.compute(files, model, dtype, precision, tower, torch.device(device), decoders):
        target = file.target.removeprefix(f"{stage.uri}/")
        record = stage.describe(target, rows).model_dump(mode="json")
        stage.commit_task(target, record)
        records[target] = record
    return [record for record in records.values() if record is not None]


@ray.remote(num_cpus=1, max_retries=2)
def _on_core(
    stage: Stage, filtered_uri: str, work: Sequence[_Work], model: Model, tower: str | None, _decoders: int
) -> list[dict[str, object]]:
    import torch

    torch.set_num_threads(1)
    return _compute(stage, filtered_uri, work, model, tower, "cpu", 0)


# Ray ends the process of a task with a GPU after the task, so that the GPU's memory is free for the training.
@ray.remote(num_cpus=1, num_gpus=1, max_retries=2)
def _on_gpu(
    stage: Stage, filtered_uri: str, work: Sequence[_Work], model: Model, tower: str | None, decoders: int
) -> list[dict[str, object]]:
    return _compute(stage, filtered_uri, work, model, tower, gpus.of_task(), decoders)


class Decision(NamedTuple):
    """A decision: the experiment with it in the place of ``auto``, and the record that says why."""

    experiment: Experiment
    record: dict[str, Any]


def decide(name: str, experiment: Experiment, filtered: Manifest, start: Manifest | None = None) -> Decision | None:
    """Decide whether a training stage with ``store_features: auto`` stores features.

    The first run decides and writes down what and why; all other runs with the same inputs, also those with another
    seed, one that runs at the same time and one that was killed and goes on, read that. Features that are there already
    are used. Else they are stored if there is room and the plan of ``wukong.stages.estimate.training`` is faster with
    them, by rates that are measured where the training will run.

    Args:
        name: name of the training stage.
        experiment: the experiment of the stage.
        filtered: the filter's manifest.
        start: manifest of the stage whose model it starts from, if any.

    Returns:
        The decision; None if nothing is to be decided.
    """
    settings = stages.training_of(experiment, name)
    if not settings.is_undecided:
        return None
    uri = places.decision(name, experiment, filtered, start)
    if not storage.exists(uri):
        decided = storage.json_bytes(_decision(settings, experiment, filtered, start))
        try:
            storage.write_if(uri, decided, None)
        except ChangedError:
            log.info("store_features: auto: another run has decided meanwhile")
        except UnconditionalError:
            if not storage.exists(uri):
                storage.write_bytes(uri, decided)
    record = storage.read_json(uri)
    way = "features are stored" if record["store"] else "the image tower runs in the training"
    log.info("store_features: auto: %s, because %s (%s)", way, record["why"], uri)
    return Decision(experiment.model_copy(update={name: settings.decided(store=record["store"])}), record)


def _decision(
    settings: Training, experiment: Experiment, filtered: Manifest, start: Manifest | None
) -> dict[str, object]:
    """Return what is decided, ``store``, and ``why``, with the numbers that decided it."""
    cache = places.features(experiment, filtered, start)
    if cache.finished():
        return {"store": True, "why": f"they are there already: {cache.uri}"}

    shape, dtype = cost.feature_shape(experiment.model), experiment.features.dtype
    image_bytes = estimate.feature_bytes(*shape, dtype)
    pairs = sum(entry.rows for entry in _work(filtered, "train", 0))
    needed = pairs * (1 + int(cache.config["views"])) * image_bytes
    room = room_for_features(experiment.storage, experiment.features)
    known: dict[str, object] = {"pairs": pairs, "gib": needed / _GIB, "room_gib": None if room is None else room / _GIB}
    if room is None:
        why = f"the room at {experiment.storage} is not known; features.room_gib tells it"
        return {"store": False, "why": why, **known}
    if needed > _ROOM * room:
        why = f"they take {needed / _GIB:,.3g} GiB and there is room for {_ROOM * room / _GIB:,.3g} GiB"
        return {"store": False, "why": why, **known}
    options = {"num_gpus": 1} if settings.gpus_per_worker else {"num_cpus": 1}
    asked = _measure.options(**options).remote(experiment.model, settings)
    done = gpus.first_done([asked], on_gpus=settings.gpus_per_worker > 0)
    measured: dict[RateName, Rate] = ray.get(done)
    cores = int(ray.cluster_resources().get("CPU", 1))
    plan = estimate.training(settings, pairs, image_bytes, cores, measured)
    assert plan.cached is not None  # noqa: S101 - for mypy
    stored, streamed = plan.cached.seconds, plan.streamed.seconds
    better = "takes less time" if plan.faster == "cached" else "takes more time"
    return {
        "store": plan.faster == "cached",
        "why": f"by measured rates storing them {better}: {stored:,.0f} s in place of {streamed:,.0f} s",
        "seconds": {"stored": stored, "streamed": streamed},
        "rates": {name: asdict(rate) for name, rate in measured.items()},
        **known,
    }


def room_for_features(uri: str, settings: Features) -> float | None:
    """Return the bytes that are free for features at a URI; None if neither the store nor the settings say."""
    if settings.room_gib is not None:
        return settings.room_gib * _GIB
    filesystem, path = storage.filesystem(uri)
    if filesystem.type_name != "local":
        return None
    return float(Machine.here(Path(path)).free)


@ray.remote(max_retries=2)
def _measure(model: Model, settings: Training) -> dict[RateName, Rate]:
    from wukong.train import rates

    if settings.gpus_per_worker:
        gpus.of_task()
    return rates.find(model, settings)
