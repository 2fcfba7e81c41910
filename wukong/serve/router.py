"""Ask the shards of a search, and merge what they answer; say which of them did not.

An answer waits for a shard at most some seconds. A shard that fails, or that is silent and does not even say what it
holds, is lost: it is not asked any more, so that no later answer waits for it. It is tried again each second.
"""

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from torch import Tensor

from wukong.crawl.uploads import RefusedError
from wukong.runtime.language import _, joined
from wukong.serve.filters import folded
from wukong.serve.search import DIGITS
from wukong.serve.served_shard import PICTURES_OF_A_CAPTION, Caption, Description, Item, Question, Ranked, Shard

log = logging.getLogger(__name__)

SECONDS = 3.0
"""How long an answer waits for a shard."""
_TRIED_AGAIN = 1.0
_REMEMBERED = 0.9
"""Weight of the past in the mean of a shard's seconds."""

_KNOWN = 10_000
"""Pictures whose place is remembered: their files are asked for after they were found."""

T = TypeVar("T")
_Ask = Callable[[int, Shard], Coroutine[Any, Any, T]]
"""Asks a shard, with its number."""


@dataclass(frozen=True)
class At:
    """A picture of the collection: the number of its shard, and what is shown of it."""

    shard: int
    item: Item


@dataclass(frozen=True)
class Hit:
    """A picture that was found, and its similarity, -1 to 1."""

    at: At
    score: float


@dataclass(frozen=True)
class Found:
    """What a text finds in all shards that answered.

    Attributes:
        hits: pictures of the ranks that were asked for, the best first.
        more: whether there are pictures behind them.
        stands_out: by how much the best score exceeds the mean score of pictures in general; None if there is none.
        matching: how many pictures pass the filters.
        looked_at: how many of these were ranked.
        missing: the numbers of the shards that did not answer.
    """

    hits: tuple[Hit, ...]
    more: bool
    stands_out: float | None
    matching: int
    looked_at: int
    missing: tuple[int, ...]


@dataclass(frozen=True)
class Near:
    """Captions and pictures that are near to a picture, and the numbers of the shards that did not answer."""

    captions: tuple[Caption, ...]
    pictures: tuple[Hit, ...]
    missing: tuple[int, ...]


@dataclass
class State:
    """What is known of a shard.

    Attributes:
        description: what it holds; None until it has said so.
        reason: why it is lost; empty while it answers.
        since: when that changed, in seconds since 1970.
        seconds: of its searches, a mean in which the last ones weigh most; None before the first.
        failures: how often it was lost, or did not answer in time.
    """

    description: Description | None = None
    reason: str = ""
    since: float = field(default_factory=time.time)
    seconds: float | None = None
    failures: int = 0


@dataclass(frozen=True)
class _Answers(Generic[T]):
    """What shards answered, by their numbers."""

    given: Mapping[int, T]
    missing: tuple[int, ...]


class Router:
    """Asks shards.

    Args:
        shards: the shards, in the order of the collection.
        seconds: how long an answer waits for one; None for as long as it takes, as within one process.
    """

    def __init__(self, shards: Sequence[Shard], seconds: float | None = SECONDS) -> None:
        self.shards, self.seconds = tuple(shards), seconds
        self.states = tuple(State() for _ in shards)
        self._tries: dict[int, asyncio.Task[None]] = {}
        self._known: dict[str, At] = {}

    def close(self) -> None:
        """Try no shard again."""
        for each in self._tries.values():
            each.cancel()

    async def describe(self, *, again: bool = False) -> Mapping[int, Description]:
        """Return what the shards hold that have said so, by their numbers.

        Args:
            again: whether those are asked that have said it.
        """
        unknown = [n for n, each in enumerate(self.states) if (again or each.description is None) and not each.reason]
        if unknown:
            with suppress(RefusedError):
                await self._ask(lambda _, shard: shard.describe(), unknown)
        return {n: state.description for n, state in enumerate(self.states) if state.description is not None}

    async def search(self, question: Question, first: int, last: int) -> Found:
        """Find the pictures for a text.

        Args:
            question: the text, and how many pictures each shard finds: one more than ``last``, to see whether there are
                more.
            first: how many of the best are left out.
            last: the last rank that is returned, from 1.

        Raises:
            RefusedError: (503) no shard answers, or too many questions wait.
        """
        found = await self._ask(lambda _, shard: shard.search(question))
        ranked = sorted((-hit.score, number, hit.row) for number, each in found.given.items() for hit in each.hits)
        if question.filters.fold:
            groups = (found.given[number].groups[row] for _, number, row in ranked)
            ranked = [ranked[place] for place in folded(groups)]
        hits, lost = await self._shown([(-score, number, row) for score, number, row in ranked[first:last]])
        return Found(
            hits=hits,
            more=len(ranked) > last,
            stands_out=_stands_out(found.given.values(), -ranked[0][0]) if ranked else None,
            matching=sum(each.matching for each in found.given.values()),
            looked_at=sum(each.looked_at for each in found.given.values()),
            missing=tuple(sorted({*found.missing, *lost})),
        )

    async def near(self, picture: Tensor, count: int) -> Near:
        """Find captions and pictures for an encoded picture, [d] or [tokens, d]; errors as of ``search``."""
        found = await self._ask(lambda _, shard: shard.near(picture, count))
        captions: dict[str, Caption] = {}
        for each in (caption for answer in found.given.values() for caption in answer.captions):
            known = captions.get(each.text, Caption(each.text, each.score, ()))
            pictures = (*known.pictures, *each.pictures)[:PICTURES_OF_A_CAPTION]
            captions[each.text] = Caption(each.text, max(known.score, each.score), tuple(dict.fromkeys(pictures)))
        best = sorted(captions.values(), key=lambda caption: -caption.score)
        ranked = sorted((-hit.score, number, hit.row) for number, each in found.given.items() for hit in each.pictures)
        hits, lost = await self._shown([(-score, number, row) for score, number, row in ranked[:count]])
        return Near(tuple(best[:count]), hits, tuple(sorted({*found.missing, *lost})))

    async def find(self, key: str) -> At:
        """Look up a picture of the collection.

        Raises:
            RefusedError: (404) there is none with this key; (503) a shard that may have it does not answer.
        """
        if known := self._known.get(key):
            return known
        found = await self._ask(lambda _, shard: shard.find(key))
        for number, item in found.given.items():
            if item is not None:
                return At(number, item)
        if found.missing:
            names = joined((self.name(number) for number in found.missing), ", ")
            raise RefusedError(
                503, _("the picture may be in a part of the index that does not answer ({names})").format(names=names)
            )
        raise RefusedError(404, _("the collection has no picture with this key: search for one"))

    async def vectors(self, at: At) -> Tensor:
        """Read the stored vectors of a picture, [d] or [tokens, d]; errors as of ``search``."""
        found = await self._ask(lambda _, shard: shard.vectors(at.item.row), [at.shard])
        return found.given[at.shard]

    async def spread(self, count: int) -> list[At]:
        """Return some pictures, spread evenly over the shards that answer."""
        held = [(number, each.pictures) for number, each in sorted((await self.describe()).items())]
        total = sum(pictures for _, pictures in held)
        wanted = [place * total // min(count, total) for place in range(min(count, total))]
        places, start = [], 0
        for number, pictures in held:
            places += [(0.0, number, row - start) for row in wanted if start <= row < start + pictures]
            start += pictures
        return [hit.at for hit in (await self._shown(places))[0]]

    def name(self, number: int) -> str:
        """What a shard is called in messages."""
        return _("shard {number} of {count}").format(number=number + 1, count=len(self.shards))

    async def _shown(self, places: Sequence[tuple[float, int, int]]) -> tuple[tuple[Hit, ...], tuple[int, ...]]:
        """Look up what is shown of some pictures (score, shard, row), but those of a shard that does not answer now."""
        rows: dict[int, list[int]] = defaultdict(list)
        for _score, number, row in places:
            rows[number].append(row)
        if not rows:
            return (), ()
        found = await self._ask(lambda number, shard: shard.items(rows[number]), sorted(rows))
        at = {(number, item.row): At(number, item) for number, each in found.given.items() for item in each}
        self._known |= {each.item.key: each for each in at.values()}
        while len(self._known) > _KNOWN:
            del self._known[next(iter(self._known))]
        hits = (Hit(at[number, row], score) for score, number, row in places if (number, row) in at)
        return tuple(hits), found.missing

    async def _ask(self, ask: _Ask[T], numbers: Sequence[int] | None = None) -> _Answers[T]:
        """Ask shards, all if none are named.

        Raises:
            RefusedError: (503) none of them answers; or what a shard refuses.
        """
        asked = range(len(self.shards)) if numbers is None else numbers
        tasks = {number: asyncio.create_task(self._timed(ask, number)) for number in asked if not self._lost(number)}
        try:
            if tasks:
                await asyncio.wait(tasks.values(), timeout=self.seconds)
            given: dict[int, T] = {}
            for number, task in tasks.items():
                if not task.done():
                    self._failed(number, self._late())
                elif (error := task.exception()) is None:
                    given[number] = task.result()
                elif isinstance(error, RefusedError):
                    raise error
                else:
                    self._failed(number, f"{type(error).__name__}: {error}", error)
        finally:
            for task in tasks.values():
                task.cancel()
        if not given:
            late = self._late()
            reasons = {number: self.states[number].reason or late for number in asked}
            names = joined((joined((self.name(n), why), ": ") for n, why in reasons.items()), "; ")
            raise RefusedError(
                503, _("no part of the index answers, so nothing can be searched now ({names})").format(names=names)
            )
        return _Answers(given, tuple(number for number in asked if number not in given))

    async def _timed(self, ask: _Ask[T], number: int) -> T:
        began = time.perf_counter()
        answer = await ask(number, self.shards[number])
        state, took = self.states[number], time.perf_counter() - began
        if isinstance(answer, Description):
            state.description = answer
        elif isinstance(answer, Ranked):
            state.seconds = took if state.seconds is None else _REMEMBERED * state.seconds + (1 - _REMEMBERED) * took
        return answer

    def _late(self) -> str:
        return _("it did not answer within {seconds:g} s").format(seconds=self.seconds or 0)

    def _lost(self, number: int) -> bool:
        return bool(self.states[number].reason)

    def _failed(self, number: int, reason: str, error: BaseException | None = None) -> None:
        """Remember that a shard gave no answer, and try it in the background. One that raised an error is lost."""
        self.states[number].failures += 1
        if error is not None:
            self._lose(number, reason, error)
        if number not in self._tries or self._tries[number].done():
            self._tries[number] = asyncio.create_task(self._try(number, reason))

    def _lose(self, number: int, reason: str, error: BaseException) -> None:
        state = self.states[number]
        if not state.reason:
            log.warning("%s is lost: %s", self.name(number), reason, exc_info=error)
            state.reason, state.since = reason, time.time()

    async def _try(self, number: int, reason: str) -> None:
        """Ask a shard what it holds until it says so; if it does at once, it was only slow."""
        state = self.states[number]
        while True:
            began = time.monotonic()
            try:
                async with asyncio.timeout(self.seconds):
                    state.description = await self.shards[number].describe()
            except Exception as error:  # noqa: BLE001 - whatever it is, the shard does not answer
                self._lose(number, reason, error)
                await asyncio.sleep(max(0.0, _TRIED_AGAIN - (time.monotonic() - began)))
                continue
            if state.reason:
                log.warning("%s answers again", self.name(number))
                state.reason, state.since = "", time.time()
            return


def _stands_out(found: Collection[Ranked], best: float) -> float:
    """Compare the best score with the mean of all shards', each of which counts as much as it has pictures."""
    means = [(each.mean, each.pictures) for each in found if each.mean is not None]
    mean = sum(mean * pictures for mean, pictures in means) / sum(pictures for _, pictures in means)
    return round(best - mean, DIGITS)
