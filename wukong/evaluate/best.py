"""The best candidates of each query: blocks of scores are added, and what others have found is joined."""

from collections.abc import Sequence

import torch
from torch import Tensor


class Best:
    """The best candidates of each query, of all blocks added so far, in an order without ties.

    A candidate is one integer: its score's bits in an order that integers compare as floats do, then its place among
    equal scores, then whether it is right. So the best K of two blocks are exactly the best K of both together.
    """

    def __init__(self, queries: int, kept: int, device: torch.device | None = None) -> None:
        self.keys = torch.full((queries, kept), torch.iinfo(torch.int64).min, device=device)

    def add(self, rows: slice, scores: Tensor, right: Tensor, places: Tensor | None) -> None:
        """Add candidates: float32 scores [rows, candidates], which are right, and places of equal ones."""
        kept = self.keys.shape[1]
        scores = scores.contiguous()
        # Only candidates that reach the worst one held can be among the best of all.
        least = _score_of(self.keys[rows, -1])
        if least.isneginf().any():
            least = scores.topk(min(kept, scores.shape[1]), 1).values[:, -1]
        row, column = (scores >= least[:, None]).nonzero(as_tuple=True)
        counts = torch.bincount(row, minlength=len(scores))
        if not len(row):
            return
        is_right = right[row, column]
        position = (~is_right).long() if places is None else places[column]
        keys = torch.full((len(scores), int(counts.max())), torch.iinfo(torch.int64).min, device=scores.device)
        before = (counts.cumsum(0) - counts)[row]
        keys[row, torch.arange(len(row), device=row.device) - before] = _keys(scores[row, column], is_right, position)
        self.join(rows, keys)

    def may_enter(self, rows: slice, scores: Tensor, exact: Tensor, margin: float) -> Tensor:
        """Find the candidates that may be among the best, bool [rows, candidates]; some of their scores are rough.

        Args:
            rows: the queries.
            scores: [rows, candidates].
            exact: which of them are exact, bool.
            margin: how far below the worst of the best exact ones a score may lie.
        """
        known = torch.cat([_score_of(self.keys[rows]), scores.masked_fill(~exact, -torch.inf)], 1)
        return scores >= known.topk(self.keys.shape[1], 1).values[:, -1:] - margin

    def join(self, rows: slice, keys: Tensor) -> None:
        """Add the best candidates that another has found, of some queries."""
        self.keys[rows] = torch.cat([self.keys[rows], keys], 1).topk(self.keys.shape[1], 1).values

    def found(self, cutoffs: Sequence[int]) -> Tensor:
        """Count the right candidates among the first K, int64 [queries, cutoffs]."""
        held = self.keys > torch.iinfo(torch.int64).min
        right = ((self.keys & 1).bool() & held).cumsum(1)
        return torch.stack([right[:, min(k, right.shape[1]) - 1] for k in cutoffs], 1).cpu()


def _keys(scores: Tensor, right: Tensor, place: Tensor) -> Tensor:
    bits = (scores + 0.0).contiguous().view(torch.int32)  # -0.0 becomes 0.0, its equal
    return (_ordered(bits).long() << 32) | (place << 1) | right.long()


def _score_of(keys: Tensor) -> Tensor:
    """Return the scores of candidates; minus infinity where there is none."""
    scores = _ordered((keys >> 32).to(torch.int32)).view(torch.float32)
    return scores.masked_fill(keys == torch.iinfo(torch.int64).min, -torch.inf)


def _ordered(bits: Tensor) -> Tensor:
    """Turn a float's bits into an integer in the floats' order, and back."""
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)
