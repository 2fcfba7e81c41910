"""The state of a training: where it is and what it has given so far, as a checkpoint stores it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from wukong.config.training import Training, Validating
from wukong.errors import DataError

MEASURED = ("pairs_per_second",)
"""Fields of ``Epoch`` that measure the machine: only these differ between two equal runs."""


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
class Validated:
    """The results of one validation.

    Attributes:
        step: number of steps taken so far in the run.
        metrics: values by their names, ``KIND/TASK/RESULT``.
        seconds: time for which training waited.
        best: the best value so far of the metric that decides; None if none decides.
    """

    step: int
    metrics: Mapping[str, float]
    seconds: float
    best: float | None = None


@dataclass
class Validations:
    """What the validations of a run have given so far.

    Attributes:
        best: the best value of the metric that decides; None before the first validation.
        step: step of the best value, the first of equal ones.
        checkpoint: URI of the checkpoint of that step, where the best model is kept.
        waited: number of validations since the best.
        stopped: true if they have ended the training.
        history: step and metrics of each.
    """

    best: float | None = None
    step: int = 0
    checkpoint: str = ""
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
        is_best = value > (-math.inf if self.best is None else self.best)
        self.waited = 0 if is_best else self.waited + 1
        self.stopped = 0 < settings.patience <= self.waited
        if is_best:
            self.best, self.step = value, step
        return is_best


@dataclass
class State:
    """The state of a run, the progress of its checkpoints.

    Dropout and masking need no state: their seed depends on the step.

    Attributes:
        data: digest of the data.
        pairs: number of pairs.
        epoch: number of the epoch, 0 for the first.
        sample: number of samples of the epoch that were seen.
        total: sum of the losses of the steps of this epoch.
        seconds: time that the steps of this epoch took.
        broken: number of pictures that could not be decoded.
        lost: numbers of the shards that could not be read.
        history: the epochs that have ended.
        validations: what the validations have given.
        scaler: the state of what scales the loss in float16; empty in another precision.
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
    scaler: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, progress: Mapping[str, Any]) -> "State":
        """Return the state that a checkpoint's progress holds."""
        return cls(**{**progress, "validations": Validations(**progress["validations"])})

    def restored(self, progress: Mapping[str, Any], uri: str) -> "State":
        """Return the state that a checkpoint holds, which must be of the data of this one.

        Raises:
            DataError: the checkpoint is of other data.
        """
        stored = State.of(progress)
        if (stored.data, stored.pairs) != (self.data, self.pairs):
            raise DataError(
                f"the checkpoint {uri} is of {stored.pairs} pairs with the digest {stored.data[:16]}, and the data has "
                f"{self.pairs} with {self.data[:16]}: delete it and train again"
            )
        return stored

    def count(self, broken: int, lost: set[int], step: int, settings: Training) -> None:
        """Count pictures and shards that could not be read up to a step, by all workers.

        Raises:
            DataError: they are more than the settings allow.
        """
        self.broken += broken
        if self.broken > settings.max_broken_pictures:
            raise DataError(
                f"{self.broken} pictures could not be decoded up to step {step}, and max_broken_pictures is "
                f"{settings.max_broken_pictures}: the log names them; mend the shards or raise it"
            )
        self.lost = sorted(lost.union(self.lost))
        if len(self.lost) > settings.max_lost_shards:
            raise DataError(
                f"{len(self.lost)} shards could not be read up to step {step}, and max_lost_shards is "
                f"{settings.max_lost_shards}: the workers' logs name them; put them back or raise it"
            )

    @property
    def epochs(self) -> list[Epoch]:
        """The results of the epochs that have ended."""
        return [Epoch(**entry) for entry in self.history]
