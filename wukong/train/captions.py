"""Which of its captions a pair has in an epoch, where its picture was found with several."""

import hashlib
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate


@dataclass(frozen=True)
class Captions:
    """The captions of a pair, in memory; the lists are of one length.

    Attributes:
        ids: token ids of each, without padding.
        hashes: 64 bits of the hash of each, as a signed number.
        counts: how often each was found.
    """

    ids: list[list[int]]
    hashes: list[int]
    counts: list[int]


def drawn(counts: Sequence[int], seed: int, epoch: int, key: str) -> int:
    """Draw the number of a caption, each as often as its count says.

    It depends on nothing but the arguments: neither on the number of workers nor on where a run was interrupted.

    Args:
        counts: how often each caption was found, at least once.
        seed: seed of the run.
        epoch: number of the epoch.
        key: the pair's.
    """
    digest = hashlib.blake2b(f"caption:{seed}:{epoch}:{key}".encode(), digest_size=8).digest()
    place = int.from_bytes(digest) * sum(counts) >> 64
    return bisect_right(list(accumulate(counts)), place)
