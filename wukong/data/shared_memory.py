"""How much of ``/dev/shm`` the loader processes of ``wukong.data.views`` need; the plan of a run asks without torch."""

PREFETCHED = 2
"""Batches that each loader process makes before they are needed."""
_IN_USE = 2
"""Batches that the training holds: the one of this step, and the next when it arrives."""


def handed_over(processes: int, most: int, each: int) -> int:
    """Return the bytes that lie in shared memory at most, for one training worker.

    Args:
        processes: number of its loader processes; 0 need none.
        most: largest number of images of a batch.
        each: bytes of a view of an image.
    """
    return (PREFETCHED * processes + _IN_USE) * most * each if processes else 0
