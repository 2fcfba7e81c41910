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
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import asdict, replace
from typing import TypeAlias

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from wukong.config.training import Training
from wukong.errors import ConfigError
from wukong.model.dual import DualEncoder
from wukong.model.loss import world
from wukong.runtime import events, progress
from wukong.runtime.events import Measured
from wukong.runtime.language import _
from wukong.train import checkpoint, gradients, looks, optimizer
from wukong.train.batches import Batch, onto
from wukong.train.looks import Look, Recent
from wukong.train.pairs import Pairs
from wukong.train.shares import Shares
from wukong.train.state import Epoch, State, Validated

Validate: TypeAlias = Callable[[DualEncoder], Mapping[str, float]]
"""Measures a model that is in evaluation mode: called on every worker, returns the same metrics on each."""

log = logging.getLogger(__name__)


def _ignore(_: object) -> None:
    """Report nothing."""


def train(
    model: DualEncoder,
    pairs: Pairs,
    settings: Training,
    seed: int,
    after_epoch: Callable[[Epoch], None] = _ignore,
    after_look: Callable[[Look], None] = _ignore,
    checkpoints: checkpoint.Writer | None = None,
    resume: str | None = None,
    validate: Validate | None = None,
    after_validation: Callable[[Validated], None] = _ignore,
) -> list[Epoch]:
    """Train a model in place, and return the results of all epochs.

    The same model, pairs, settings, seed and number of workers give the same weights on a CPU, byte for byte, also if
    the run was interrupted at any step and resumed, and with and without validation. With ``validation.keep: best`` the
    model has the last weights; the best are in the checkpoint that ``Validations`` names.

    Args:
        model: the model to train, on its device, with equal weights on every worker; locked layers stay locked. On a
            GPU an image tower that is locked as a whole takes its form for inference, and cannot be saved afterwards.
        pairs: the training data, equal on every worker; each worker takes its share of every batch.
        settings: settings of the training.
        seed: seed of the order of the pairs, the choice among stored views and dropout.
        after_epoch: function that gets the results of each epoch, on every worker.
        after_look: function that gets what was measured at each look, on every worker.
        checkpoints: writer of the checkpoints, used on the first worker, with ``shard_optimizer`` on each; None for
            none.
        resume: URI of a checkpoint from which to continue, the same on every worker.
        validate: function that measures the model; None for no validation.
        after_validation: function that gets what was measured, on the first worker.

    Raises:
        ConfigError: the number of workers does not divide the batch size, or there are fewer pairs than a batch holds.
        DataError: a feature, the loss or a weight is not finite, too many pictures are broken or shards lost, or the
            checkpoint is of other data; the message names what, and the step.
    """
    run = _Run(model, pairs, settings, seed, checkpoints, validate)
    if resume is not None:
        run.resume(resume)
    if run.state.validations.stopped:
        return run.state.epochs
    run.begin()
    with run.batches() as batches, run.progress() as advance:
        while not run.has_ended:
            run.step(batches)
            advance(settings.batch_size)
            if run.is_look_due:
                after_look(look := run.look())
                is_best = run.is_validation_due and run.validate(after_validation)
                if run.has_epoch_ended:
                    after_epoch(run.end_epoch(look))
                run.store(is_best=is_best)
    run.finish()
    return run.state.epochs


class _Run:
    """A run of ``train``: what its steps share.

    Attributes:
        state: the state that a checkpoint stores.
        first: number of steps that were taken before this run was started or resumed.
        taken: number of steps taken so far.
        last: number of steps of the whole run.
        recent: what the steps since the last look gave.
        looked: time of the last look, by the monotonic clock.
        stored: time of the last checkpoint.
        validating: seconds that validations took.
    """

    def __init__(
        self,
        model: DualEncoder,
        pairs: Pairs,
        settings: Training,
        seed: int,
        checkpoints: checkpoint.Writer | None,
        measure: Validate | None,
    ) -> None:
        self.rank, self.workers = world()
        size = settings.batch_size
        if size % self.workers:
            raise ConfigError(
                f"a batch of {size} pairs cannot be divided between {self.workers} workers: change batch_size"
            )
        self.epoch_steps, left_out = divmod(len(pairs), size)
        if not self.epoch_steps:
            raise ConfigError(f"batch_size {size} is more than there are pairs ({len(pairs)}): lower it")
        if not self.rank and left_out:
            log.info(
                "each epoch leaves out %d of %d pairs, which do not fill a batch of %d", left_out, len(pairs), size
            )
        self.model, self.pairs, self.settings, self.seed, self.measure = model, pairs, settings, seed, measure
        self.device = model.log_scale.device
        self.replica: nn.Module = model
        self.optimiser = optimizer.build(model, settings)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=settings.precision == "float16")
        self.shares = Shares(self.optimiser) if settings.shard_optimizer and self.workers > 1 else None
        self.checkpoints = None if self.rank and self.shares is None else checkpoints
        self.state = State(pairs.digest, len(pairs))
        self.first = self.taken = 0
        self.last = self.epoch_steps * settings.epochs
        self.validating = 0.0

    def resume(self, uri: str) -> None:
        """Take up the weights and the state of a checkpoint."""
        own = None if self.shares is None else self.shares.own
        self.state = self.state.restored(checkpoint.load(uri, self.model, self.optimiser, own), uri)
        if self.scaler.is_enabled() and self.state.scaler:
            self.scaler.load_state_dict(self.state.scaler)
        seen, epoch, epochs = self.state.sample, self.state.epoch, self.settings.epochs
        log.info("continuing after %d pairs of epoch %d of %d", seen, epoch + 1, epochs)
        self.first = self.taken = epoch * self.epoch_steps + seen // self.settings.batch_size

    def begin(self) -> None:
        """Put the model into training mode, on all workers together."""
        tower = self.model.image
        if tower is not None and tower.is_locked and self.device.type != "cpu":
            tower.for_inference(gradients.half(self.settings.precision))
        if self.workers > 1:
            if tower is not None:
                tower.synchronise_batch_norm()
            # An image tower that is trained may have layers that this similarity does not use.
            trains_tower = tower is not None and not tower.is_locked
            self.replica = DistributedDataParallel(
                self.model,
                find_unused_parameters=trains_tower,
                gradient_as_bucket_view=True,
            )
            # Only batch norms that are trained change buffers. On GPUs their statistics are equal on all workers.
            self.replica.broadcast_buffers = trains_tower and self.device.type == "cpu"
        self.model.train()
        if not self.rank:
            log.info("training on %d workers, step %d to %d", self.workers, self.first + 1, self.last)
            if self.shares is not None:
                own, every = self.shares.size
                log.info(
                    "this worker keeps the optimiser's state of %s of %s trained numbers", f"{own:,}", f"{every:,}"
                )
        self.looked = self.stored = time.monotonic()
        self.recent = Recent(self.looked)

    def batches(self) -> closing[Generator[Batch]]:
        """Read this worker's share of the batches ahead and onto its device, until the block ends."""
        size, text = self.settings.batch_size, self.model.text
        batches = self.pairs.batches(size, self.seed, self.first, self.rank, self.workers, self.last)
        return closing(onto(self.device, batches, text.padding, text.positions.num_embeddings))

    def progress(self) -> AbstractContextManager[Callable[[int], None]]:
        """Report the pairs that the block counts; the first worker does so for all."""
        if self.rank:
            return nullcontext(_ignore)
        return progress.track(_("training"), (self.last - self.first) * self.settings.batch_size, _("pairs"))

    @property
    def has_ended(self) -> bool:
        """Whether no step is left, or validation has stopped the training."""
        return self.taken >= self.last or self.state.validations.stopped

    @property
    def has_epoch_ended(self) -> bool:
        """Whether the last step ended its epoch, which early stopping does too."""
        return self._is_every(self.epoch_steps) or self.state.validations.stopped

    @property
    def is_validation_due(self) -> bool:
        """Whether the model is measured after this step."""
        asked = self.settings.validation.every_steps if self.measure is not None else 0
        every = self.epoch_steps if asked == "epoch" else asked
        return self._is_every(every) or (every > 0 and self.taken == self.last)

    @property
    def is_look_due(self) -> bool:
        """Whether there is a look after this step: every few steps, and before whatever needs its results."""
        every = (self.epoch_steps, self.settings.checkpoint.steps, self.settings.log_every)
        return self.is_validation_due or any(map(self._is_every, every))

    @property
    def epoch(self) -> int:
        """Number of the epoch of the last step, 1 for the first."""
        return math.ceil(self.taken / self.epoch_steps)

    def step(self, batches: Iterator[Batch]) -> None:
        """Move the weights by the gradient of the next batch."""
        if self.checkpoints is not None and self.taken == self.first + 1:
            self.checkpoints.prepare(self.model, self.optimiser)
        began = time.monotonic()
        batch = next(batches)
        self.recent.add(batch, time.monotonic() - began)
        torch.manual_seed((self.seed * 1_000_003 + self.taken) * self.workers + self.rank)
        for group in self.optimiser.param_groups:
            group["lr"] = optimizer.learning_rate(self.taken, self.last, self.settings) * group.get("rate", 1.0)
        self.optimiser.zero_grad()
        scaling = (self.scaler, self.optimiser)
        self.recent.losses.append(gradients.backward(self.model, self.replica, batch, self.settings, scaling))
        with nullcontext() if self.shares is None else self.shares.moved():
            self.scaler.step(self.optimiser)
        self.scaler.update()
        self.model.clamp_temperature()
        self.taken += 1

    def look(self) -> Look:
        """Exchange, check and count what the steps since the last look gave."""
        recent, state, size = self.recent, self.state, self.settings.batch_size
        losses, broken, lost = recent.joined(len(self.pairs.rows))
        looks.check(self.model, losses, self.taken, self.epoch)
        state.count(broken, lost, self.taken, self.settings)
        state.epoch, steps = divmod(self.taken, self.epoch_steps)
        state.sample = steps * size
        for loss in losses:  # one by one, so that the sum does not depend on where the looks were
            state.total += loss
        self.looked = time.monotonic()
        seconds = self.looked - recent.began
        state.seconds += seconds
        speed = len(losses) * size / max(seconds, 1e-9)
        self.recent = Recent(self.looked)
        return Look(
            step=self.taken,
            loss=math.fsum(losses) / len(losses),
            temperature=1 / self.model.scale.item(),
            learning_rate=self.optimiser.param_groups[0]["lr"],
            gradient_norm=gradients.norm(self.model).item(),
            samples_per_second=speed,
            waiting_share=recent.waited / max(seconds, 1e-9),
            checkpoint_seconds=self.checkpoints.seconds if self.checkpoints else 0.0,
            validation_seconds=self.validating,
            memory_gib=looks.memory_gib(self.device),
            broken_pictures=state.broken,
            lost_shards=len(state.lost),
            seconds_left=(self.last - self.taken) * size / speed,
        )

    def validate(self, report: Callable[[Validated], None]) -> bool:
        """Measure the model, and report it on the first worker; return whether it is the best so far."""
        assert self.measure is not None  # noqa: S101 - for mypy
        self.model.eval()
        validated = Validated(self.taken, self.measure(self.model), time.monotonic() - self.looked)
        self.model.train()
        is_best = self.state.validations.judge(self.taken, validated.metrics, self.settings.validation)
        validated = replace(validated, best=self.state.validations.best)
        self.validating += validated.seconds
        self.recent.began = time.monotonic()
        if not self.rank:
            self._log_validation(validated)
            report(validated)
        return is_best

    def end_epoch(self, look: Look) -> Epoch:
        """Add the results of an epoch to the history, and begin the next."""
        state, steps = self.state, self.taken % self.epoch_steps or self.epoch_steps
        speed = steps * self.settings.batch_size / max(state.seconds, 1e-9)
        ended = Epoch(self.epoch, state.total / steps, look.temperature, look.learning_rate, speed)
        state.history.append(asdict(ended))
        if not self.rank:
            events.write(Measured(name="loss", value=ended.loss))
        state.total = state.seconds = 0.0
        return ended

    def store(self, *, is_best: bool) -> None:
        """Store a checkpoint, if one is needed, or if one is due and not too soon: the first worker decides."""
        if self.checkpoints is None:
            return
        self.checkpoints.complete()
        asked, passed = self.settings.checkpoint, self.looked - self.stored
        is_late = 0 < 60 * asked.minutes <= passed
        is_due = is_late or self._is_every(asked.steps) or self._is_every(self.epoch_steps)
        by_share = min(self.checkpoints.writing / asked.most_share, 60 * asked.minutes or math.inf)
        is_soon = passed < max(asked.least_seconds, by_share)
        is_kept = is_best and self.settings.validation.keep == "best"
        is_wanted = is_kept or self.has_ended or (is_due and not is_soon and not self.checkpoints.busy)
        uri, validations = self.checkpoints.place(self.taken) if is_wanted else "", self.state.validations
        if self.shares is not None:
            uri = checkpoint.agreed(uri, self.device)
        if uri:
            self.state.scaler = self.scaler.state_dict()
            validations.checkpoint = uri if is_kept else validations.checkpoint
            self.checkpoints.save(
                self.model,
                self.optimiser,
                self.taken,
                asdict(self.state),
                uri,
                validations.checkpoint,
                shared=self.shares is not None,
            )
            self.stored = time.monotonic()

    def finish(self) -> None:
        """Wait until the last checkpoint is complete."""
        if self.checkpoints is not None:
            self.checkpoints.wait()

    def _is_every(self, steps: int) -> bool:
        """Whether the last step is one of every ``steps`` steps; 0 for none."""
        return steps > 0 and self.taken % steps == 0

    def _log_validation(self, validated: Validated) -> None:
        settings, given = self.settings.validation, self.state.validations
        decides = {settings.metric} if settings.decides else set(validated.metrics)
        shown = [f"{name} {value:.4f}" for name, value in validated.metrics.items() if name in decides]
        values = ", ".join(shown) or "nothing could be measured yet"
        for name in sorted(decides & validated.metrics.keys()):
            events.write(Measured(name=name, value=validated.metrics[name], best=given.best))
        best = f"; the best is {given.best:.4f} of step {given.step}" if given.best is not None else ""
        log.info("validation after step %d, %.2f s: %s%s", validated.step, validated.seconds, values, best)
        if given.stopped:
            log.info("training ends early: %s was not better in %d validations", settings.metric, given.waited)
