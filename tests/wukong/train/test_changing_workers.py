"""A training whose workers are halved while it waits in a queue, and all there again later: the same pairs and loss."""

from collections.abc import Generator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import small
import torch
import workers

from wukong.store import storage
from wukong.train import checkpoint
from wukong.train.batches import Batch
from wukong.train.loop import train
from wukong.train.state import Epoch

WORKERS = (4, 2, 1, 4)
"""Of each epoch: preempted, halved, halved again, and preempted and admitted whole."""
STEPS = 3  # of an epoch
BOUND = 1e-5
"""How far the loss of an epoch may be from that of a run that kept its workers; docs/operating.md names it."""


class _SuspendedError(Exception):
    pass


def _train(_rank: int, _count: int, uri: str, epochs: int) -> dict[str, torch.Tensor]:
    """Train from the newest checkpoint to the end of an epoch; the numbers of this worker's pairs and the losses."""
    model, pairs = small.make()
    original, rows = pairs.batches, []

    def noted(*arguments: Any, **named: Any) -> Generator[Batch]:
        with closing(original(*arguments, **named)) as batches:
            for batch in batches:
                rows.append(batch.rows)
                yield batch

    def suspend(epoch: Epoch) -> None:
        losses.append(epoch.loss)
        if epoch.epoch > epochs:
            raise _SuspendedError

    pairs.batches = noted  # type: ignore[method-assign]
    losses: list[float] = []
    writer = checkpoint.Writer(uri)
    try:
        train(model, pairs, small.SETTINGS, 0, suspend, checkpoints=writer, resume=checkpoint.newest(uri))
    except _SuspendedError:
        writer.wait()
    writer.close()
    return {"rows": torch.stack(rows), "losses": torch.tensor(losses, dtype=torch.float64)}


def _joined(shares: list[dict[str, torch.Tensor]]) -> list[list[int]]:
    """Of each step the pairs of all workers."""
    return [sorted(step) for step in torch.cat([share["rows"] for share in shares], dim=1).tolist()]


@pytest.mark.long
def test_a_training_with_fewer_workers_has_the_same_pairs_and_the_same_loss(tmp_path: Path) -> None:
    alone = workers.run(WORKERS[0], tmp_path, _train, storage.from_path(tmp_path / "alone"), small.SETTINGS.epochs)
    pairs, losses = [], []
    for epoch, count in enumerate(WORKERS, 1):
        # The checkpoint that a suspended run goes on from is of the epoch before: what came after it is done again.
        shares = workers.run(count, tmp_path, _train, storage.from_path(tmp_path / "resized"), epoch)
        pairs += _joined(shares)[:STEPS]
        losses.append(shares[0]["losses"][0].item())
    assert len(pairs) == STEPS * len(WORKERS)
    assert pairs == _joined(alone)
    furthest = max(abs(one - other) for one, other in zip(losses, alone[0]["losses"].tolist(), strict=True))
    print(f"the losses differ by {furthest:.1g} at most")
    assert 0 < furthest < BOUND
