"""The training loop: contrastive training of a dual encoder on one worker or several (sections 4.3, 4.4 and 5.1).

It knows ``torch.distributed`` and nothing else: whoever starts the workers initialises it, or does not for one worker.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from wukong.config import Training
from wukong.errors import ConfigError, DataError
from wukong.model.dual import DualEncoder
from wukong.model.loss import world
from wukong.train import checkpoint, optimizer
from wukong.train.data import Pairs

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Epoch:
    """How one epoch went.

    Attributes:
        epoch: 1 for the first.
        loss: mean over its steps and workers.
        temperature: at its end.
        learning_rate: of its last step.
        pairs_per_second: over all workers.
    """

    epoch: int
    loss: float
    temperature: float
    learning_rate: float
    pairs_per_second: float


def train(
    model: DualEncoder,
    pairs: Pairs,
    settings: Training,
    seed: int,
    after_epoch: Callable[[Epoch, Callable[[Path], None]], None],
    resume: Path | None = None,
) -> list[Epoch]:
    """Train a model in place and give the history.

    The same model, pairs, settings, seed and number of workers give the same weights, also when the run was cut short
    and resumed.

    Args:
        model: as it starts, equal on every worker.
        pairs: what to train on, equal on every worker; each takes its share of every batch.
        settings: the run.
        seed: of the order, the views and dropout.
        after_epoch: called on every worker with how the epoch went and a function that writes a checkpoint into a
            folder.
        resume: folder of a checkpoint to go on from.

    Raises:
        ConfigError: the batch cannot be divided between the workers, or holds more than all pairs.
        DataError: the loss is not finite.
    """
    rank, workers = world()
    size = settings.batch_size
    if size % workers:
        raise ConfigError(f"a batch of {size} pairs cannot be divided between {workers} workers: change batch_size")
    steps_an_epoch = len(pairs) // size
    if not steps_an_epoch:
        raise ConfigError(f"batch_size {size} is more than the {len(pairs)} pairs there are: lower it")
    steps = steps_an_epoch * settings.epochs

    optimiser = optimizer.build(model, settings)
    history: list[Epoch] = []
    if resume is not None:
        history = [Epoch(**entry) for entry in checkpoint.load(resume, model, optimiser)["history"]]
        log.info("going on after epoch %d of %d", len(history), settings.epochs)
    replica = DistributedDataParallel(model) if workers > 1 else model

    for epoch in range(len(history), settings.epochs):
        started = time.monotonic()
        torch.manual_seed((seed * 1_000_003 + epoch) * workers + rank)
        model.train()
        total = torch.zeros(())
        for step, batch in enumerate(pairs.batches(size, seed, epoch, rank, workers), epoch * steps_an_epoch):
            for group in optimiser.param_groups:
                group["lr"] = optimizer.learning_rate(step, steps, settings) * group.get("rate", 1.0)
            ids = pairs.mask_tokens(batch.ids, settings.token_dropout) if settings.token_dropout else batch.ids
            image, text, scale = replica(batch.features, ids)
            captions = batch.captions if settings.exclude_same_captions else None
            loss = model.loss(image, text, scale, captions, settings.label_smoothing)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            model.clamp_temperature()
            total += loss.detach()
        if workers > 1:
            dist.all_reduce(total)
            total /= workers
        if not torch.isfinite(total):
            raise DataError(
                f"the loss is {total.item()} in epoch {epoch + 1}: lower the learning rate, "
                "or look for damaged features"
            )
        history.append(
            Epoch(
                epoch=epoch + 1,
                loss=total.item() / steps_an_epoch,
                temperature=1 / model.scale.item(),
                learning_rate=optimiser.param_groups[0]["lr"],
                pairs_per_second=steps_an_epoch * size / (time.monotonic() - started),
            )
        )
        progress = {"history": [asdict(entry) for entry in history], "pairs": len(pairs)}
        after_epoch(history[-1], partial(checkpoint.save, model=model, optimizer=optimiser, progress=progress))
    return history
