"""How much of an exact search an approximate one finds, by questions whose exact answers are kept with the index.

The questions are captions of the shard; the answers are the ten pictures whose vectors have the largest products with
the caption's. Of a token-wise model both are means, so what is measured is the first pass of its search.
"""

import bisect
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from wukong.serve.approximate import MOST_CANDIDATES, Candidates
from wukong.serve.index import Index
from wukong.serve.search import Side
from wukong.serve.vectors import Vectors

QUESTIONS = 1_000
BEST = 10
_LEAST = 0.985
"""Share of the exact answers that a search must find of one half of the questions."""
_LEAST_PROBES = 8
_LEAST_GAIN = 0.001
"""What more effort must add to the share, to be worth its time."""
_BLOCK = 65_536

Rows = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Recall:
    """The share of exact answers that was found, 0 to 1, and of how many questions."""

    found: float
    questions: int


def measure(index: Index) -> Recall | None:
    """Ask the questions that are kept with an index; None where there are none, because its search is exact."""
    if index.picture_candidates is None or not len(index.questions):
        return None
    side = Side(index.picture_vectors, index.picture_candidates)
    queries = index.caption_vectors[torch.from_numpy(index.questions.astype(np.int64))]
    return Recall(_share(side, queries, index.answers), len(queries))


def questions(captions: int, seed: int = 0) -> Rows:
    """Draw rows of captions, in their order."""
    drawn = np.random.default_rng(seed).choice(captions, min(QUESTIONS, captions), replace=False)
    return np.sort(drawn).astype(np.int32)


def answers(vectors: Vectors, queries: Tensor) -> Rows:
    """Find the best pictures of each query among all, int32 [queries, 10]; -1 where there are fewer."""
    best = torch.full((len(queries), BEST), -torch.inf)
    rows = torch.full((len(queries), BEST), -1)
    for start in range(0, len(vectors), _BLOCK):
        scores = queries @ vectors[start : start + _BLOCK].T
        values, places = scores.topk(min(BEST, scores.shape[1]), dim=1)
        joined, both = torch.cat([best, values], 1), torch.cat([rows, places + start], 1)
        best, kept = joined.topk(BEST, dim=1)
        rows = both.gather(1, kept)
    return rows.numpy().astype(np.int32)


def calibrate(vectors: Vectors, candidates: Candidates, queries: Tensor, exact: Rows) -> float:
    """Set how many lists a search looks through, and how many candidates it ranks, by one half of some questions.

    Half as many lists more and twice as many candidates are tried, and what finds more is taken, until enough is found
    or neither finds more. Of the last lists only those stay without which too little would be found.

    Returns:
        The share of the answers that a search finds of the other half.
    """
    half = len(queries) // 2
    side = Side(vectors, candidates)

    def share(probes: int, count: int) -> float:
        candidates.probes, candidates.count = probes, count
        return _share(side, queries[:half], exact[:half])

    probes, count = min(_LEAST_PROBES, candidates.lists), min(candidates.count, MOST_CANDIDATES)
    found = share(probes, count)
    before = probes
    while found < _LEAST:
        more = ((min(3 * probes // 2, candidates.lists), count), (probes, min(2 * count, MOST_CANDIDATES)))
        most, best = max((share(*each), each) for each in more)
        if most - found < _LEAST_GAIN:
            break
        before, (probes, count), found = probes, best, most
    probes = before + bisect.bisect_left(range(before, probes), _LEAST, key=lambda lists: share(lists, count))
    candidates.probes, candidates.count = probes, count
    return _share(side, queries[half:], exact[half:])


def _share(side: Side, queries: Tensor, exact: Rows) -> float:
    found = wanted = 0
    for hits, answer in zip(side.best(queries, BEST), exact.tolist(), strict=True):
        rows = {row for row in answer if row >= 0}
        found += len(rows.intersection(hit.row for hit in hits))
        wanted += len(rows)
    return found / max(1, wanted)
