"""Image-text retrieval in both directions (section 5.3): what is asked, what is right, who is found first."""

from collections.abc import Sequence
from math import comb
from typing import Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

from wukong.errors import DataError

CUTOFFS = (1, 5, 10)
Captions: TypeAlias = Literal["distinct", "all", "first"]


class Task(NamedTuple):
    """What retrieval on some pairs asks.

    Attributes:
        pictures: int64 [pictures], of each distinct picture the row of its first pair.
        texts: the captions.
        relevant: bool [texts, pictures], which belong together; each text and each picture has at least one.
    """

    pictures: Tensor
    texts: list[str]
    relevant: Tensor


def task(pictures: Sequence[str], captions: Sequence[str], taken: Captions = "distinct") -> Task:
    """Make distinct pictures, captions and right answers of pairs: a picture with five captions is five pairs.

    What is right for a caption, and which captions there are, is a matter of protocol:

    - ``distinct``: equal captions are one, and every picture that has it is right. For sets of names, and of captions
      from the web, which repeat.
    - ``all``: every pair's caption stands by itself, and its own picture alone is right, also where another picture has
      an equal caption, which then ties with it. The protocol of Flickr8K, Flickr30K, COCO and AIC-ICC with five
      captions a picture.
    - ``first``: as ``all``, with each picture's first caption alone; an evaluation with one caption a picture.

    Args:
        pictures: of each pair what tells its picture from others, for instance the digest of its bytes.
        captions: of each pair.
        taken: which captions.
    """
    if len(pictures) != len(captions):
        raise ValueError(f"{len(pictures)} pictures and {len(captions)} captions are no pairs")
    places: dict[str, int] = {}
    firsts: list[int] = []
    owners: list[int] = []
    rows: list[int] = []
    for row, picture in enumerate(pictures):
        if picture not in places:
            places[picture] = len(places)
            firsts.append(row)
        elif taken == "first":
            continue
        owners.append(places[picture])
        rows.append(row)
    if taken == "distinct":
        numbers = {text: number for number, text in enumerate(dict.fromkeys(captions))}
        texts, asked = list(numbers), [numbers[caption] for caption in captions]
    else:
        texts, asked = [captions[row] for row in rows], list(range(len(rows)))
    relevant = torch.zeros(len(texts), len(firsts), dtype=torch.bool)
    relevant[torch.tensor(asked, dtype=torch.int64), torch.tensor(owners, dtype=torch.int64)] = True
    return Task(torch.tensor(firsts, dtype=torch.int64), texts, relevant)


def ranks(scores: Tensor, relevant: Tensor) -> Tensor:
    """Place of the best relevant candidate of each query, int64 [queries]; 0 is the first.

    Candidates that score the same as it stand before it, so a model that tells nothing apart finds nothing.

    Args:
        scores: [queries, candidates].
        relevant: bool [queries, candidates]; each query has at least one.

    Raises:
        DataError: a score is not a number, which has no place among the others.
    """
    refuse_not_a_number(scores, "query", "candidate")
    best = scores.masked_fill(~relevant, -torch.inf).amax(1, keepdim=True)
    return ((scores >= best) & ~relevant).sum(1)


def refuse_not_a_number(scores: Tensor, row: str, column: str) -> None:
    """Raise DataError where a score is NaN: no comparison with it holds, so that it would stand before all others.

    Args:
        scores: [rows, columns].
        row: what a row is, for the message.
        column: what a column is.
    """
    if (broken := scores.isnan()).any():
        first, second = broken.nonzero()[0].tolist()
        raise DataError(
            f"{int(broken.sum())} of {scores.numel()} similarities are not numbers, the first that of {row} {first} to "
            f"{column} {second}: the model's weights or the features are damaged; train again, or delete the features"
        )


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
