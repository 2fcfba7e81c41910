"""Search of a shard of an index: every query is compared with every picture or caption, or with candidates among many.

The best candidates of an approximate index (``wukong.serve.approximate``) are ranked by their exact scores, as all are
where there is none. Both are the products of the stored vectors.

A token-wise model has a vector for each token. A first pass compares the means of the tokens' vectors, whose product is
the mean of all products of a picture's and a text's tokens. The best ``FIRST_PASS`` of it are ranked by the token-wise
similarity (section 4.3): s^T for pictures of a text, s^I for captions of a picture. So what is found can differ from a
comparison of all tokens with all others; with at most ``FIRST_PASS`` pictures it does not.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from wukong.evaluate.model import OwnModel
from wukong.model.dual import Texts
from wukong.serve.approximate import Candidates
from wukong.serve.index import Index
from wukong.serve.query import search_forms
from wukong.serve.vectors import Vectors

FIRST_PASS = 200
DIGITS = 4
_RANKS = 100
"""Of a search among candidates so many are ranked for people, whose pages show parts of one ranking: fewer than there
are candidates."""
_FEW = 50_000
"""Up to so many pictures that a filter leaves are all compared."""
_BLOCK_SCORES = 2**24
_REFERENCE = 256
"""Pictures, spread over the index, whose scores say how a text scores in general."""
_PROMPT = "一张{}的照片。"
"""The paper's prompt for a class name (appendix A.1)."""


Allowed = npt.NDArray[np.bool_] | None


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
            of different texts cannot be compared: some texts are near to every picture.
    """

    hits: list[Hit]
    stands_out: float


class Side:
    """Vectors of one kind, of pictures or of captions, and how the best of them are found.

    Args:
        vectors: the vectors, which are read into memory if all are compared.
        candidates: finds candidates; None to compare all.
        unit: whether vectors are brought to length 1 before they are compared.
    """

    def __init__(self, vectors: Vectors, candidates: Candidates | None, *, unit: bool = False) -> None:
        self._stored, self._candidates, self._unit = vectors, candidates, unit
        self._whole = self._scaled(vectors.read()) if candidates is None else None

    def __len__(self) -> int:
        return len(self._stored)

    def read(self, rows: Tensor) -> Tensor:
        """Read some vectors, float32 [rows, d]."""
        return self._scaled(self._stored[rows]) if self._whole is None else self._whole[rows]

    def best(self, queries: Tensor, count: int, allowed: Allowed = None) -> list[list[Hit]]:
        """Find the largest dot products of each query, the largest first; equal ones, rounded, are in order of rows.

        Args:
            queries: float32 [queries, d].
            count: how many of each.
            allowed: which vectors may be found, bool [vectors]; None for all.
        """
        if self._candidates is None or (allowed is not None and allowed.sum() <= _FEW):
            rows = None if allowed is None else torch.from_numpy(np.flatnonzero(allowed))
            if self._whole is not None:
                return _best(queries, self._whole if rows is None else self._whole[rows], count, rows)
            return _best(queries, self.read(rows), count, rows) if rows is not None else []
        # FAISS ranks candidates by the products of the stored vectors, and not of those brought to length 1.
        best = self._candidates.count if self._unit else count
        found = self._candidates.search(queries, best, allowed)
        return [_ranked(self.read(rows) @ query, rows, count) for query, rows in zip(queries, found, strict=True)]

    def _scaled(self, vectors: Tensor) -> Tensor:
        return F.normalize(vectors, dim=-1) if self._unit else vectors


class Searcher:
    """Searches a shard of an index with its model.

    Args:
        index: the shard.
        model: the model that it was made with.
    """

    def __init__(self, index: Index, model: OwnModel) -> None:
        self.index = index
        self.model = model
        self._pictures = Side(index.picture_vectors, index.picture_candidates)
        self._captions = Side(index.caption_vectors, index.caption_candidates)
        self._similar = self._pictures
        if index.picture_tokens is not None:
            self._similar = Side(index.picture_vectors, index.picture_candidates, unit=True)
        total = len(index.picture_vectors)
        spread = torch.linspace(0, total - 1, min(_REFERENCE, total)).round().long()
        self._reference = (
            self._pictures.read(spread) if index.picture_tokens is None else index.picture_tokens.read(spread)
        )

    @property
    def depth(self) -> int | None:
        """How many of the nearest pictures are ranked alike, however many of them are asked for; None for all."""
        if self.index.picture_tokens is not None:
            return FIRST_PASS
        return None if self.index.picture_candidates is None else _RANKS

    def looked_at(self, pictures: int, *, filtered: bool) -> int:
        """How many pictures are compared by more than four bits a number, if at most ``depth`` are asked for.

        Args:
            pictures: how many may be found.
            filtered: whether these are those that pass a filter.
        """
        if self.index.picture_tokens is not None:
            return min(pictures, FIRST_PASS)
        candidates = self.index.picture_candidates
        if candidates is None or (filtered and pictures <= _FEW):
            return pictures
        return min(pictures, candidates.count)

    def encode_texts(self, texts: Sequence[str]) -> Texts:
        """Encode texts in the form in which they are searched; those that are too long for the model are cut."""
        return self.model.saved.encode_text(search_forms(texts), strict=False)

    def pictures_of_texts(self, texts: Sequence[str], count: int, allowed: Allowed = None) -> list[SearchResult]:
        """Find the pictures that are most similar to each text, the best first.

        Args:
            texts: the queries.
            count: how many pictures of each.
            allowed: which pictures may be found, bool [pictures]; None for all.
        """
        return self.pictures_of(self.encode_texts(texts), count, allowed)

    @torch.inference_mode()
    def pictures_of(self, encoded: Texts, count: int, allowed: Allowed = None) -> list[SearchResult]:
        """Find pictures for texts that are encoded, as ``pictures_of_texts`` does."""
        if self.index.picture_tokens is None:
            best = self._pictures.best(encoded.vectors, count, allowed)
        else:
            first = self._pictures.best(_mean(encoded), max(FIRST_PASS, count), allowed)
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
        if not first:
            return []
        rows = torch.tensor([hit.row for hit in first])
        scores = self.model.similarity(self.index.picture_tokens.read(rows), text).text_to_image[:, 0]
        return _ranked(scores, rows, count)

    @torch.inference_mode()
    def captions_of_picture(self, picture: Tensor, count: int, allowed: Allowed = None) -> list[Hit]:
        """Find the captions that are most similar to an encoded picture, [d] or [tokens, d], the best first.

        Args:
            picture: the picture's vector, or those of its patches.
            count: how many captions.
            allowed: which captions may be found, bool [captions]; None for all.
        """
        if not self.index.captions:
            return []
        if self.index.caption_tokens is None:
            return self._captions.best(picture[None], count, allowed)[0]
        (first,) = self._captions.best(picture.mean(0, keepdim=True), max(FIRST_PASS, count), allowed)
        if not first:
            return []
        rows = torch.tensor([hit.row for hit in first])
        scores = self.model.similarity(picture[None], self.index.caption_texts(rows)).image_to_text[0]
        return _ranked(scores, rows, count)

    @torch.inference_mode()
    def similar_pictures(self, picture: Tensor, count: int, allowed: Allowed = None) -> list[Hit]:
        """Find the pictures that are most similar to an encoded picture: cosine of their (mean) vectors.

        Args:
            picture: the picture's vector, or those of its patches.
            count: how many pictures.
            allowed: which pictures may be found, bool [pictures]; None for all.
        """
        mean = F.normalize(picture.mean(0) if picture.ndim == 2 else picture, dim=-1)
        return self._similar.best(mean[None], count, allowed)[0]

    def stored_picture(self, row: int) -> Tensor:
        """Read the vectors of a picture of the index, [d] or [tokens, d]."""
        if self.index.picture_tokens is None:
            return self._pictures.read(torch.tensor([row]))[0]
        return self.index.picture_tokens.read(torch.tensor([row]))[0]


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


def _best(queries: Tensor, vectors: Tensor, count: int, rows: Tensor | None = None) -> list[list[Hit]]:
    """Find the largest dot products of each query, the largest first; equal ones, rounded, are in the order of rows.

    Args:
        queries: float32 [queries, d].
        vectors: float32 [vectors, d].
        count: how many of each query.
        rows: the row of each vector in the index, in their order; None if they are all.
    """
    step = max(1, _BLOCK_SCORES // max(1, len(queries)))
    best: list[list[tuple[float, int]]] = [[] for _ in queries]
    for start in range(0, len(vectors), step):
        scores = queries @ vectors[start : start + step].T
        last = scores.topk(min(count, scores.shape[1]), dim=1).values[:, -1:]
        # With all that may be equal to the last one when they are rounded, so that a block's size decides nothing.
        query, row = (scores >= last - 10**-DIGITS).nonzero(as_tuple=True)
        for number, place, score in zip(
            query.tolist(), (row + start).tolist(), scores[query, row].tolist(), strict=True
        ):
            best[number].append((-round(score, DIGITS), place))
        best = [sorted(each)[:count] for each in best]
    of = range(len(vectors)) if rows is None else rows.tolist()
    return [[Hit(of[place], -score) for score, place in each] for each in best]


def _ranked(scores: Tensor, rows: Tensor, count: int) -> list[Hit]:
    """Rank rows by their scores, the best first; equal scores, rounded, are in the order of rows."""
    rounded = scores.double().round(decimals=DIGITS).numpy()
    best = np.lexsort((rows.numpy(), -rounded))[:count]
    return [Hit(row, score) for row, score in zip(rows[best].tolist(), rounded[best].tolist(), strict=True)]
