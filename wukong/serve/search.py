"""Exact search: every query is compared with every picture or caption, in blocks; token-wise models rank the best anew.

A token-wise model has a vector for each token. A first pass compares the means of the tokens' vectors, whose product is
the mean of all products of a picture's and a text's tokens. The best ``FIRST_PASS`` of it are ranked by the token-wise
similarity (section 4.3): s^T for pictures of a text, s^I for captions of a picture. So what is found can differ from a
comparison of all tokens with all others; with at most ``FIRST_PASS`` pictures it does not.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from wukong.evaluate.model import OwnModel
from wukong.model.dual import Texts
from wukong.serve.index import Index
from wukong.serve.query import search_forms

FIRST_PASS = 200
DIGITS = 4
_BLOCK_SCORES = 2**24
_REFERENCE = 256
"""Pictures, spread over the index, whose scores say how a text scores in general."""
_PROMPT = "一张{}的照片。"
"""The paper's prompt for a class name (appendix A.1)."""


@dataclass(frozen=True)
class Hit:
    """One result: a row of the index and its similarity, -1 to 1, rounded to four digits."""

    row: int
    score: float


@dataclass(frozen=True)
class SearchResult:
    """What a text finds.

    Attributes:
        hits: the best pictures, the best first.
        stands_out: by how much the best score exceeds the mean score of pictures in general for the same text. Scores
            of different texts cannot be compared: some texts are near to every picture. 0 without hits.
    """

    hits: list[Hit]
    stands_out: float


class Searcher:
    """Searches an index with its model.

    Args:
        index: the index.
        model: the model that it was made with.
    """

    def __init__(self, index: Index, model: OwnModel) -> None:
        self.index = index
        self.model = model
        vectors = index.picture_vectors
        self._unit_vectors = vectors if index.picture_tokens is None else F.normalize(vectors, dim=-1)
        spread = torch.linspace(0, len(vectors) - 1, min(_REFERENCE, len(vectors))).round().long()
        self._reference = vectors[spread] if index.picture_tokens is None else index.picture_tokens.read(spread)

    def encode_texts(self, texts: Sequence[str]) -> Texts:
        """Encode texts in the form in which they are searched; those that are too long for the model are cut."""
        return self.model.saved.encode_text(search_forms(texts), strict=False)

    @property
    def depth(self) -> int | None:
        """How many of the nearest pictures are ranked; None where all are."""
        return None if self.index.picture_tokens is None else FIRST_PASS

    def pictures_of_texts(
        self, texts: Sequence[str], count: int, allowed: np.ndarray | None = None
    ) -> list[SearchResult]:
        """Find the pictures that are most similar to each text; see ``pictures_of``."""
        return self.pictures_of(self.encode_texts(texts), count, allowed)

    @torch.inference_mode()
    def pictures_of(self, encoded: Texts, count: int, allowed: np.ndarray | None = None) -> list[SearchResult]:
        """Find the pictures that are most similar to each text, the best first.

        Args:
            encoded: the queries, from ``encode_texts``.
            count: how many pictures of each.
            allowed: bool [pictures], those that may be found; None for all.
        """
        if self.index.picture_tokens is None:
            best = _best(encoded.vectors, self.index.picture_vectors, count, allowed)
        else:
            first = _best(_mean(encoded), self.index.picture_vectors, max(FIRST_PASS, count), allowed)
            best = [
                self.rank(Texts(encoded.vectors[row : row + 1], encoded.counted[row : row + 1]), hits, count)
                for row, hits in enumerate(first)
            ]
        means = self.model.similarity(self._reference, encoded).text_to_image.mean(0)
        return [
            SearchResult(hits, round(hits[0].score - mean, DIGITS) if hits else 0.0)
            for hits, mean in zip(best, means.tolist(), strict=True)
        ]

    @torch.inference_mode()
    def rank(self, text: Texts, first: Sequence[Hit], count: int) -> list[Hit]:
        """Rank pictures by the token-wise similarity of one encoded text to them, s^T.

        Args:
            text: the text, of a batch of one.
            first: the pictures that the first pass found.
            count: how many are returned.
        """
        if self.index.picture_tokens is None:
            raise ValueError("a global model has no tokens")
        rows = torch.tensor([hit.row for hit in first], dtype=torch.int64)
        scores = self.model.similarity(self.index.picture_tokens.read(rows), text).text_to_image[:, 0]
        return _ranked(scores, rows, count)

    @torch.inference_mode()
    def captions_of_picture(self, picture: Tensor, count: int) -> list[Hit]:
        """Find the captions that are most similar to an encoded picture, [d] or [tokens, d], the best first."""
        if not self.index.captions:
            return []
        if self.index.caption_tokens is None:
            return _best(picture[None], self.index.caption_vectors, count)[0]
        (first,) = _best(picture.mean(0, keepdim=True), self.index.caption_vectors, max(FIRST_PASS, count))
        rows = torch.tensor([hit.row for hit in first])
        scores = self.model.similarity(picture[None], self.index.caption_texts(rows)).image_to_text[0]
        return _ranked(scores, rows, count)

    @torch.inference_mode()
    def similar_pictures(self, picture: Tensor, count: int, allowed: np.ndarray | None = None) -> list[Hit]:
        """Find the pictures that are most similar to an encoded picture: cosine of their (mean) vectors."""
        mean = F.normalize(picture.mean(0) if picture.ndim == 2 else picture, dim=-1)
        return _best(mean[None], self._unit_vectors, count, allowed)[0]

    def stored_picture(self, row: int) -> Tensor:
        """Read the vectors of a picture of the index, [d] or [tokens, d]."""
        if self.index.picture_tokens is None:
            return self.index.picture_vectors[row]
        return self.index.picture_tokens.read(torch.tensor([row]))[0]

    def label_scores(self, picture: Tensor, labels: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Compare an encoded picture with labels; see ``label_scores``."""
        return label_scores(self.model, picture, labels)


@torch.inference_mode()
def label_scores(model: OwnModel, picture: Tensor, labels: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Compare an encoded picture with labels, each in the prompt ``一张{}的照片。`` (zero-shot classification).

    Returns:
        The similarities, and their softmax with the model's temperature: how the labels share the probability 1.
    """
    texts = model.saved.encode_text(search_forms([_PROMPT.format(label) for label in labels]), strict=False)
    scores = model.similarity(picture[None], texts).image_to_text[0]
    return scores, (model.scale * scores).softmax(0)


def _mean(texts: Texts) -> Tensor:
    """Mean of the tokens that count, [texts, d]."""
    weight = texts.counted[..., None]
    return (texts.vectors * weight).sum(1) / weight.sum(1).clamp_min(1)


def _best(queries: Tensor, vectors: Tensor, count: int, allowed: np.ndarray | None = None) -> list[list[Hit]]:
    """Find the largest dot products of each query, the largest first; equal ones, rounded, are in the order of rows."""
    step = max(1, _BLOCK_SCORES // max(1, len(queries)))
    best: list[list[tuple[float, int]]] = [[] for _ in queries]
    for start in range(0, len(vectors), step):
        scores = queries @ vectors[start : start + step].T
        if allowed is not None:
            scores[:, torch.from_numpy(~allowed[start : start + step])] = -torch.inf
        last = scores.topk(min(count, scores.shape[1]), dim=1).values[:, -1:]
        # With all that may be equal to the last one when they are rounded, so that a block's size decides nothing.
        query, row = ((scores >= last - 10**-DIGITS) & (scores > -torch.inf)).nonzero(as_tuple=True)
        for number, place, score in zip(
            query.tolist(), (row + start).tolist(), scores[query, row].tolist(), strict=True
        ):
            best[number].append((-round(score, DIGITS), place))
        best = [sorted(each)[:count] for each in best]
    return [[Hit(row, -score) for score, row in each] for each in best]


def _ranked(scores: Tensor, rows: Tensor, count: int) -> list[Hit]:
    """Rank rows by their scores, the best first; equal scores, rounded, are in the order of rows."""
    each = sorted((-round(score, DIGITS), row) for score, row in zip(scores.tolist(), rows.tolist(), strict=True))
    return [Hit(row, -score) for score, row in each[:count]]
