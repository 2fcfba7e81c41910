"""A look at a training: what the steps since the last one gave, on all workers together.

Between two looks a step's loss stays on its GPU, so that nothing waits for it.
"""

import math
import resource
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor, nn

from wukong.errors import DataError
from wukong.model.dual import DualEncoder
from wukong.model.loss import world
from wukong.train.batches import Batch


@dataclass(frozen=True)
class Look:
    """What was measured in the steps since the last look. Shares, times and memory are those of this worker.

    Attributes:
        step: number of steps taken so far in the run.
        loss: mean loss of the steps, over all workers.
        temperature: temperature after the last step.
        learning_rate: learning rate of the last step.
        gradient_norm: norm of the whole batch's gradient in the last step, over all trained weights, after clipping.
        samples_per_second: pairs a second, of all workers together.
        waiting_share: share of the time in which training waited for data.
        checkpoint_seconds: seconds for which checkpoints have stopped training, since the run was started or resumed.
        validation_seconds: the same of validations.
        memory_gib: largest memory of the process so far, in GiB; on a GPU, that of the GPU.
        broken_pictures: pictures that could not be decoded, in the whole run.
        lost_shards: shards that could not be read, in the whole run and by all workers, each counted once.
        seconds_left: time until the last step, at this speed.
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


@dataclass
class Recent:
    """What the steps since the last look gave, on this worker.

    Attributes:
        began: time of the last look, or of the end of the validation behind it, by the monotonic clock.
        losses: loss of each step, a scalar on the model's device.
        broken: number of pictures that could not be decoded.
        lost: numbers of the shards that could not be read.
        waited: seconds for which training waited for data.
    """

    began: float
    losses: list[Tensor] = field(default_factory=list)
    broken: int = 0
    lost: set[int] = field(default_factory=set)
    waited: float = 0.0

    def add(self, batch: Batch, waited: float) -> None:
        """Count what a step's batch lacks, and the seconds for which training waited for it."""
        self.broken += batch.broken
        self.lost |= batch.lost
        self.waited += waited

    def joined(self, shards: int) -> tuple[list[float], int, set[int]]:
        """Return each step's mean loss over the workers, the sum of their broken pictures, and all their lost shards.

        Args:
            shards: number of shards of the corpus.
        """
        device = self.losses[0].device
        counts = torch.tensor([float(self.broken), float(len(self.lost))], device=device)
        local = torch.cat([torch.stack(self.losses).double(), counts])
        workers = world()[1]
        if workers == 1:
            return local[:-2].tolist(), self.broken, self.lost
        parts = [torch.empty_like(local) for _ in range(workers)]
        dist.all_gather(parts, local)
        total, lost = torch.stack(parts).sum(0), self.lost
        if total[-1]:
            mask = torch.zeros(shards, dtype=torch.uint8, device=device)
            mask[sorted(lost)] = 1
            dist.all_reduce(mask, dist.ReduceOp.MAX)
            lost = {*mask.nonzero().flatten().tolist()}
        return (total[:-2] / workers).tolist(), int(total[-2]), lost


def check(model: DualEncoder, losses: list[float], step: int, epoch: int) -> None:
    """Check that the losses of the last steps, and the weights after them, are finite.

    Args:
        model: the model after the last step.
        losses: loss of each step since the last look.
        step: number of the last step, 1 for the first.
        epoch: number of its epoch, 1 for the first.

    Raises:
        DataError: one is not; the message says why.
    """
    broken = _broken_weights(model)
    for number, loss in enumerate(losses, step + 1 - len(losses)):
        if not math.isfinite(loss):
            where = f"the loss is {loss} in step {number} (epoch {epoch})"
            if broken:
                raise DataError(f"{where}: {broken} now; lower the learning rate")
            raise DataError(
                f"{where} though all weights are finite, at a temperature of {(1 / model.scale).item():.3g}: raise "
                "min_temperature"
            )
    if broken:
        raise DataError(f"{broken} after step {step} (epoch {epoch}): lower the learning rate")


def memory_gib(device: torch.device) -> float:
    """Return the largest memory of this process so far, on a GPU that of the GPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def _broken_weights(model: nn.Module) -> str:
    """Name the parameters with values that are not finite; an empty string if there are none."""
    names = [name for name, value in model.named_parameters() if not torch.isfinite(value).all()]
    shown = ", ".join([*names[:3], *(["…"] if names[3:] else [])])
    return f"the weights {shown} are not finite" if names else ""
