"""The optimiser's state divided between the workers: each keeps that of its share of the weights (ZeRO, stage 1).

A share is made of whole weights. So the one worker that moves a weight does what each would do alone, LAMB's norms of a
whole layer included, and hands it on: the weights are those of a state that every worker keeps whole, to the bit.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.distributed as dist

from wukong.model.loss import world


class Shares:
    """Which worker keeps the state of which weights.

    Args:
        optimizer: an optimiser of all trained weights, equal on every worker.

    Attributes:
        own: numbers of the weights whose state this worker keeps, as the optimiser's state counts them.
        size: the weights' elements of which this worker keeps the state, and of all.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        rank, workers = world()
        weights = [weight for group in optimizer.param_groups for weight in group["params"]]
        shares = divided([weight.numel() for weight in weights], workers)
        self.own = frozenset(shares[rank])
        self._shares = [[weights[number] for number in share] for share in shares]
        self._others = [weight for number, weight in enumerate(weights) if number not in self.own]
        self.size = (
            sum(weight.numel() for weight in self._shares[rank]),
            sum(weight.numel() for weight in weights),
        )

    @contextmanager
    def moved(self) -> Iterator[None]:
        """Let the optimiser's step in the block move this worker's weights, then get the others from their workers."""
        gradients = [weight.grad for weight in self._others]
        for weight in self._others:
            weight.grad = None  # an optimiser neither moves such a weight nor makes a state for it
        yield
        for weight, gradient in zip(self._others, gradients, strict=True):
            weight.grad = gradient
        for owner, weights in enumerate(self._shares):
            if weights:
                whole = torch.cat([weight.detach().flatten() for weight in weights])
                dist.broadcast(whole, owner)
                for weight, part in zip(weights, whole.split([weight.numel() for weight in weights]), strict=True):
                    weight.detach().copy_(part.view_as(weight))


def divided(sizes: Sequence[int], workers: int) -> list[list[int]]:
    """Divide things between workers so that the sums of their sizes are close; return the numbers of each, in order."""
    shares: list[list[int]] = [[] for _ in range(workers)]
    loads = [0] * workers
    for number in sorted(range(len(sizes)), key=lambda number: -sizes[number]):
        least = loads.index(min(loads))
        shares[least].append(number)
        loads[least] += sizes[number]
    return [sorted(share) for share in shares]
