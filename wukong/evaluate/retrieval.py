"""Image-text retrieval in both directions (section 5.3)."""

from collections.abc import Sequence
from math import comb

import torch
from torch import Tensor

CUTOFFS = (1, 5, 10)


def ranks(scores: Tensor, relevant: Tensor) -> Tensor:
    """Place of the best relevant candidate of each query, int64 [queries]; 0 is the first.

    Candidates that score the same as it stand before it, so a model that tells nothing apart finds nothing.

    Args:
        scores: [queries, candidates].
        relevant: bool [queries, candidates]; each query has at least one.
    """
    best = scores.masked_fill(~relevant, -torch.inf).amax(1, keepdim=True)
    return ((scores >= best) & ~relevant).sum(1)


def recall(places: Tensor, cutoffs: Sequence[int] = CUTOFFS) -> dict[int, float]:
    """Recall@K: the share of queries for which any relevant candidate is among the first K (``ranks``)."""
    return {k: (places < k).float().mean().item() for k in cutoffs}


def chance(relevant_counts: Sequence[int], candidates: int, cutoffs: Sequence[int] = CUTOFFS) -> dict[int, float]:
    """Expected Recall@K of candidates in random order: one minus the odds of drawing no relevant one K times.

    Args:
        relevant_counts: relevant candidates of each query.
        candidates: of all queries.
        cutoffs: the values of K.
    """

    def miss(count: int, k: int) -> float:
        return comb(candidates - count, min(k, candidates)) / comb(candidates, min(k, candidates))

    return {k: 1 - sum(miss(count, k) for count in relevant_counts) / max(1, len(relevant_counts)) for k in cutoffs}


def distinct(captions: Sequence[str]) -> tuple[list[str], Tensor]:
    """Distinct captions in order of appearance, and which pictures each belongs to: bool [captions, pictures]."""
    texts = list(dict.fromkeys(captions))
    places = {text: place for place, text in enumerate(texts)}
    relevant = torch.zeros(len(texts), len(captions), dtype=torch.bool)
    relevant[torch.tensor([places[caption] for caption in captions]), torch.arange(len(captions))] = True
    return texts, relevant
