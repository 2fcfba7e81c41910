"""Batches: one step's pairs in memory, and how they are made before they are needed."""

from collections import deque
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

_STEP = 8
"""The length of captions on a GPU is a multiple of it, so that the allocator sees few sizes."""
_ON_DEVICE = 1
"""Batches that wait on a GPU, beside that of the step."""

_Made = TypeVar("_Made")


@dataclass(frozen=True)
class Batch:
    """One worker's pairs of one training step.

    Attributes:
        features: image features, float [pairs, width] or [pairs, tokens, width], of stored ones float16; or images,
            uint8 [pairs, 3, size, size].
        ids: token ids, int64 [pairs, longest caption].
        captions: 64 bits of the hash of each caption, int64 [pairs]: equal numbers for equal captions.
        rows: numbers of the pairs in the corpus, int64 [pairs].
        broken: number of images that could not be decoded; another pair stands in the place of each.
        lost: numbers of the shards that could not be read and have places in this batch, or were to stand in them; see
            ``Pairs.load_or_replace``.
        lengths: number of tokens of each caption, int64 [pairs], in the processor's memory; None where the ids are too.
    """

    features: Tensor
    ids: Tensor
    captions: Tensor
    rows: Tensor
    broken: int = 0
    lost: frozenset[int] = frozenset()
    lengths: Tensor | None = None

    def to(self, device: torch.device, padding: int, most: int) -> "Batch":
        """Copy the batch to a GPU, which copies beside its other work; leave it as it is for a processor.

        Args:
            device: the device.
            padding: token id of padding.
            most: most tokens of a caption that the text tower reads.
        """
        if device.type == "cpu":
            return self
        longer = min(-self.ids.shape[1] % _STEP, most - self.ids.shape[1])
        features, ids, captions = (
            (each if each.is_pinned() else each.pin_memory()).to(device, non_blocking=True)
            for each in (self.features, F.pad(self.ids, (0, longer), value=padding), self.captions)
        )
        lengths = (self.ids != padding).sum(1)
        return replace(self, features=features, ids=ids, captions=captions, lengths=lengths)


def onto(device: torch.device, batches: Generator[Batch], padding: int, most: int) -> Generator[Batch]:
    """Iterate over batches on a device. A thread pins them, and a GPU copies them on a stream of its own.

    Args:
        device: the device.
        batches: makes the batches; closed when the iteration ends.
        padding: see ``Batch.to``.
        most: see ``Batch.to``.
    """
    if device.type != "cuda":
        with closing(batches):
            for batch in batches:
                yield batch.to(device, padding, most)
        return
    beside = torch.cuda.Stream(device)

    def copied() -> Generator[tuple[Batch, torch.cuda.Event]]:
        with closing(batches):
            for batch in batches:
                with torch.cuda.stream(beside):
                    there = batch.to(device, padding, most)
                    yield there, beside.record_event()

    for batch, done in ahead(copied(), _ON_DEVICE):
        computing = torch.cuda.current_stream(device)
        computing.wait_event(done)
        for each in (batch.features, batch.ids, batch.captions):
            each.record_stream(computing)
        yield batch


def ahead(batches: Generator[_Made], count: int, most: int | None = None) -> Generator[_Made]:
    """Iterate over batches that a thread makes before they are needed.

    Args:
        batches: makes the batches; closed when the iteration ends.
        count: most batches that wait.
        most: most bytes of their features that wait; one waits in any case. None for no limit.
    """
    maker = ThreadPoolExecutor(1, thread_name_prefix="batches")
    waiting = deque([maker.submit(next, batches, None)])
    try:
        while (batch := waiting.popleft().result()) is not None:
            room = count
            if most is not None and isinstance(batch, Batch):
                room = max(1, min(count, most // max(batch.features.nbytes, 1)))
            waiting.extend(maker.submit(next, batches, None) for _ in range(room - len(waiting)))
            yield batch
    finally:
        for future in waiting:
            future.cancel()
        maker.submit(batches.close)
        maker.shutdown(wait=False)
