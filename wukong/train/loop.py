"""The training loop: contrastive training of a dual encoder on one worker or several (sections 4.3, 4.4 and 5.1).

It uses only ``torch.distributed``. The caller starts the workers and initialises the process group; for one worker
there is none.
"""

import logging
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from wukong import progress
from wukong.config import Training
from wukong.errors import ConfigError, DataError
from wukong.model.dual import DualEncoder
from wukong.model.loss import world
from wukong.train import checkpoint, gradients, optimizer
from wukong.train.training_data import Batch, Pairs

MEASURED = ("pairs_per_second",)
"""Fields of ``Epoch`` that measure the machine: only these differ between two equal runs."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Epoch:
    """The results of one epoch.

    Attributes:
        epoch: number of the epoch, 1 for the first.
        loss: mean loss over the steps and workers.
        temperature: temperature at the end of the epoch.
        learning_rate: learning rate of the last step.
        pairs_per_second: speed of all workers together.
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
    """Train a model in place.

    The same model, pairs, settings, seed and number of workers give the same weights, also if the run was interrupted
    and resumed.

    Args:
        model: the model to train, on the device to train on, with equal weights on every worker. Layers of the image
            tower that are locked stay locked.
        pairs: the training data, equal on every worker; each worker takes its share of every batch.
        settings: settings of the training.
        seed: seed of the order of the pairs, the views and dropout.
        after_epoch: called on every worker with the results of the epoch and with a function that writes a checkpoint
            into a folder.
        resume: folder of a checkpoint from which to continue.

    Returns:
        The results of all epochs.

    Raises:
        ConfigError: the number of workers does not divide the batch size, or there are fewer pairs than a batch holds.
        DataError: a feature, the loss or a weight is not finite; the message names it and the step.
    """
    rank, workers = world()
    size = settings.batch_size
    if size % workers:
        raise ConfigError(f"a batch of {size} pairs cannot be divided between {workers} workers: change batch_size")
    steps_an_epoch = len(pairs) // size
    if not steps_an_epoch:
        raise ConfigError(f"batch_size {size} is more than there are pairs ({len(pairs)}): lower it")
    steps = steps_an_epoch * settings.epochs

    optimiser = optimizer.build(model, settings)
    history: list[Epoch] = []
    if resume is not None:
        history = [Epoch(**entry) for entry in checkpoint.load(resume, model, optimiser)["history"]]
        log.info("continuing after epoch %d of %d", len(history), settings.epochs)
    replica: nn.Module = model
    if workers > 1:
        # An image tower may have layers that this similarity does not use.
        replica = DistributedDataParallel(model, find_unused_parameters=model.image is not None)

    remaining = steps_an_epoch * size * (settings.epochs - len(history))
    with nullcontext(_ignore) if rank else progress.track("training", remaining, "pairs") as advance:
        for epoch in range(len(history), settings.epochs):
            started = time.monotonic()
            torch.manual_seed((seed * 1_000_003 + epoch) * workers + rank)
            model.train()
            total = torch.zeros((), device=model.log_scale.device)
            for step, pairs_of_step in enumerate(
                pairs.batches(size, seed, epoch, rank, workers), epoch * steps_an_epoch
            ):
                batch = pairs_of_step
                _check_features(batch, pairs, step, epoch)
                for group in optimiser.param_groups:
                    group["lr"] = optimizer.learning_rate(step, steps, settings) * group.get("rate", 1.0)
                if settings.token_dropout:
                    batch = replace(batch, ids=pairs.mask_tokens(batch.ids, settings.token_dropout))
                optimiser.zero_grad()
                loss = gradients.backward(model, replica, batch, settings)
                if not torch.isfinite(loss):
                    raise DataError(_explanation(model, loss.item(), step, epoch))
                optimiser.step()
                model.clamp_temperature()
                total += loss
                advance(size)
            if workers > 1:
                dist.all_reduce(total)
                total /= workers
            if broken := _broken_weights(model):
                raise DataError(f"{broken} after epoch {epoch + 1}: lower the learning rate")
            history.append(
                Epoch(
                    epoch=epoch + 1,
                    loss=total.item() / steps_an_epoch,
                    temperature=1 / model.scale.item(),
                    learning_rate=optimiser.param_groups[0]["lr"],
                    pairs_per_second=steps_an_epoch * size / (time.monotonic() - started),
                )
            )
            state = {"history": [asdict(entry) for entry in history], "pairs": len(pairs)}
            after_epoch(history[-1], partial(checkpoint.save, model=model, optimizer=optimiser, progress=state))
    return history


def _ignore(_count: int) -> None:
    """Report no progress: only the first worker reports it, for all."""


def _check_features(batch: Batch, pairs: Pairs, step: int, epoch: int) -> None:
    if batch.features.is_floating_point() and not torch.isfinite(batch.features).all():
        place = int((~torch.isfinite(batch.features)).flatten(1).any(1).nonzero()[0])
        caption = pairs.captions[int(batch.rows[place])]
        raise DataError(
            f"the image features of the pair with the caption {caption!r} are not finite, in step {step + 1} "
            f"(epoch {epoch + 1}): delete the output of the features stage and run again"
        )


def _explanation(model: DualEncoder, loss: float, step: int, epoch: int) -> str:
    """Explain why a loss is not finite: some weights are not finite, or the temperature is too low."""
    where = f"the loss is {loss} in step {step + 1} (epoch {epoch + 1})"
    if broken := _broken_weights(model):
        return f"{where}: {broken} after the step before; lower the learning rate"
    temperature = (1 / model.scale).item()
    return f"{where} though all weights are finite, at a temperature of {temperature:.3g}: raise min_temperature"


def _broken_weights(model: nn.Module) -> str:
    """Name the parameters with values that are not finite; an empty string if there are none."""
    names = [name for name, value in model.named_parameters() if not torch.isfinite(value).all()]
    return f"the weights {', '.join(names[:3])}{', …' if names[3:] else ''} are not finite" if names else ""
