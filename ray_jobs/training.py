"""A training run on Ray Train, for the pretrain and finetune jobs: workers, checkpoints, recovery.

``wukong.train.loop`` trains; this module runs it on Ray. Checkpoints lie under the stage's prefix, so a run that was
killed continues after the last one and ends with the same weights. Each attempt (``wukong.store.fence``) has a folder
of its own for them and begins from the last checkpoint of all attempts, so that an old driver which is still alive
overwrites none. Where a worker was lost, Ray Train starts a new group of workers, which finds the last checkpoint by
itself; so it does after each failure that may not come again, until it fails too often without a new checkpoint.
"""

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs
import ray
import ray.train
import ray.train.torch
import torch
import torch.distributed as dist
from ray.train import ControllerError, FailureConfig, RunConfig, ScalingConfig, WorkerGroupError
from ray.train.torch import TorchTrainer

from ray_jobs import features, metrics
from wukong import stages
from wukong.config import documents
from wukong.config.experiment import Experiment
from wukong.config.model import Model
from wukong.config.training import Training
from wukong.data import shards
from wukong.data.tokenizer import Tokenizer
from wukong.errors import ConfigError, DataError, StorageError, WukongError
from wukong.model import saved_model
from wukong.model.dual import DualEncoder
from wukong.model.image_encoder import ImageEncoder
from wukong.model.loss import world
from wukong.runtime import logs
from wukong.stages import places
from wukong.store import fence, storage
from wukong.store.manifest import Manifest, Part, Stage
from wukong.tracking import training_metrics
from wukong.tracking.training_metrics import MetricSender
from wukong.train import checkpoint as checkpoints
from wukong.train import corpus as corpus_module
from wukong.train import determinism, system_metrics, validation
from wukong.train.corpus import Corpus
from wukong.train.feature_pairs import FeaturePairs
from wukong.train.loop import MEASURED, Epoch, Look, Validate, Validated, Validations, train
from wukong.train.pairs import Pairs
from wukong.train.picture_pairs import PicturePairs

_RESIZE_SECONDS = 60.0
"""Between two looks at whether there are machines for more workers (``min_workers``)."""
_START_SECONDS = 60.0
"""For which machines are waited for before that counts as a failure, as Ray Train does."""
_LAST_METRICS_SECONDS = 10.0
"""For which the end of a training waits for MLflow; the workers hold their GPUs meanwhile."""
_WHITENED = 16_384
"""Pairs whose features decide the whitening of the image head."""
_LONGEST_URI = 4096
_ROWS = "_rows.json"

log = logging.getLogger(__name__)


class _Trainer(TorchTrainer):  # type: ignore[misc]  # Ray publishes no types
    """Ray's trainer, without the process that removes placement groups where that cannot work.

    That process asks the dashboard whether the controller is alive. Where there is none, each question takes 40
    seconds, and the end of a training waits 12 seconds for the answer (Ray 2.60).
    """

    def _create_default_callbacks(self) -> list[Any]:
        found: list[Any] = super()._create_default_callbacks()
        if ray._private.worker.get_dashboard_url():  # nothing public tells it after the start
            return found
        return [each for each in found if type(each).__name__ != "PlacementGroupCleanerCallback"]


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
        name: of the stage, ``pretrain`` or ``finetune``; the experiment's section of that name says how to train.
        experiment: gives the model, the training settings and the seed.
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
    return stage.made(lambda: _train(stage, name, experiment, filtered, computed, start, notes))


def _train(
    stage: Stage,
    name: str,
    experiment: Experiment,
    filtered: Manifest,
    computed: Manifest | None,
    start: Manifest | None,
    notes: dict[str, Any] | None,
) -> Manifest:
    """Train the model of a stage whose lease is held; for the arguments see ``places.training``."""
    settings = stages.training_of(experiment, name)
    start_model = storage.join(start.uri, "model") if start else None
    validated: dict[str, Any] | None = None
    if settings.validation.every_steps:
        stored = features.run(experiment, {"filter": filtered}, start, "holdouts") if computed else None
        validated = {
            "experiment": experiment.model_dump(mode="json"),
            "filter": filtered.model_dump(mode="json"),
            "features": stored.uri if stored else None,
        }
    job = {
        "name": name,
        "model": stage.config["model"],
        "training": settings.model_dump(mode="json"),
        "seed": experiment.seed,
        "corpus": asdict(_corpus(stage, filtered, settings)),
        "features": computed.uri if computed else None,
        "start": start_model,
        "checkpoints": stage.path("_checkpoints"),
        "validated": validated,
    }
    filesystem, path = storage.filesystem(stage.path("_ray"))
    if earlier := checkpoints.newest(stage.path("_checkpoints")):
        log.info("training goes on from the checkpoint %s", earlier)
    if isinstance(filesystem, pafs.LocalFileSystem):
        Path(path).mkdir(parents=True, exist_ok=True)

    def fit(attempt: int) -> None:
        if settings.min_workers:
            _wait_for_machines(name, settings)
        _Trainer(
            _worker,
            train_loop_config=job,
            scaling_config=_scaling(settings),
            run_config=RunConfig(
                name="-".join(filter(None, [name, fence.attempt(), str(attempt)])),
                storage_path=path,
                storage_filesystem=filesystem,
                failure_config=FailureConfig(max_failures=0, controller_failure_limit=0),
            ),
        ).fit()

    _until_trained(fit, name, settings, stage.path("_checkpoints"))
    checkpoint = checkpoints.newest(stage.path("_checkpoints"))
    if checkpoint is None:
        if finished := stage.finished():  # of a run that did not wait, where the store has no conditional writes
            return finished
        raise DataError(f"{name} ended without a checkpoint: its epochs are {settings.epochs}, its log is above")
    fence.check()
    state, progress = checkpoints.load_weights(checkpoint)
    history = {name: progress[name] for name in ("history", "pairs")}
    counts = {"pairs": history["pairs"]}
    if broken := progress["broken"]:
        log.warning("%s: %d times another pair took the place of one whose picture is broken", name, broken)
        counts["broken_pictures"] = broken
    if lost := [job["corpus"]["names"][number] for number in progress.get("lost", [])]:
        log.warning("%s: other pairs took the places of those of the shards %s", name, ", ".join(lost))
        counts["lost_shards"] = len(lost)
    found = Validations(**progress.get("validations", {}))
    if len(history["history"]) != settings.epochs and not found.stopped:
        raise DataError(f"{name} ended after {len(history['history'])} of {settings.epochs} epochs; its log is above")
    metrics = {name: history["history"][-1][name] for name in ("loss", "temperature")}
    if settings.validation.decides:
        if found.best is None:
            raise DataError(f"{name} never told what {settings.validation.metric} asks apart; its log is above")
        history["validations"] = {"metric": settings.validation.metric, "kept": settings.validation.keep}
        history["validations"] |= {key: getattr(found, key) for key in ("best", "step", "stopped", "history")}
        metrics |= {"validation/best": found.best, "validation/best_step": float(found.step)}
    if settings.validation.keep == "best":
        log.info("the model is that of step %d, with %s %.4f", found.step, settings.validation.metric, found.best)
        state, _ = checkpoints.load_weights(found.checkpoint)
    parts = _publish(stage, state, history, experiment.model, start_model)
    return stage.commit(parts, counts=counts, metrics=metrics, notes=notes)


def _until_trained(fit: Callable[[int], None], name: str, settings: Training, uri: str) -> None:
    """Train, and begin again after a failure that may not come again, until it fails too often without progress.

    Args:
        fit: trains from the newest checkpoint; gets the number of the failures so far.
        name: of the stage.
        settings: ``max_failures`` is used.
        uri: the prefix of the checkpoints.

    Raises:
        WukongError: an error in settings or data, which would come again, at once.
        ConfigError: the workers could not be started, too often.
        TrainingFailedError: another failure, too often.
    """
    failed, in_a_row, newest = 0, 0, checkpoints.newest(uri)
    while True:
        try:
            return fit(failed)
        except (WorkerGroupError, ControllerError) as error:
            if isinstance(error, WorkerGroupError):
                for cause in error.worker_failures.values():
                    # A store that was away for long may be back.
                    if isinstance(cause, WukongError) and not isinstance(cause, StorageError):
                        raise cause from error
            fence.check()
            found = checkpoints.newest(uri)
            failed, in_a_row, newest = failed + 1, 1 if found != newest else in_a_row + 1, found
            why: Exception = error
            if isinstance(error, ControllerError):
                why = _not_started(name, settings, str(error.controller_failure))
            else:
                away = (cause for cause in error.worker_failures.values() if isinstance(cause, StorageError))
                why = next(away, error)  # in the place of all workers' tracebacks
            if in_a_row > settings.max_failures:
                if why is error:
                    raise
                raise why from error
            log.warning(
                "%s failed and goes on from %s; failure %d of at most %d without a new checkpoint: %s",
                name,
                found or "its start",
                in_a_row,
                settings.max_failures,
                why,
            )


def _not_started(name: str, settings: Training, why: str) -> ConfigError:
    """Return the error that names what the cluster lacks."""
    number = f"{settings.min_workers} to {settings.workers}" if settings.min_workers else settings.workers
    wanted = f"{number} workers of {name}, with one core"
    wanted += f" and {settings.gpus_per_worker} GPUs each" if settings.gpus_per_worker else " each"
    there = ray.cluster_resources()
    return ConfigError(
        f"{wanted}, could not be started: the cluster has {there.get('CPU', 0):g} cores and {there.get('GPU', 0):g} "
        f"GPUs ({why}). Add machines, or set {name}.workers or {name}.min_workers lower"
    )


def _scaling(settings: Training) -> ScalingConfig:
    """Return how many workers Ray Train starts, and what Ray reserves for each."""
    scaling = ScalingConfig(
        num_workers=settings.workers,
        use_gpu=settings.gpus_per_worker > 0,
        resources_per_worker=_reserved(settings),
    )
    if settings.min_workers:
        elastic = {"num_workers": (settings.min_workers, settings.workers)}
        scaling = replace(scaling, **elastic, elastic_resize_monitor_interval_s=_RESIZE_SECONDS)
    return scaling


def _reserved(settings: Training) -> dict[str, float]:
    """Return what Ray reserves for a worker: a core, one for each of its loader processes, and its GPUs.

    Machines with fewer cores are not waited for: the worker and its loader processes then share those that there are,
    so many for each worker that all workers have room, or that one has where machines are missing.
    """
    loaders = 0 if settings.reads_features else settings.loader_workers
    gpus = {"GPU": float(settings.gpus_per_worker)} if settings.gpus_per_worker else {}
    wanted = settings.workers if _places(_minimum(settings)) >= settings.workers else 1
    for cores in range(1 + loaders, 0, -1):
        found = {"CPU": float(cores), **gpus}
        if _places(found) >= wanted:
            break
    if cores < 1 + loaders:
        log.info("%d loader processes of each worker share %d cores with it: the machines have no more", loaders, cores)
    return found


def _minimum(settings: Training) -> dict[str, float]:
    """Return what a worker cannot do without."""
    return {"CPU": 1.0, **({"GPU": float(settings.gpus_per_worker)} if settings.gpus_per_worker else {})}


def _places(reserved: Mapping[str, float]) -> int:
    """Return for how many workers the machines of the cluster have room."""
    machines = [machine["Resources"] for machine in ray.nodes() if machine["Alive"]]
    return sum(min(int(there.get(name, 0) // needed) for name, needed in reserved.items()) for there in machines)


def _wait_for_machines(name: str, settings: Training) -> None:
    """Wait until there are machines for ``min_workers``; Ray Train would wait for them without an end or a word.

    Raises:
        ConfigError: there were none for as many minutes as there may be failures, and one more.
    """
    for minute in range(settings.max_failures + 1):
        until = time.monotonic() + _START_SECONDS
        while _places(_minimum(settings)) < settings.min_workers:
            if time.monotonic() > until:
                break
            time.sleep(1)
        else:
            return
        missing = _not_started(name, settings, f"none came for {(minute + 1) * _START_SECONDS:.0f} seconds")
        log.warning("%s", missing)
    raise missing


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
            storage.write_json(uri, corpus_module.count_rows(filtered.uri, "train", names, settings.sources))
        rows = storage.read_json(uri)
    return Corpus.of(filtered, settings.sources, rows)


def _worker(job: dict[str, Any]) -> None:
    """Run one Ray Train worker: train on this worker's share of the pairs; the first worker logs and stores."""
    _log_in_drivers_format()
    settings = Training.model_validate(job["training"])
    device = _own_device(settings)
    resume = _agreed(checkpoints.newest(job["checkpoints"]) or "", device)
    model, pairs, tokenizer = _starting_point(job, settings, whiten=not resume)
    for tower in (model.text, model.image):
        if tower is not None:
            tower.checkpoint_activations = settings.checkpoint_activations
    model = model.to(device)
    if settings.compile:
        model.compile_towers()
    writer = checkpoints.Writer(job["checkpoints"], settings.checkpoint.keep)

    sender = MetricSender(job["name"])

    def log_epoch(epoch: Epoch) -> None:
        if not world()[0]:
            values = {name: value for name, value in asdict(epoch).items() if name != "epoch"}
            sender.add(
                {training_metrics.epoch_metric(job["name"], name): value for name, value in values.items()}, epoch.epoch
            )

    def log_look(look: Look) -> None:
        rank = world()[0]
        used = {f"system/worker_{rank}/{name}": value for name, value in system_metrics.read(device).items()}
        measured = {f"{job['name']}/{name}": value for name, value in asdict(look).items() if name != "step"}
        sender.add(used if rank else measured | used, look.step)
        if not rank:
            metrics.show_look(job["name"], look, world()[1], settings.workers)

    def log_validation(found: Validated) -> None:
        sender.add({f"{job['name']}/validation/{name}": value for name, value in found.metrics.items()}, found.step)

    try:
        with determinism.explained(job["name"]), _validation(job, settings, model, tokenizer) as validate:
            train(
                model,
                pairs,
                settings,
                job["seed"],
                log_epoch,
                log_look,
                writer,
                resume or None,
                validate,
                log_validation,
            )
        sender.finish(_LAST_METRICS_SECONDS)
    finally:
        writer.close()
        sender.close()


def _own_device(settings: Training) -> torch.device:
    """Choose how this worker computes, and return the processor or the GPU that is its own on this machine."""
    # Ray tells torch to use all of its reserved cores, which are the loader processes'; and another number of threads
    # rounds otherwise.
    torch.set_num_threads(1)
    determinism.ask(deterministic=settings.deterministic)
    if settings.precision == "tf32":
        torch.set_float32_matmul_precision("high")
    device: torch.device = ray.train.torch.get_device()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return device


@contextmanager
def _validation(
    job: Mapping[str, Any], settings: Training, model: DualEncoder, tokenizer: Tokenizer
) -> Iterator[Validate | None]:
    """Give what measures the model while it is trained; None if nothing is to be measured."""
    asked = job["validated"]
    if asked is None:
        yield None
        return
    experiment, tower = documents.parse(asked["experiment"]), None
    if model.image is None and not {*settings.validation.tasks} <= {*experiment.held_out_tasks}:
        given = saved_model.load(job["start"]).model.image if job["start"] else ImageEncoder(model.settings.image)
        tower = given.for_inference().to(model.log_scale.device) if given is not None else None
    filtered = Manifest.model_validate(asked["filter"])
    with validation.prepared(
        experiment, filtered, settings.validation, model, tokenizer, asked["features"], tower
    ) as validate:
        del tower  # it has done its work
        yield validate


def _agreed(uri: str, device: torch.device) -> str:
    """Return what the first worker found, on every worker: another may have looked a moment before or after it."""
    if world()[1] == 1:
        return uri
    data = torch.zeros(_LONGEST_URI, dtype=torch.uint8, device=device)
    encoded = uri.encode()
    data[: len(encoded)] = torch.frombuffer(bytearray(encoded), dtype=torch.uint8).to(device) if encoded else 0
    dist.broadcast(data, 0)
    return bytes(data.tolist()).rstrip(b"\0").decode()


def _log_in_drivers_format() -> None:
    """Print what the library logs in the same format as the driver."""
    handler = logging.StreamHandler()
    handler.setFormatter(logs.FORMATTER)
    logger = logging.getLogger("wukong")
    logger.handlers, logger.propagate = [handler], False
    logger.setLevel(logging.INFO)


def _starting_point(
    job: Mapping[str, Any], settings: Training, *, whiten: bool
) -> tuple[DualEncoder, Pairs, Tokenizer]:
    """Return the model to train, the pairs, and the captions' tokenizer.

    Args:
        job: of ``run``.
        settings: settings of the training.
        whiten: whether the head is whitened, if the settings say so; a checkpoint replaces it.
    """
    model, corpus = Model.model_validate(job["model"]), Corpus(**job["corpus"])
    torch.manual_seed(job["seed"])
    if settings.reads_features:
        views = range(settings.views + 1)
        if job["start"]:
            start = saved_model.load_for_features(job["start"])
            return (
                start.model.requires_grad_(),
                FeaturePairs(corpus, start.tokenizer, job["features"], views, settings.max_lost_shards),
                start.tokenizer,
            )
        tokenizer = Tokenizer.of(model.text)
        stored = FeaturePairs(corpus, tokenizer, job["features"], views, settings.max_lost_shards)
        few = stored.sample(_WHITENED if settings.whiten_image_head and whiten else 1)
        dual = DualEncoder(model, tokenizer, feature_width=few.shape[-1])
        if settings.whiten_image_head and whiten:
            dual.whiten_image_head(few)
        return dual, stored, tokenizer
    if job["start"]:
        start = saved_model.load(job["start"])
        dual, tokenizer = start.model.requires_grad_(), start.tokenizer
    else:
        tokenizer = Tokenizer.of(model.text)
        dual = DualEncoder(model, tokenizer, ImageEncoder(model.image))
    if dual.image is None:
        raise DataError(f"{job['start']} holds no image tower to run: set lock: all and store_features: true")
    dual.image.lock(settings.lock)
    return dual, PicturePairs(corpus, tokenizer, dual.settings.image, settings), tokenizer


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
