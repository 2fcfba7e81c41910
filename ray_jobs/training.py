"""A training run on Ray Train, for the pretrain and finetune jobs: workers, checkpoints, recovery.

``wukong.train.loop`` trains; this module runs it on Ray. Checkpoints lie under the stage's prefix, so a run that was
killed continues after its last complete epoch and ends with the same weights. Each attempt (``wukong.fence``) has a
folder of its own for them and begins from the last checkpoint of those before it, so that an old driver which is still
alive overwrites none.
"""

import logging
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
import ray.train
import ray.train.torch
import torch
from ray.train import Checkpoint, CheckpointConfig, FailureConfig, Result, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from ray_jobs import features
from wukong import fence, places, stages, storage, tracking
from wukong.config import Experiment, Model, Training
from wukong.data import shards
from wukong.data.tokenizer import Tokenizer
from wukong.errors import DataError
from wukong.manifest import Manifest, Part, Stage
from wukong.model import saved_model
from wukong.model.dual import DualEncoder
from wukong.model.image_encoder import ImageEncoder
from wukong.train import checkpoint as checkpoints
from wukong.train import training_data
from wukong.train.loop import MEASURED, Epoch, train

_MAX_FAILURES = 3
_READS = 3

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
        "model": stage.config["model"],
        "training": stage.config["training"],
        "seed": experiment.seed,
        "pairs": filtered.uri,
        "features": computed.uri if computed else None,
        "shards": shards.names_of(filtered, "train"),
        "start": start_model,
    }
    filesystem, path = storage.filesystem(stage.path("_checkpoints"))
    run_name = "-".join(filter(None, [name, fence.attempt()]))
    earlier = _last_checkpoint(stage, run_name)
    job |= {"earlier": earlier.path if earlier else None, "output": stage.uri}
    if isinstance(filesystem, pafs.LocalFileSystem):
        Path(path).mkdir(parents=True, exist_ok=True)
    result = TorchTrainer(
        _worker,
        train_loop_config=job,
        scaling_config=ScalingConfig(
            num_workers=settings.workers,
            use_gpu=settings.gpus_per_worker > 0,
            resources_per_worker={"CPU": 1, **({"GPU": settings.gpus_per_worker} if settings.gpus_per_worker else {})},
        ),
        run_config=RunConfig(
            name=run_name,
            storage_path=path,
            storage_filesystem=filesystem,
            failure_config=FailureConfig(max_failures=_MAX_FAILURES, controller_failure_limit=_MAX_FAILURES),
            checkpoint_config=CheckpointConfig(num_to_keep=1),
        ),
    ).fit()
    checkpoint = result.checkpoint or earlier  # an earlier attempt may have trained to the end
    if checkpoint is None:
        raise DataError(f"{name} ended without a checkpoint: its epochs are {settings.epochs}, its log is above")
    fence.check()
    parts, history = _publish(stage, checkpoint, experiment.model, start_model)
    storage.delete(stage.path("_checkpoints"))
    return stage.commit(
        parts,
        counts={"pairs": history["pairs"]},
        metrics={name: history["history"][-1][name] for name in ("loss", "temperature")},
    )


def _last_checkpoint(stage: Stage, run_name: str) -> Checkpoint | None:
    """Return the last complete checkpoint of the other attempts at a training stage; None if there is none.

    Args:
        stage: the training stage.
        run_name: Ray Train's name of this attempt, which Ray continues by itself.
    """
    folder = stage.path("_checkpoints")
    filesystem, path = storage.filesystem(folder)
    found: list[tuple[int, Checkpoint]] = []
    attempts = {uri[len(folder) :].split("/")[1] for uri in storage.list_files(folder)}
    for attempt in sorted(attempts - {run_name}):
        left = _left_by(f"{path}/{attempt}", filesystem)
        if left is not None and left.checkpoint is not None and left.metrics is not None:
            found.append((int(left.metrics["epoch"]), left.checkpoint))
    if not found:
        return None
    epoch, checkpoint = max(found, key=lambda entry: entry[0])
    log.info("training goes on after epoch %d of an earlier attempt (%s)", epoch, checkpoint.path)
    return checkpoint


def _left_by(path: str, filesystem: pafs.FileSystem) -> Result | None:
    """Return what an attempt at training has left; None if it has not come to a checkpoint that can be used.

    An old driver may still be replacing a checkpoint, of which it writes first and deletes then; so it is read again.
    """
    for remaining in reversed(range(_READS)):
        try:
            return Result.from_path(path, storage_filesystem=filesystem)
        except OSError:
            raise
        except RuntimeError as error:
            log.info("an attempt has left no checkpoint: %s", error)
            return None
        except Exception as error:  # noqa: BLE001 - Ray has no public class for it
            if not remaining:
                log.warning("training does not go on after the checkpoints at %s: %s", path, error)
            time.sleep(1)
    return None


def _worker(job: dict[str, Any]) -> None:
    """Run one Ray Train worker: read the data, train, report each epoch; the first worker adds a checkpoint."""
    _log_in_drivers_format()
    torch.use_deterministic_algorithms(mode=True, warn_only=True)
    settings = Training.model_validate(job["training"])
    context = ray.train.get_context()
    model, tokenizer, table, pictures = _starting_point(job, settings)
    pairs = training_data.Pairs(pictures, table["caption"].to_pylist(), tokenizer)
    for tower in (model.text, model.image):
        if tower is not None:
            tower.checkpoint_activations = settings.checkpoint_activations
    device = ray.train.torch.get_device()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    model = model.to(device)

    def after_epoch(epoch: Epoch, write: Callable[[Path], None]) -> None:
        fence.check()
        metrics = asdict(epoch)
        if context.get_world_rank():
            ray.train.report(metrics)
            return
        tracking.log_metrics({name: value for name, value in metrics.items() if name != "epoch"}, epoch.epoch)
        with tempfile.TemporaryDirectory() as folder:
            write(Path(folder))
            ray.train.report(metrics, checkpoint=Checkpoint.from_directory(folder))

    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None and job["earlier"]:
        checkpoint = Checkpoint(job["earlier"], storage.filesystem(job["output"])[0])
    if checkpoint is None:
        train(model, pairs, settings, job["seed"], after_epoch)
    else:
        with checkpoint.as_directory() as folder:
            train(model, pairs, settings, job["seed"], after_epoch, Path(folder))


def _log_in_drivers_format() -> None:
    """Print what the library logs in the same format as the driver."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s | %(levelname)s | %(message)s", "%H:%M:%S"))
    logger = logging.getLogger("wukong")
    logger.handlers, logger.propagate = [handler], False
    logger.setLevel(logging.INFO)


def _starting_point(
    job: Mapping[str, Any], settings: Training
) -> tuple[DualEncoder, Tokenizer, pa.Table, torch.Tensor | training_data.Pictures]:
    """Return the model to train, its tokenizer, the pairs, and what the model reads of their images."""
    model = Model.model_validate(job["model"])
    torch.manual_seed(job["seed"])
    if settings.reads_features:
        views = range(settings.views + 1)
        table, stored = training_data.load(
            job["pairs"], job["features"], "train", job["shards"], views, settings.sources
        )
        if job["start"]:
            start = saved_model.load_for_features(job["start"])
            return start.model.requires_grad_(), start.tokenizer, table, stored
        tokenizer = Tokenizer.of(model.text)
        dual = DualEncoder(model, tokenizer, feature_width=stored.shape[-1])
        if settings.whiten_image_head:
            dual.whiten_image_head(stored[0])
        return dual, tokenizer, table, stored
    if job["start"]:
        start = saved_model.load(job["start"])
        dual, tokenizer = start.model.requires_grad_(), start.tokenizer
    else:
        tokenizer = Tokenizer.of(model.text)
        dual = DualEncoder(model, tokenizer, ImageEncoder(model.image))
    if dual.image is None:
        raise DataError(f"{job['start']} holds no image tower to run: set lock: all and store_features: true")
    dual.image.lock(settings.lock)
    tower = dual.settings.image
    return dual, tokenizer, *training_data.load_pictures(job["pairs"], "train", job["shards"], tower, settings)


def _publish(
    stage: Stage, checkpoint: Checkpoint, settings: Model, start: str | None
) -> tuple[list[Part], dict[str, Any]]:
    """Write the saved model, made of the trained weights and a locked image tower, and the history of the epochs.

    Measured times are written beside the history, in a file that is none of the parts.
    """
    if start:
        loaded = saved_model.load(start)
        tokenizer, tower = loaded.tokenizer, loaded.model.image
    else:
        tokenizer, tower = Tokenizer.of(settings.text), ImageEncoder(settings.image)
    model = DualEncoder(settings, tokenizer, tower, with_weights=False)
    with checkpoint.as_directory() as folder:
        state, history = checkpoints.load_weights(Path(folder))
    model.load_trained(state)
    files = [f"model/{file}" for file in saved_model.save(stage.path("model"), model, tokenizer)]
    epochs = history["history"]
    measured = [{name: epoch[name] for name in ("epoch", *MEASURED) if name in epoch} for epoch in epochs]
    history["history"] = [{name: value for name, value in epoch.items() if name not in MEASURED} for epoch in epochs]
    storage.write_json(stage.path("history.json"), history)
    storage.write_json(stage.path("measured.json"), measured)
    return [stage.describe(file) for file in [*files, "history.json"]], history
