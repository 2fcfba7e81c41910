"""A training run on Ray Train, for the pretrain and finetune jobs: workers, checkpoints, recovery.

``wukong.train.loop`` trains; this module runs it on Ray. Checkpoints lie under the stage's prefix, so a run that was
killed continues after the last one and ends with the same weights. Each attempt (``wukong.fence``) has a folder of its
own for them and begins from the last checkpoint of all attempts, so that an old driver which is still alive overwrites
none. Ray Train starts the workers again where one was lost; each group of workers finds the last checkpoint by itself.
"""

import logging
from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs
import ray.train
import ray.train.torch
import torch
import torch.distributed as dist
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from ray_jobs import features
from wukong import fence, places, stages, storage, tracking
from wukong.config import Experiment, Model, Training
from wukong.data import shards
from wukong.data.tokenizer import Tokenizer
from wukong.errors import DataError
from wukong.manifest import Manifest, Part, Stage, digest_of
from wukong.model import saved_model
from wukong.model.dual import DualEncoder
from wukong.model.image_encoder import ImageEncoder
from wukong.model.loss import world
from wukong.train import checkpoint as checkpoints
from wukong.train import training_data
from wukong.train.loop import MEASURED, Epoch, Look, train
from wukong.train.training_data import Corpus, FeaturePairs, Pairs, PicturePairs

_MAX_FAILURES = 3
_RESIZE_SECONDS = 60.0
"""Between two looks at whether there are machines for more workers (``min_workers``)."""
_WHITENED = 16_384
"""Pairs whose features decide the whitening of the image head."""
_LONGEST_URI = 4096
_ROWS = "_rows.json"

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
        name: of the stage, ``pretrain`` or ``finetune``; the experiment's section of that name says how to train.
        experiment: gives the model, the training settings and the seed.
        filtered: the filter's manifest.
        start: manifest of the stage whose model to start from; None to start from the towers the experiment names.

    Raises:
        DataError: training ended without a checkpoint.
    """
    settings = stages.training_of(experiment, name)
    computed = features.run(experiment, {"filter": filtered}, start) if settings.reads_features else None
    stage = places.training(name, experiment, filtered, computed, start)
    if finished := stage.finished():
        return finished
    start_model = storage.join(start.uri, "model") if start else None
    job = {
        "name": name,
        "model": stage.config["model"],
        "training": settings.model_dump(mode="json"),
        "seed": experiment.seed,
        "corpus": asdict(_corpus(stage, filtered, settings)),
        "features": computed.uri if computed else None,
        "start": start_model,
        "checkpoints": stage.path("_checkpoints"),
    }
    filesystem, path = storage.filesystem(stage.path("_ray"))
    if earlier := checkpoints.newest(stage.path("_checkpoints")):
        log.info("training goes on from the checkpoint %s", earlier)
    if isinstance(filesystem, pafs.LocalFileSystem):
        Path(path).mkdir(parents=True, exist_ok=True)
    scaling = ScalingConfig(
        num_workers=settings.workers,
        use_gpu=settings.gpus_per_worker > 0,
        resources_per_worker={"CPU": 1, **({"GPU": settings.gpus_per_worker} if settings.gpus_per_worker else {})},
    )
    if settings.min_workers:
        elastic = {"num_workers": (settings.min_workers, settings.workers)}
        scaling = replace(scaling, **elastic, elastic_resize_monitor_interval_s=_RESIZE_SECONDS)
    TorchTrainer(
        _worker,
        train_loop_config=job,
        scaling_config=scaling,
        run_config=RunConfig(
            name="-".join(filter(None, [name, fence.attempt()])),
            storage_path=path,
            storage_filesystem=filesystem,
            failure_config=FailureConfig(max_failures=_MAX_FAILURES, controller_failure_limit=_MAX_FAILURES),
        ),
    ).fit()
    checkpoint = checkpoints.newest(stage.path("_checkpoints"))
    if checkpoint is None:
        raise DataError(f"{name} ended without a checkpoint: its epochs are {settings.epochs}, its log is above")
    fence.check()
    state, progress = checkpoints.load_weights(checkpoint)
    history = {name: progress[name] for name in ("history", "pairs")}
    if len(history["history"]) != settings.epochs:
        raise DataError(f"{name} ended after {len(history['history'])} of {settings.epochs} epochs; its log is above")
    parts = _publish(stage, state, history, experiment.model, start_model)
    for work in ("_checkpoints", "_ray", _ROWS):
        storage.delete(stage.path(work))
    return stage.commit(
        parts,
        counts={"pairs": history["pairs"]},
        metrics={name: history["history"][-1][name] for name in ("loss", "temperature")},
    )


def _corpus(stage: Stage, filtered: Manifest, settings: Training) -> Corpus:
    """Return the pairs to train on. The manifest has their number, unless only those of some sources are wanted.

    Args:
        stage: the training stage, which keeps the counted numbers for its next attempt.
        filtered: the filter's manifest.
        settings: settings of the training.
    """
    names = shards.names_of(filtered, "train")
    parts = {part.path: part for part in filtered.parts if part.path.startswith("train/")}
    rows = [parts[f"train/{name}.parquet"].rows for name in names]
    if settings.sources != ("*",):
        uri = stage.path(_ROWS)
        if not storage.exists(uri):
            storage.write_json(uri, training_data.count_rows(filtered.uri, "train", names, settings.sources))
        rows = storage.read_json(uri)
    identity = [[part.path, part.rows, part.sha256] for part in parts.values()]
    digest = digest_of([identity, settings.sources])
    return Corpus(filtered.uri, tuple(names), tuple(rows), digest, settings.sources)


def _worker(job: dict[str, Any]) -> None:
    """Run one Ray Train worker: train on this worker's share of the pairs; the first worker logs and stores."""
    _log_in_drivers_format()
    settings = Training.model_validate(job["training"])
    torch.use_deterministic_algorithms(mode=settings.deterministic, warn_only=True)
    if settings.precision == "tf32":
        torch.set_float32_matmul_precision("high")
    device = ray.train.torch.get_device()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    resume = _agreed(checkpoints.newest(job["checkpoints"]) or "", device)
    model, pairs = _starting_point(job, settings, whiten=not resume)
    for tower in (model.text, model.image):
        if tower is not None:
            tower.checkpoint_activations = settings.checkpoint_activations
    model = model.to(device)
    if settings.compile:
        model.compile_towers()
    writer = checkpoints.Writer(job["checkpoints"], settings.checkpoint.keep)

    # MLflow may be slow to answer or away: training does not wait for it.
    sender = ThreadPoolExecutor(1, thread_name_prefix="mlflow")
    sent: deque[Future[None]] = deque()

    def send(metrics: Mapping[str, float], step: int) -> None:
        while sent and sent[0].done():
            sent.popleft().result()
        sent.append(sender.submit(tracking.log_metrics, metrics, step))

    def log_epoch(epoch: Epoch) -> None:
        if not world()[0]:
            send({name: value for name, value in asdict(epoch).items() if name != "epoch"}, epoch.epoch)

    def log_look(look: Look) -> None:
        measured = {f"{job['name']}/{name}": value for name, value in asdict(look).items() if name != "step"}
        send(measured, look.step)

    try:
        train(model, pairs, settings, job["seed"], log_epoch, log_look, writer, resume or None)
        for future in sent:
            future.result()
    finally:
        writer.close()
        sender.shutdown(wait=False, cancel_futures=True)


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
    handler.setFormatter(logging.Formatter("%(asctime)s | %(levelname)s | %(message)s", "%H:%M:%S"))
    logger = logging.getLogger("wukong")
    logger.handlers, logger.propagate = [handler], False
    logger.setLevel(logging.INFO)


def _starting_point(job: Mapping[str, Any], settings: Training, *, whiten: bool) -> tuple[DualEncoder, Pairs]:
    """Return the model to train and the pairs.

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
            return start.model.requires_grad_(), FeaturePairs(corpus, start.tokenizer, job["features"], views)
        tokenizer = Tokenizer.of(model.text)
        stored = FeaturePairs(corpus, tokenizer, job["features"], views)
        few = stored.sample(_WHITENED if settings.whiten_image_head and whiten else 1)
        dual = DualEncoder(model, tokenizer, feature_width=few.shape[-1])
        if settings.whiten_image_head and whiten:
            dual.whiten_image_head(few)
        return dual, stored
    if job["start"]:
        start = saved_model.load(job["start"])
        dual, tokenizer = start.model.requires_grad_(), start.tokenizer
    else:
        tokenizer = Tokenizer.of(model.text)
        dual = DualEncoder(model, tokenizer, ImageEncoder(model.image))
    if dual.image is None:
        raise DataError(f"{job['start']} holds no image tower to run: set lock: all and store_features: true")
    dual.image.lock(settings.lock)
    return dual, PicturePairs(corpus, tokenizer, dual.settings.image, settings)


def _publish(
    stage: Stage, state: Mapping[str, torch.Tensor], history: dict[str, Any], settings: Model, start: str | None
) -> list[Part]:
    """Write the saved model, made of the trained weights and a locked image tower, and the history of the epochs.

    Measured times are written beside the history, in a file that is none of the parts.
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
    storage.write_json(stage.path("history.json"), history | {"history": kept})
    storage.write_json(stage.path("measured.json"), measured)
    return [stage.describe(file) for file in [*files, "history.json"]]
