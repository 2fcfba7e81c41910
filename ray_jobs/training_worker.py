"""One worker of a training on Ray Train: it trains on its share of the pairs, from the newest checkpoint."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import ray
import ray.train.torch
import torch

from ray_jobs import gpus, metrics
from wukong.config.experiment import Experiment
from wukong.config.model import Model
from wukong.config.training import Training
from wukong.data.tokenizer import Tokenizer
from wukong.errors import DataError
from wukong.model import saved_model
from wukong.model.dual import DualEncoder
from wukong.model.image_encoder import ImageEncoder
from wukong.model.loss import world
from wukong.runtime import logs
from wukong.store.manifest import Manifest
from wukong.tracking import training_metrics
from wukong.tracking.training_metrics import MetricSender
from wukong.train import checkpoint as checkpoints
from wukong.train import determinism, system_metrics, validation
from wukong.train.corpus import Corpus
from wukong.train.feature_pairs import FeaturePairs
from wukong.train.looks import Look
from wukong.train.loop import Validate, train
from wukong.train.pairs import Pairs
from wukong.train.picture_pairs import PicturePairs
from wukong.train.state import Epoch, Validated

_LAST_METRICS_SECONDS = 10.0
"""Seconds for which the end of a training waits for MLflow; the workers hold their GPUs meanwhile."""
_WHITENED = 16_384
"""Pairs whose features decide the whitening of the image head."""


@dataclass(frozen=True)
class Validation:
    """What a training is validated on.

    Attributes:
        experiment: the experiment, with its hold-outs, classification sets and the folder of the published sets.
        filtered: the filter's manifest.
        features: URI of the hold-outs' stored features; None for a training on images.
        packed: the published sets that lie in an object store.
    """

    experiment: Experiment
    filtered: Manifest
    features: str | None
    packed: Mapping[str, Manifest]


@dataclass(frozen=True)
class Job:
    """What each worker of a training gets.

    Attributes:
        name: name of the stage, ``pretrain`` or ``finetune``.
        model: the architecture.
        settings: settings of the training.
        seed: seed of the experiment.
        corpus: the pairs.
        features: URI of the pairs' stored features; None for a training on images.
        start: URI of the saved model to start from; None to start from the towers that ``model`` names.
        checkpoints: the prefix of the checkpoints, of all attempts.
        validation: what the model is validated on; None for no validation.
    """

    name: str
    model: Model
    settings: Training
    seed: int
    corpus: Corpus
    features: str | None
    start: str | None
    checkpoints: str
    validation: Validation | None


class _Reporter:
    """Reports what a worker's training measures to MLflow, and to Prometheus."""

    def __init__(self, job: Job, device: torch.device, sender: MetricSender) -> None:
        self._job, self._device, self._sender = job, device, sender
        self._rank, self._workers = world()

    def epoch(self, epoch: Epoch) -> None:
        if not self._rank:
            values = {name: value for name, value in asdict(epoch).items() if name != "epoch"}
            named = {training_metrics.epoch_metric(self._job.name, name): value for name, value in values.items()}
            self._sender.add(named, epoch.epoch)

    def look(self, look: Look) -> None:
        name, rank = self._job.name, self._rank
        used = {f"system/worker_{rank}/{metric}": value for metric, value in system_metrics.read(self._device).items()}
        measured = {f"{name}/{metric}": value for metric, value in asdict(look).items() if metric != "step"}
        self._sender.add(used if rank else measured | used, look.step)
        if not rank:
            metrics.show_look(name, look, self._workers, self._job.settings.workers)

    def validation(self, validated: Validated) -> None:
        values = validated.metrics if validated.best is None else {**validated.metrics, "best": validated.best}
        named = {f"{self._job.name}/validation/{name}": value for name, value in values.items()}
        self._sender.add(named, validated.step)


def work(job: Job) -> None:
    """Train on this worker's share of the pairs; the first worker reports and stores."""
    settings = job.settings
    _log_in_drivers_format()
    device = _own_device(settings)
    resume = checkpoints.agreed("" if world()[0] else checkpoints.newest(job.checkpoints) or "", device)
    model, pairs, tokenizer = _starting_point(job, whiten=not resume)
    for tower in (model.text, model.image):
        if tower is not None:
            tower.checkpoint_activations = settings.checkpoint_activations
    model = model.to(device)
    if settings.compile:
        model.compile_towers()
    writer, sender = checkpoints.Writer(job.checkpoints, settings.checkpoint.keep), MetricSender(job.name)
    report = _Reporter(job, device, sender)
    try:
        with determinism.explained(job.name), _validation(job, model, tokenizer) as validate:
            train(
                model,
                pairs,
                settings,
                job.seed,
                report.epoch,
                report.look,
                writer,
                resume or None,
                validate,
                report.validation,
            )
        sender.finish(_LAST_METRICS_SECONDS)
    finally:
        writer.close()
        sender.close()


def _own_device(settings: Training) -> torch.device:
    """Choose how this worker computes, and return the processor or the GPU that is its own on this machine.

    Raises:
        ConfigError: it asked for a GPU, and torch cannot use it.
    """
    torch.set_num_threads(_threads(settings))
    determinism.ask(deterministic=settings.deterministic)
    if settings.precision == "tf32":
        torch.set_float32_matmul_precision("high")
    device: torch.device = ray.train.torch.get_device()
    if settings.gpus_per_worker:
        gpus.of_task(str(device))
        torch.cuda.set_device(device)
    return device


def _threads(settings: Training) -> int:
    """Return the number of threads with which this worker computes.

    Ray's own number is that of the reserved cores, of which the loader processes have theirs; what is not reserved
    would lie idle.
    """
    if settings.threads or settings.gpus_per_worker:
        return settings.threads or 1
    own = ray.get_runtime_context().get_node_id()
    cores = sum(machine["Resources"].get("CPU", 0) for machine in ray.nodes() if machine["NodeID"] == own)
    loaders = 0 if settings.reads_features else settings.loader_workers
    neighbours: int = ray.train.get_context().get_local_world_size()
    return max(1, int(cores) // neighbours - loaders)


@contextmanager
def _validation(job: Job, model: DualEncoder, tokenizer: Tokenizer) -> Iterator[Validate | None]:
    """Prepare the function that measures the model while it is trained; None without validation."""
    asked, settings, tower = job.validation, job.settings.validation, None
    if asked is None:
        yield None
        return
    if model.image is None and not {*settings.tasks} <= {*asked.experiment.held_out_tasks}:
        given = saved_model.load(job.start).model.image if job.start else ImageEncoder(model.settings.image)
        tower = given.for_inference().to(model.log_scale.device) if given is not None else None
    with validation.prepared(
        asked.experiment, asked.filtered, settings, model, tokenizer, asked.features, tower, asked.packed
    ) as validate:
        del tower  # it has done its work
        yield validate


def _log_in_drivers_format() -> None:
    """Print what the library logs in the same format as the driver."""
    handler = logging.StreamHandler()
    handler.setFormatter(logs.FORMATTER)
    logger = logging.getLogger("wukong")
    logger.handlers, logger.propagate = [handler], False
    logger.setLevel(logging.INFO)


def _starting_point(job: Job, *, whiten: bool) -> tuple[DualEncoder, Pairs, Tokenizer]:
    """Return the model to train, the pairs, and the captions' tokenizer.

    Args:
        job: the worker's job.
        whiten: false to leave the head as it is, whatever the settings say: a checkpoint replaces it.
    """
    torch.manual_seed(job.seed)
    return _on_features(job, job.features, whiten=whiten) if job.features is not None else _on_pictures(job)


def _on_features(job: Job, prefix: str, *, whiten: bool) -> tuple[DualEncoder, Pairs, Tokenizer]:
    """Return the starting point of a training on the stored features below a prefix."""
    settings = job.settings

    def stored(tokenizer: Tokenizer) -> FeaturePairs:
        return FeaturePairs(job.corpus, tokenizer, prefix, range(settings.views + 1), settings.max_lost_shards)

    if job.start:
        start = saved_model.load_for_features(job.start)
        return start.model.requires_grad_(), stored(start.tokenizer), start.tokenizer
    tokenizer = Tokenizer.of(job.model.text)
    pairs, whiten = stored(tokenizer), settings.whiten_image_head and whiten
    few = pairs.sample(_WHITENED if whiten else 1)
    dual = DualEncoder(job.model, tokenizer, feature_width=few.shape[-1])
    if whiten:
        dual.whiten_image_head(few)
    return dual, pairs, tokenizer


def _on_pictures(job: Job) -> tuple[DualEncoder, Pairs, Tokenizer]:
    """Return the starting point of a training on images, with the image tower that they run through."""
    if job.start:
        start = saved_model.load(job.start)
        dual, tokenizer = start.model.requires_grad_(), start.tokenizer
    else:
        tokenizer = Tokenizer.of(job.model.text)
        dual = DualEncoder(job.model, tokenizer, ImageEncoder(job.model.image))
    if dual.image is None:
        raise DataError(f"{job.start} holds no image tower to run: set lock: all and store_features: true")
    dual.image.lock(job.settings.lock)
    return dual, PicturePairs(job.corpus, tokenizer, dual.settings.image, job.settings), tokenizer
