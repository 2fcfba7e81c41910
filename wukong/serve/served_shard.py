"""A shard of a search: a range of the pictures of a collection, in this process or behind an interface like it.

``wukong.serve.router`` asks all shards and merges what they answer. A shard names pictures by their rows in it.
"""

import asyncio
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from wukong.crawl.uploads import RefusedError
from wukong.curate.text.characters import has_han
from wukong.model.dual import Texts
from wukong.runtime.language import _
from wukong.serve import recall
from wukong.serve.batcher import Batcher
from wukong.serve.collection import Place
from wukong.serve.filters import Filters, Mask, Selection, folded
from wukong.serve.search import Hit, Searcher, SearchResult

BATCH = 32
"""The most questions that are answered at a time."""
PICTURES_OF_A_CAPTION = 10
_FREQUENT = 1_000
"""Captions among which examples of queries are looked for."""
_SHORT = range(2, 13)
"""Characters of such a caption."""
_MEASURED_EVERY, _MEASURED_WHILE_BUSY = 0.2, 2.0
"""Seconds between two of the kept questions, and the most while others ask without a pause."""
_MOST_FOLDED = 10_000
"""How many of the nearest pictures are looked at for different ones, where near-duplicates are folded."""


@dataclass(frozen=True)
class Question:
    """What is searched for.

    Attributes:
        text: an encoded text, in a batch of one.
        count: how many pictures are wanted.
        filters: what they must have.
    """

    text: Texts
    count: int
    filters: Filters


@dataclass(frozen=True)
class Ranked:
    """What a shard finds.

    Attributes:
        hits: the best pictures, the best first; equal ones in the order of rows.
        mean: the mean score of its pictures in general for the text; None if nothing passes the filters.
        pictures: how many pictures it has.
        matching: how many of these pass the filters.
        looked_at: how many of these were ranked: all, or the nearest alone.
        groups: the group of near-duplicates of each hit, by its row; empty where they are not folded.
    """

    hits: tuple[Hit, ...]
    mean: float | None
    pictures: int
    matching: int
    looked_at: int
    groups: Mapping[int, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Item:
    """What is shown of a picture."""

    row: int
    key: str
    captions: tuple[str, ...]
    place: Place


class Caption(NamedTuple):
    """A caption that was found, with the keys of pictures of the shard that have it, at most 10."""

    text: str
    score: float
    pictures: tuple[str, ...]


@dataclass(frozen=True)
class Neighbours:
    """The captions, and the pictures, that are nearest to a picture."""

    captions: tuple[Caption, ...]
    pictures: tuple[Hit, ...]


@dataclass(frozen=True)
class Description:
    """What a shard holds.

    Attributes:
        pictures: how many.
        depth: how many of the nearest pictures it ranks; None for all.
        columns: what its pictures can be filtered by.
        licences: the licences that they have.
        frequent: short Chinese captions that many of them have, with the number of these.
        recall: the share of the exact answers that it finds of the questions that are kept with it, and their number;
            None where all pictures are compared, and until it is measured.
    """

    pictures: int
    depth: int | None
    columns: frozenset[str]
    licences: tuple[str, ...]
    frequent: tuple[tuple[str, int], ...]
    recall: tuple[float, int] | None = None


class Shard(Protocol):
    """What a router asks; any method may raise, and then the shard counts as one that did not answer.

    RefusedError is another thing: the question is wrong, or too many wait.
    """

    async def describe(self) -> Description:
        """Say what the shard holds."""
        ...

    async def search(self, question: Question) -> Ranked:
        """Find pictures for a text."""
        ...

    async def near(self, picture: Tensor, count: int) -> Neighbours:
        """Find captions and pictures for an encoded picture, [d] or [tokens, d]."""
        ...

    async def items(self, rows: Sequence[int]) -> list[Item]:
        """Look up what is shown of some pictures, in their order."""
        ...

    async def find(self, key: str) -> Item | None:
        """Look up a picture by its key; None if it is not in this shard."""
        ...

    async def vectors(self, row: int) -> Tensor:
        """Read the stored vectors of a picture, [d] or [tokens, d]."""
        ...


class LocalShard:
    """A shard in this process. Questions that arrive while others are answered are answered together.

    Args:
        searcher: what searches it.
        texts: the threads that search for texts.
        pictures: the threads that search for pictures.
        waiting: how many questions of each kind may wait.
    """

    def __init__(self, searcher: Searcher, texts: Executor, pictures: Executor, waiting: int) -> None:
        self.index = searcher.index
        self._searcher, self._pictures = searcher, pictures
        self._selection = Selection(self.index)
        self._measured: tuple[float, int] | None = None
        self._measuring: asyncio.Task[None] | None = None
        self._search = Batcher(self._answer, texts, BATCH, waiting)
        self._waiting, self._asked_of_pictures = waiting, 0

    def close(self) -> None:
        """Measure nothing more."""
        if self._measuring is not None:
            self._measuring.cancel()

    async def describe(self) -> Description:
        """Say what the shard holds. Its recall is measured meanwhile, when it is asked for the first time."""
        described = await asyncio.to_thread(lambda: self._described)
        if self._measuring is None:
            self._measuring = asyncio.create_task(self._measure())
        return replace(described, recall=self._measured)

    async def search(self, question: Question) -> Ranked:
        """Find pictures for a text.

        Raises:
            RefusedError: (503) too many questions wait.
        """
        return await self._search(question)

    async def near(self, picture: Tensor, count: int) -> Neighbours:
        """Find captions and pictures for an encoded picture, [d] or [tokens, d].

        Raises:
            RefusedError: (503) too many questions wait.
        """
        if self._asked_of_pictures >= self._waiting:
            raise RefusedError(503, _("too many requests wait at this moment: try again in a second"))
        self._asked_of_pictures += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pictures, self._near, picture, count)
        finally:
            self._asked_of_pictures -= 1

    async def items(self, rows: Sequence[int]) -> list[Item]:
        """Look up what is shown of some pictures, in their order."""
        return await asyncio.to_thread(lambda: [self._item(row) for row in rows])

    async def find(self, key: str) -> Item | None:
        """Look up a picture by its key; None if it is not in this shard."""
        row = await asyncio.to_thread(self.index.row_of, key)
        return None if row is None else self._item(row)

    async def vectors(self, row: int) -> Tensor:
        """Read the stored vectors of a picture, [d] or [tokens, d]."""
        return await asyncio.to_thread(self._searcher.stored_picture, row)

    @cached_property
    def _described(self) -> Description:
        frequent = [(self.index.captions[row], int(self.index.shared[row])) for row in self.index.frequent(_FREQUENT)]
        return Description(
            pictures=len(self.index.keys),
            depth=self._searcher.depth,
            columns=self._selection.columns,
            licences=self._selection.licences,
            frequent=tuple(each for each in frequent if len(each[0]) in _SHORT and has_han(each[0])),
        )

    async def _measure(self) -> None:
        """Ask what is kept with the index, one by one, so that those who search do not wait for it."""
        found = asked = 0.0
        for number in range(len(self.index.questions)):
            some = slice(number, number + 1)
            part = replace(self.index, questions=self.index.questions[some], answers=self.index.answers[some])
            if (measured := await asyncio.to_thread(recall.measure, part)) is None:
                return
            found, asked = found + measured.found * measured.questions, asked + measured.questions
            for _look in range(round(_MEASURED_WHILE_BUSY / _MEASURED_EVERY)):
                await asyncio.sleep(_MEASURED_EVERY)
                if not self._search.busy:
                    break
        if asked:
            self._measured = found / asked, int(asked)

    def _item(self, row: int) -> Item:
        captions = tuple(self.index.captions[each] for each in self.index.captions_of[row])
        return Item(row, self.index.keys[row], captions, self.index.places[row])

    def _near(self, picture: Tensor, count: int) -> Neighbours:
        found = self._searcher.captions_of_picture(picture, count)
        captions = []
        for hit in found:
            keys = tuple(self.index.keys[row] for row in self.index.pictures_of[hit.row][:PICTURES_OF_A_CAPTION])
            captions.append(Caption(self.index.captions[hit.row], hit.score, keys))
        return Neighbours(tuple(captions), tuple(self._searcher.similar_pictures(picture, count)))

    def _answer(self, asked: Sequence[Question]) -> list[Ranked]:
        """Answer a batch; questions with the same filters are searched together."""
        found: dict[int, Ranked] = {}
        pictures = len(self.index.keys)
        for filters in dict.fromkeys(question.filters for question in asked):
            numbers = [number for number, question in enumerate(asked) if question.filters == filters]
            allowed = self._selection.allowed(filters)
            matching = pictures if allowed is None else int(allowed.sum())
            looked_at = self._searcher.looked_at(matching, filtered=allowed is not None)
            if not matching:
                found |= dict.fromkeys(numbers, Ranked((), None, pictures, 0, 0))
            elif filters.fold:
                found |= {number: self._folded(asked[number], allowed, matching) for number in numbers}
            else:
                count = max(asked[number].count for number in numbers)
                texts = _together([asked[number].text for number in numbers])
                results = self._searcher.pictures_of(texts, count, allowed)
                for number, result in zip(numbers, results, strict=True):
                    hits = tuple(result.hits[: asked[number].count])
                    found[number] = Ranked(hits, _mean(result), pictures, matching, looked_at)
        return [found[number] for number in range(len(asked))]

    def _folded(self, question: Question, allowed: Mask | None, matching: int) -> Ranked:
        """Look at more and more of the nearest pictures, until enough of them are no near-duplicates of each other."""
        most = min(matching, self._searcher.depth or _MOST_FOLDED)
        looked_at = self._searcher.depth or min(2 * question.count, most)
        while True:
            (result,) = self._searcher.pictures_of(question.text, looked_at, allowed)
            groups = self._selection.groups([hit.row for hit in result.hits])
            shown = folded(groups)
            if len(shown) >= question.count or looked_at >= most:
                hits = tuple(result.hits[place] for place in shown[: question.count])
                kept = {result.hits[place].row: groups[place] for place in shown[: question.count]}
                return Ranked(hits, _mean(result), len(self.index.keys), matching, most, kept)
            looked_at = min(4 * looked_at, most)


def _mean(result: SearchResult) -> float | None:
    return result.hits[0].score - result.stands_out if result.hits else None


def _together(texts: Sequence[Texts]) -> Texts:
    """Put batches of one text together. Of a token-wise model some are shorter; what is added does not count."""
    counted = pad_sequence([each.counted[0] for each in texts], batch_first=True)
    if texts[0].vectors.ndim == 2:
        return Texts(torch.cat([each.vectors for each in texts]), counted)
    return Texts(pad_sequence([each.vectors[0] for each in texts], batch_first=True), counted)
