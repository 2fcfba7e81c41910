"""Image-text retrieval in both directions (section 5.3): queries, right answers, ranks and recall."""

from collections.abc import Sequence
from math import comb
from typing import Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

from wukong.errors import DataError

CUTOFFS = (1, 5, 10)
Captions: TypeAlias = Literal["distinct", "all", "first"]


class Task(NamedTuple):
    """A retrieval task: distinct images, captions, and which of them belong together.

    Attributes:
        pictures: int64 [images], the row of the first pair of each distinct image.
        texts: the captions.
        relevant: bool [texts, images], True where caption and image belong together; each caption and each image has at
            least one match.
    """

    pictures: Tensor
    texts: list[str]
    relevant: Tensor


def task(pictures: Sequence[str], captions: Sequence[str], protocol: Captions = "distinct") -> Task:
    """Build a retrieval task from pairs. An image with five captions is five pairs.

    The protocol defines which captions there are and which images are right for a caption:

    - ``distinct``: equal captions are one caption, and every image that has it is right. Use it for names and for
      captions from the web, which repeat.
    - ``all``: every pair's caption is a query of its own, and only its own image is right, even if another image has an
      equal caption (which then ties with it). This is the protocol of Flickr8K, Flickr30K, COCO and AIC-ICC with five
      captions an image.
    - ``first``: like ``all``, but only with the first caption of each image: an evaluation with one caption an image.

    Args:
        pictures: an identifier of each pair's image, for instance the digest of its bytes.
        captions: captions of the pairs.
        protocol: the protocol, see above.
    """
    if len(pictures) != len(captions):
        raise ValueError(f"{len(pictures)} pictures and {len(captions)} captions: they must be as many")
    places: dict[str, int] = {}
    firsts: list[int] = []
    owners: list[int] = []
    rows: list[int] = []
    for row, picture in enumerate(pictures):
        if picture not in places:
            places[picture] = len(places)
            firsts.append(row)
        elif protocol == "first":
            continue
        owners.append(places[picture])
        rows.append(row)
    if protocol == "distinct":
        numbers = {text: number for number, text in enumerate(dict.fromkeys(captions))}
        texts, asked = list(numbers), [numbers[caption] for caption in captions]
    else:
        texts, asked = [captions[row] for row in rows], list(range(len(rows)))
    relevant = torch.zeros(len(texts), len(firsts), dtype=torch.bool)
    relevant[torch.tensor(asked, dtype=torch.int64), torch.tensor(owners, dtype=torch.int64)] = True
    return Task(torch.tensor(firsts, dtype=torch.int64), texts, relevant)


def ranks(scores: Tensor, relevant: Tensor) -> Tensor:
    """Compute the rank of the best relevant candidate of each query.

    A wrong candidate with the same score is ranked before it. So a model that gives all candidates the same score finds
    nothing.

    Args:
        scores: [queries, candidates].
        relevant: bool [queries, candidates]; each query has at least one relevant candidate.

    Returns:
        Ranks, int64 [queries]; 0 is the first.

    Raises:
        DataError: a score is NaN and so has no rank.
    """
    refuse_not_a_number(scores, "query", "candidate")
    best = scores.masked_fill(~relevant, -torch.inf).amax(1, keepdim=True)
    return ((scores >= best) & ~relevant).sum(1)


def refuse_not_a_number(scores: Tensor, row: str, column: str) -> None:
    """Raise DataError if a score is NaN. All comparisons with NaN are false, so it would be ranked first.

    Args:
        scores: [rows, columns].
        row: what a row stands for, for the message.
        column: what a column stands for, for the message.
    """
    if (broken := scores.isnan()).any():
        first, second = broken.nonzero()[0].tolist()
        raise DataError(
            f"{int(broken.sum())} of {scores.numel()} similarities are not numbers; the first is that of {row} {first} "
            f"to {column} {second}: the weights or the features are damaged; train again, or delete the features"
        )


def recall(places: Tensor, cutoffs: Sequence[int] = CUTOFFS) -> dict[int, float]:
    """Compute Recall@K: the share of queries with a relevant candidate among the first K; ``places`` are ``ranks``."""
    return {k: (places < k).float().mean().item() for k in cutoffs}


def chance(relevant_counts: Sequence[int], candidates: int, cutoffs: Sequence[int] = CUTOFFS) -> dict[int, float]:
    """Compute the expected Recall@K if the candidates are in random order.

    It is one minus the probability that none of the first K candidates is relevant.

    Args:
        relevant_counts: number of relevant candidates of each query.
        candidates: number of candidates, the same for all queries.
        cutoffs: the values of K.
    """

    def miss(count: int, k: int) -> float:
        return comb(candidates - count, min(k, candidates)) / comb(candidates, min(k, candidates))

    return {k: 1 - sum(miss(count, k) for count in relevant_counts) / max(1, len(relevant_counts)) for k in cutoffs}
