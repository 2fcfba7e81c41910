"""Batches: one step's pairs in memory, and how they are made before they are needed."""

from collections import deque
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """One worker's pairs of one training step.

    Attributes:
        features: image features, float [pairs, width] or [pairs, tokens, width]; or images, uint8
            [pairs, 3, size, size].
        ids: token ids, int64 [pairs, longest caption].
        captions: 64 bits of the hash of each caption, int64 [pairs]: equal numbers for equal captions.
        rows: numbers of the pairs in the corpus, int64 [pairs].
        broken: number of images that could not be decoded; another pair stands in the place of each.
        lost: numbers of the shards that could not be read and have places in this batch, or were to stand in them; see
            ``Pairs.load_or_replace``.
    """

    features: Tensor
    ids: Tensor
    captions: Tensor
    rows: Tensor
    broken: int = 0
    lost: frozenset[int] = frozenset()

    def to(self, device: torch.device) -> "Batch":
        """Copy the batch to a device; a GPU copies beside its other work."""
        if device.type == "cpu":
            return self
        features, ids, captions = (
            (each if each.is_pinned() else each.pin_memory()).to(device, non_blocking=True)
            for each in (self.features, self.ids, self.captions)
        )
        return Batch(features, ids, captions, self.rows, self.broken, self.lost)


def ahead(batches: Generator[Batch], count: int, most: int) -> Generator[Batch]:
    """Iterate over batches that a thread makes before they are needed.

    Args:
        batches: makes the batches; closed when the iteration ends.
        count: most batches that wait.
        most: most bytes of those that wait; one waits in any case.
    """
    maker = ThreadPoolExecutor(1, thread_name_prefix="batches")
    waiting = deque([maker.submit(next, batches, None)])
    try:
        while (batch := waiting.popleft().result()) is not None:
            room = max(1, min(count, most // max(batch.features.nbytes, 1)))
            waiting.extend(maker.submit(next, batches, None) for _ in range(room - len(waiting)))
            yield batch
    finally:
        for future in waiting:
            future.cancel()
        maker.submit(batches.close)
        maker.shutdown(wait=False)
