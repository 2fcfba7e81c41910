"""The training loop: contrastive training of a dual encoder on one worker or several (sections 4.3, 4.4 and 5.1).

It uses only ``torch.distributed``. The caller starts the workers and initialises the process group; for one worker
there is none.

Every ``log_every`` steps, and where an epoch or a checkpoint ends, all workers look at what the steps since then gave:
they exchange their losses, check them and the weights, and report. Between two looks nothing waits for a GPU.

Every ``validation.every_steps`` steps, and after the last, the caller's evaluators measure the model. That changes
neither the weights nor the order of the pairs, and each step seeds its own random numbers. What validation has found so
far is part of a checkpoint.
"""

import logging
import math
import resource
import time
from collections.abc import Callable, Mapping
from contextlib import closing, nullcontext
from dataclasses import asdict, dataclass, field, replace
from typing import Any, TypeAlias

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from wukong.config.training import Training, Validating
from wukong.errors import ConfigError, DataError
from wukong.model.dual import DualEncoder
from wukong.model.loss import world
from wukong.runtime import progress
from wukong.train import checkpoint, gradients, optimizer
from wukong.train.pairs import Pairs

MEASURED = ("pairs_per_second",)
"""Fields of ``Epoch`` that measure the machine: only these differ between two equal runs."""

Validate: TypeAlias = Callable[[DualEncoder], Mapping[str, float]]
"""Measures a model that is in evaluation mode: called on every worker, returns the same metrics on each."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Epoch:
    """The results of one epoch; early stopping may end the last one before its end.

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


@dataclass(frozen=True)
class Look:
    """What was measured in the steps since the last look. Shares, times and memory are those of this worker.

    Attributes:
        step: number of steps taken so far in the run.
        loss: mean loss of the steps, over all workers.
        temperature: after the last step.
        learning_rate: of the last step.
        gradient_norm: of the last step, over all trained weights, after clipping; the gradient of the whole batch.
        samples_per_second: pairs a second, of all workers together.
        waiting_share: share of the time in which training waited for data.
        checkpoint_seconds: seconds for which checkpoints have stopped training, since the run was started or resumed.
        validation_seconds: the same of validations.
        memory_gib: largest memory of the process so far, in GiB; on a GPU, that of the GPU.
        broken_pictures: pictures that could not be decoded, in the whole run.
        lost_shards: shards that could not be read, in the whole run and by all workers, each counted once.
        seconds_left: until the last step, at this speed.
    """

    step: int
    loss: float
    temperature: float
    learning_rate: float
    gradient_norm: float
    samples_per_second: float
    waiting_share: float
    checkpoint_seconds: float
    validation_seconds: float
    memory_gib: float
    broken_pictures: int
    lost_shards: int
    seconds_left: float


@dataclass(frozen=True)
class Validated:
    """What a validation has measured.

    Attributes:
        step: number of steps taken so far in the run.
        metrics: by name, ``KIND/TASK/RESULT``.
        seconds: for which training waited.
    """

    step: int
    metrics: Mapping[str, float]
    seconds: float


@dataclass
class Validations:
    """What the validations of a run have found so far, as a checkpoint stores it.

    Attributes:
        best: the best value of the metric that decides; None before the first validation.
        step: of the best value, the first of equal ones.
        checkpoint: URI of the checkpoint of that step, where the best model is kept.
        goal: the value that the next ones must exceed by ``min_delta`` to count for ``patience``.
        waited: number of validations since one has counted.
        stopped: whether training has ended because of them.
        history: step and metrics of each.
    """

    best: float | None = None
    step: int = 0
    checkpoint: str = ""
    goal: float | None = None
    waited: int = 0
    stopped: bool = False
    history: list[dict[str, Any]] = field(default_factory=list)

    def judge(self, step: int, metrics: Mapping[str, float], settings: Validating) -> bool:
        """Take up what a validation has measured; return whether the model is the best so far.

        A model that cannot be measured yet, because it tells nothing apart, is worse than any other.

        Raises:
            DataError: its task was measured, and the metric that decides is none of the results, or is not a number.
        """
        self.history.append({"step": step, "metrics": dict(metrics)})
        if not settings.decides:
            return False
        value = metrics.get(settings.metric, -math.inf)
        if math.isnan(value):
            raise DataError(f"validation.metric {settings.metric!r} is not a number after step {step}")
        task = settings.metric.rpartition("/")[0]
        if value == -math.inf and (others := sorted(name for name in metrics if name.startswith(f"{task}/"))):
            raise DataError(
                f"validation.metric is {settings.metric!r}, and step {step} measured {', '.join(others)}: take one of "
                "them"
            )
        counts = value > (-math.inf if self.goal is None else self.goal + settings.min_delta)
        self.goal, self.waited = (value, 0) if counts else (self.goal, self.waited + 1)
        self.stopped = 0 < settings.patience <= self.waited
        is_best = value > (-math.inf if self.best is None else self.best)
        if is_best:
            self.best, self.step = value, step
        return is_best


@dataclass
class _State:
    """Where a run is, as a checkpoint stores it. Dropout and masking need no state: their seed depends on the step.

    Attributes:
        epoch: number of the epoch, 0 for the first.
        sample: number of samples of the epoch that were seen.
        data: digest of the data.
        pairs: number of pairs.
        total: sum of the losses of the steps of this epoch.
        seconds: that the steps of this epoch took.
        broken: pictures that could not be decoded.
        lost: numbers of the shards that could not be read.
        history: the epochs that have ended.
        validations: what they have found.
    """

    data: str
    pairs: int
    epoch: int = 0
    sample: int = 0
    total: float = 0.0
    seconds: float = 0.0
    broken: int = 0
    lost: list[int] = field(default_factory=list)
    history: list[dict[str, Any]] = field(default_factory=list)
    validations: Validations = field(default_factory=Validations)


def train(
    model: DualEncoder,
    pairs: Pairs,
    settings: Training,
    seed: int,
    after_epoch: Callable[[Epoch], None] | None = None,
    after_look: Callable[[Look], None] | None = None,
    checkpoints: checkpoint.Writer | None = None,
    resume: str | None = None,
    validate: Validate | None = None,
    after_validation: Callable[[Validated], None] | None = None,
) -> list[Epoch]:
    """Train a model in place.

    The same model, pairs, settings, seed and number of workers give the same weights on a CPU, byte for byte, also if
    the run was interrupted at any step and resumed, and with and without validation. With ``validation.keep: best`` the
    model has the last weights; the best are in the checkpoint that ``Validations`` names.

    Args:
        model: the model to train, on the device to train on, with equal weights on every worker. Layers of the image
            tower that are locked stay locked.
        pairs: the training data, equal on every worker; each worker takes its share of every batch.
        settings: settings of the training.
        seed: seed of the order of the pairs, the choice among stored views and dropout.
        after_epoch: called on every worker with the results of an epoch.
        after_look: called on every worker with what was measured.
        checkpoints: writes checkpoints, on the first worker; None for none.
        resume: URI of a checkpoint from which to continue, the same on every worker.
        validate: measures the model as ``settings.validation`` says; None for no validation.
        after_validation: called on the first worker with what was measured.

    Returns:
        The results of all epochs.

    Raises:
        ConfigError: the number of workers does not divide the batch size, or there are fewer pairs than a batch holds.
        DataError: a feature, the loss or a weight is not finite, too many pictures are broken or shards lost, or the
            checkpoint is of other data; the message names what, and the step.
    """
    rank, workers = world()
    size, device = settings.batch_size, model.log_scale.device
    if size % workers:
        raise ConfigError(f"a batch of {size} pairs cannot be divided between {workers} workers: change batch_size")
    steps_an_epoch, left_out = divmod(len(pairs), size)
    if not steps_an_epoch:
        raise ConfigError(f"batch_size {size} is more than there are pairs ({len(pairs)}): lower it")
    steps = steps_an_epoch * settings.epochs
    if not rank and left_out:
        log.info("each epoch leaves out %d of %d pairs, which do not fill a batch of %d", left_out, len(pairs), size)

    optimiser = optimizer.build(model, settings)
    state = _State(pairs.digest, len(pairs))
    if resume is not None:
        state = _resumed(checkpoint.load(resume, model, optimiser), state, resume)
        log.info("continuing after %d pairs of epoch %d of %d", state.sample, state.epoch + 1, settings.epochs)
    if state.validations.stopped:
        return [Epoch(**entry) for entry in state.history]
    first = state.epoch * steps_an_epoch + state.sample // size
    replica: nn.Module = model
    if workers > 1:
        if model.image is not None:
            model.image.synchronise_batch_norm()
        # An image tower that is trained may have layers that this similarity does not use.
        trains_tower = model.image is not None and not model.image.is_locked
        replica = DistributedDataParallel(model, find_unused_parameters=trains_tower)
    model.train()
    if not rank:
        log.info("training on %d workers, step %d to %d", workers, first + 1, steps)

    losses: list[Tensor] = []
    broken, lost, waited, validating = 0, set[int](), 0.0, 0.0
    looked, stored = time.monotonic(), time.monotonic()
    tracked = nullcontext(_ignore) if rank else progress.track("training", (steps - first) * size, "pairs")
    with closing(pairs.batches(size, seed, first, rank, workers, steps)) as batches, tracked as advance:
        for step in range(first, steps):
            if step == first + 1 and checkpoints is not None and not rank:
                checkpoints.prepare(model, optimiser)
            began = time.monotonic()
            batch = next(batches).to(device)
            waited += time.monotonic() - began
            broken += batch.broken
            lost |= batch.lost
            torch.manual_seed((seed * 1_000_003 + step) * workers + rank)
            if settings.token_dropout:
                batch = replace(batch, ids=pairs.mask_tokens(batch.ids, settings.token_dropout))
            for group in optimiser.param_groups:
                group["lr"] = optimizer.learning_rate(step, steps, settings) * group.get("rate", 1.0)
            optimiser.zero_grad()
            losses.append(gradients.backward(model, replica, batch, settings))

            epoch, place = divmod(step + 1, steps_an_epoch)
            due = settings.checkpoint.steps and (step + 1) % settings.checkpoint.steps == 0
            every = settings.validation.every_steps if validate is not None else 0
            validated = every and ((step + 1) % every == 0 or step + 1 == steps)
            if place and not due and not validated and (step + 1) % settings.log_every:
                optimiser.step()
                model.clamp_temperature()
                advance(size)
                continue

            norm = nn.utils.get_total_norm(weight.grad for weight in model.parameters() if weight.grad is not None)
            optimiser.step()
            model.clamp_temperature()
            advance(size)
            joined, newly_broken, newly_lost = _joined(losses, broken, lost, len(pairs.rows))
            _check(model, joined, step, epoch if not place else epoch + 1)
            state.broken += newly_broken
            if state.broken > settings.max_broken_pictures:
                raise DataError(
                    f"{state.broken} pictures could not be decoded up to step {step + 1}, and max_broken_pictures is "
                    f"{settings.max_broken_pictures}: the log names them; mend the shards or raise it"
                )
            state.lost = sorted(newly_lost.union(state.lost))
            if len(state.lost) > settings.max_lost_shards:
                raise DataError(
                    f"{len(state.lost)} shards could not be read up to step {step + 1}, and max_lost_shards is "
                    f"{settings.max_lost_shards}: the workers' logs name them; put them back or raise it"
                )
            state.epoch, state.sample = epoch, place * size
            for loss in joined:  # one by one, so that the sum does not depend on where the looks were
                state.total += loss
            now = time.monotonic()
            state.seconds += now - looked
            rate = len(losses) * size / max(now - looked, 1e-9)
            temperature, lr = 1 / model.scale.item(), optimiser.param_groups[0]["lr"]
            if after_look is not None:
                after_look(
                    Look(
                        step=step + 1,
                        loss=math.fsum(joined) / len(joined),
                        temperature=temperature,
                        learning_rate=lr,
                        gradient_norm=norm.item(),
                        samples_per_second=rate,
                        waiting_share=waited / max(now - looked, 1e-9),
                        checkpoint_seconds=checkpoints.seconds if checkpoints else 0.0,
                        validation_seconds=validating,
                        memory_gib=_memory(device),
                        broken_pictures=state.broken,
                        lost_shards=len(state.lost),
                        seconds_left=(steps - step - 1) * size / rate,
                    )
                )
            losses, broken, lost, waited, looked = [], 0, set(), 0.0, now
            found, is_best = state.validations, False
            if validated and validate is not None:
                model.eval()
                measured = Validated(step + 1, validate(model), time.monotonic() - now)
                model.train()
                is_best = found.judge(step + 1, measured.metrics, settings.validation)
                validating += measured.seconds
                looked = time.monotonic()
                if not rank:
                    _log_validation(measured, found, settings.validation)
                    if after_validation is not None:
                        after_validation(measured)
            if not place or found.stopped:
                taken = place or steps_an_epoch
                speed = taken * size / max(state.seconds, 1e-9)
                ended = Epoch(epoch + bool(place), state.total / taken, temperature, lr, speed)
                state.history.append(asdict(ended))
                state.total = state.seconds = 0.0
                if after_epoch is not None:
                    after_epoch(ended)
            if checkpoints is not None and not rank:
                asked = settings.checkpoint
                late = asked.minutes and now - stored >= 60 * asked.minutes
                by_share = min(checkpoints.writing / asked.most_share, 60 * asked.minutes or math.inf)
                soon = now - stored < max(asked.least_seconds, by_share)
                kept = is_best and settings.validation.keep == "best"
                needed = kept or found.stopped or step + 1 == steps
                if needed or ((due or late or not place) and not soon and not checkpoints.busy):
                    uri = checkpoints.place(step + 1)
                    found.checkpoint = uri if kept else found.checkpoint
                    checkpoints.save(model, optimiser, step + 1, asdict(state), uri, found.checkpoint)
                    stored = time.monotonic()
            if found.stopped:
                break
    if checkpoints is not None and not rank:
        checkpoints.wait()
    return [Epoch(**entry) for entry in state.history]


def _ignore(_count: int) -> None:
    """Report no progress: only the first worker reports it, for all."""


def _log_validation(measured: Validated, found: Validations, settings: Validating) -> None:
    decides = {settings.metric} if settings.decides else set(measured.metrics)
    shown = [f"{name} {value:.4f}" for name, value in measured.metrics.items() if name in decides]
    values = ", ".join(shown) or "nothing could be measured yet"
    best = f"; the best is {found.best:.4f} of step {found.step}" if found.best is not None else ""
    log.info("validation after step %d, %.2f s: %s%s", measured.step, measured.seconds, values, best)
    if found.stopped:
        log.info(
            "training ends early: %s was not better by more than %g in %d validations",
            settings.metric,
            settings.min_delta,
            found.waited,
        )


def _resumed(stored: dict[str, Any], state: _State, where: str) -> _State:
    """Return the state of a checkpoint, which must be of the same data."""
    resumed = _State(**{**stored, "validations": Validations(**stored.get("validations", {}))})
    if (resumed.data, resumed.pairs) != (state.data, state.pairs):
        raise DataError(
            f"the checkpoint {where} is of {resumed.pairs} pairs with the digest {resumed.data[:16]}, and the data has "
            f"{state.pairs} with {state.data[:16]}: delete it and train again"
        )
    return resumed


def _joined(losses: list[Tensor], broken: int, lost: set[int], shards: int) -> tuple[list[float], int, set[int]]:
    """Return each step's mean loss over the workers, the sum of their broken pictures, and all of their lost shards."""
    device = losses[0].device
    counts = torch.tensor([float(broken), float(len(lost))], device=device)
    local = torch.cat([torch.stack(losses).double(), counts])
    workers = world()[1]
    if workers == 1:
        return local[:-2].tolist(), broken, lost
    parts = [torch.empty_like(local) for _ in range(workers)]
    dist.all_gather(parts, local)
    total = torch.stack(parts).sum(0)
    if total[-1]:
        mask = torch.zeros(shards, dtype=torch.uint8, device=device)
        mask[sorted(lost)] = 1
        dist.all_reduce(mask, dist.ReduceOp.MAX)
        lost = {*mask.nonzero().flatten().tolist()}
    return (total[:-2] / workers).tolist(), int(total[-2]), lost


def _check(model: DualEncoder, losses: list[float], step: int, epoch: int) -> None:
    """Check that the losses of the last steps, and the weights after them, are finite."""
    for number, loss in enumerate(losses, step + 1 - len(losses)):
        if not math.isfinite(loss):
            raise DataError(_explanation(model, loss, number, epoch - 1))
    if broken := _broken_weights(model):
        raise DataError(f"{broken} after step {step + 1} (epoch {epoch}): lower the learning rate")


def _memory(device: torch.device) -> float:
    """Return the largest memory so far in GiB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def _explanation(model: DualEncoder, loss: float, step: int, epoch: int) -> str:
    """Explain why a loss is not finite: some weights are not finite, or the temperature is too low."""
    where = f"the loss is {loss} in step {step + 1} (epoch {epoch + 1})"
    if broken := _broken_weights(model):
        return f"{where}: {broken} now; lower the learning rate"
    temperature = (1 / model.scale).item()
    return f"{where} though all weights are finite, at a temperature of {temperature:.3g}: raise min_temperature"


def _broken_weights(model: nn.Module) -> str:
    """Name the parameters with values that are not finite; an empty string if there are none."""
    names = [name for name, value in model.named_parameters() if not torch.isfinite(value).all()]
    return f"the weights {', '.join(names[:3])}{', …' if names[3:] else ''} are not finite" if names else ""
