"""A training stage, for the pretrain and finetune jobs: what its workers get, and what it publishes.

``ray_jobs.worker_group`` runs the workers (``ray_jobs.training_worker``), which train by ``wukong.train.loop``.
Checkpoints lie under the stage's prefix, so a run that was killed continues after the last one and ends with the same
weights. Each attempt (``wukong.store.fence``) has a folder of its own for them and begins from the last checkpoint of
all attempts, so that an old driver which is still alive overwrites none.
"""

import logging
from collections.abc import Mapping
from typing import Any

import torch

from ray_jobs import features, packing, worker_group
from ray_jobs.training_worker import Job, Validation
from wukong import stages
from wukong.config.experiment import Experiment
from wukong.config.model import Model
from wukong.config.training import Training
from wukong.data import shards
from wukong.data.tokenizer import Tokenizer
from wukong.errors import DataError
from wukong.evaluate.protocol import named
from wukong.model import saved_model
from wukong.model.dual import DualEncoder
from wukong.model.image_encoder import ImageEncoder
from wukong.stages import places
from wukong.store import fence, storage
from wukong.store.manifest import Manifest, Part, Stage
from wukong.train import checkpoint as checkpoints
from wukong.train.corpus import Corpus, count_rows
from wukong.train.state import MEASURED, State

_ROWS = "_rows.json"
"""Work file of a stage: the number of pairs of each shard that are trained on."""

log = logging.getLogger(__name__)


def run(
    name: str,
    experiment: Experiment,
    filtered: Manifest,
    start: Manifest | None = None,
) -> Manifest:
    """Train a model as a stage; write the saved model and its history.

    How fast training was depends on the machine, not on the data. It goes to MLflow and into ``measured.json``, which
    is none of the manifest's parts, so that equal inputs give equal digests.

    The features job runs a locked image tower once. A tower that is trained, or whose features would be too many to
    store, sees the images again in every epoch.

    Args:
        name: name of the stage, ``pretrain`` or ``finetune``; the experiment's section of that name says how to train.
        experiment: the experiment; its model, training settings and seed are used.
        filtered: the filter's manifest.
        start: manifest of the stage whose model to start from; None to start from the towers the experiment names.

    Raises:
        DataError: training ended without a checkpoint.
    """
    decision = features.decide(name, experiment, filtered, start)
    if decision is not None:
        experiment = decision.experiment
    settings = stages.training_of(experiment, name)
    computed = None
    if settings.reads_features:
        on_gpus = settings.gpus_per_worker > 0
        computed = features.run(experiment, {"filter": filtered}, start, on_gpus=on_gpus)
    stage = places.training(name, experiment, filtered, computed, start)
    notes = {"store_features": decision.record} if decision else None

    def made() -> Manifest:
        job = _job(stage, name, experiment, filtered, computed, start)
        return _train(stage, job, experiment.model, notes)

    return stage.made(made)


def _job(
    stage: Stage,
    name: str,
    experiment: Experiment,
    filtered: Manifest,
    computed: Manifest | None,
    start: Manifest | None,
) -> Job:
    """Return what the workers of a stage get; for the arguments see ``places.training``."""
    settings, validation = stages.training_of(experiment, name), None
    if settings.validation.every_steps:
        held = features.run(experiment, {"filter": filtered}, start, "holdouts") if computed else None
        asked = settings.validation
        published = [task for task in asked.tasks if task not in experiment.held_out_tasks]
        splits = [(task, asked.split or named(asked.protocol).split(task)) for task in published]
        packed = packing.made(experiment, splits, stage.config.get("sets", {}))
        validation = Validation(experiment, filtered, held.uri if held else None, packed)
    return Job(
        name=name,
        model=Model.model_validate(stage.config["model"]),
        settings=settings,
        seed=experiment.seed,
        corpus=_corpus(stage, filtered, settings),
        features=computed.uri if computed else None,
        start=storage.join(start.uri, "model") if start else None,
        checkpoints=stage.path("_checkpoints"),
        validation=validation,
    )


def _train(stage: Stage, job: Job, model: Model, notes: dict[str, Any] | None) -> Manifest:
    """Train the model of a stage whose lease is held, and publish it; ``model`` is the experiment's section."""
    if earlier := checkpoints.newest(job.checkpoints):
        log.info("training goes on from the checkpoint %s", earlier)
    worker_group.run(job, stage.path("_ray"))
    newest = checkpoints.newest(job.checkpoints)
    if newest is None:
        if finished := stage.finished():  # of a run that did not wait, where the store has no conditional writes
            return finished
        epochs = job.settings.epochs
        raise DataError(f"{job.name} ended without a checkpoint: its epochs are {epochs}, its log is above")
    fence.check()
    weights, progress = checkpoints.load_weights(newest)
    state = State.of(progress)
    counts, metrics, history = _counts(job, state), _metrics(job, state), _history(job, state)
    if job.settings.validation.keep == "best":
        best = state.validations
        log.info("the model is that of step %d, with %s %.4f", best.step, job.settings.validation.metric, best.best)
        weights, _ = checkpoints.load_weights(best.checkpoint, goes_with=job.checkpoints)
    parts = _publish(stage, weights, history, model, job.start)
    return stage.commit(parts, counts=counts, metrics=metrics, notes=notes)


def _counts(job: Job, state: State) -> dict[str, int]:
    """Return the numbers of pairs, and of pictures and shards that could not be read, which the log names."""
    counts = {"pairs": state.pairs}
    if state.broken:
        log.warning("%s: %d times another pair took the place of one whose picture is broken", job.name, state.broken)
        counts["broken_pictures"] = state.broken
    if state.lost:
        lost = ", ".join(job.corpus.names[number] for number in state.lost)
        log.warning("%s: other pairs took the places of those of the shards %s", job.name, lost)
        counts["lost_shards"] = len(state.lost)
    return counts


def _metrics(job: Job, state: State) -> dict[str, float]:
    """Return the results of the last epoch, and of the best validation where one decides.

    Raises:
        DataError: the training ended before its last epoch, or no validation measured what decides.
    """
    ended, validations = len(state.history), state.validations
    if ended != job.settings.epochs and not validations.stopped:
        raise DataError(f"{job.name} ended after {ended} of {job.settings.epochs} epochs; its log is above")
    metrics = {name: state.history[-1][name] for name in ("loss", "temperature")}
    if job.settings.validation.decides:
        if validations.best is None:
            metric = job.settings.validation.metric
            raise DataError(f"{job.name} never told what {metric} asks apart; its log is above")
        metrics |= {"validation/best": validations.best, "validation/best_step": float(validations.step)}
    return metrics


def _history(job: Job, state: State) -> dict[str, Any]:
    """Return the content of ``history.json``: the epochs, and the validations where they decide."""
    history: dict[str, Any] = {"history": state.history, "pairs": state.pairs}
    if job.settings.validation.decides:
        history["validations"] = {"metric": job.settings.validation.metric, "kept": job.settings.validation.keep}
        shown = ("best", "step", "stopped", "history")
        history["validations"] |= {name: getattr(state.validations, name) for name in shown}
    return history


def _corpus(stage: Stage, filtered: Manifest, settings: Training) -> Corpus:
    """Return the pairs to train on. The manifest has their number, unless only those of some sources are wanted.

    Args:
        stage: the training stage, which keeps the counted numbers for its next attempt.
        filtered: the filter's manifest.
        settings: settings of the training.
    """
    rows = None
    if settings.sources != ("*",):
        uri = stage.path(_ROWS)
        if not storage.exists(uri):
            names = shards.names_of(filtered, "train")
            storage.write_json(uri, count_rows(filtered.uri, "train", names, settings.sources))
        rows = storage.read_json(uri)
    return Corpus.of(filtered, settings.sources, rows, sampled=settings.captions_per_picture == "sampled")


def _publish(
    stage: Stage, state: Mapping[str, torch.Tensor], history: dict[str, Any], settings: Model, start: str | None
) -> list[Part]:
    """Write the saved model, made of the trained weights and a locked image tower, and the history of the epochs.

    On GPUs another attempt has other weights, so an older one must not write over a newer one's: the files are
    published (``wukong.store.fence``). Measured times are written beside the history, in a file that is none of the
    parts.
    """
    if start:
        loaded = saved_model.load(start)
        tokenizer, tower = loaded.tokenizer, loaded.model.image
    else:
        tokenizer, tower = Tokenizer.of(settings.text), ImageEncoder(settings.image)
    model = DualEncoder(settings, tokenizer, tower, with_weights=False)
    model.load_trained(state)
    files = [f"model/{file}" for file in saved_model.save(stage.path("model"), model, tokenizer)]
    epochs = history["history"]
    measured = [{name: epoch[name] for name in ("epoch", *MEASURED) if name in epoch} for epoch in epochs]
    kept = [{name: value for name, value in epoch.items() if name not in MEASURED} for epoch in epochs]
    fence.publish(stage.path("history.json"), history | {"history": kept})
    storage.write_json(stage.path("measured.json"), measured)
    return [stage.describe(file) for file in [*files, "history.json"]]
