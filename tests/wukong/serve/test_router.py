"""Shards and what a router makes of their answers, against one index and a comparison of everything in numpy."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import drawn
import numpy as np
import pytest
import torch
from search_site import served

from wukong.crawl.uploads import Limits, RefusedError
from wukong.errors import DataError
from wukong.evaluate.model import OwnModel
from wukong.publish import superseded
from wukong.serve import collection, encode, index, recall, search, shard, start
from wukong.serve.collection import Collection
from wukong.serve.filters import Filters
from wukong.serve.router import Router
from wukong.serve.search import Searcher
from wukong.serve.served_shard import LocalShard
from wukong.serve.service import Service
from wukong.store import storage
from wukong.store.manifest import Manifest

SECONDS = 2.0
EACH = 50
QUERY = drawn.QUERIES[0]
Made = tuple[Collection, OwnModel, Manifest]


@pytest.fixture(scope="module", params=["global", "token"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """150 pictures of noise in three shards."""
    root = tmp_path_factory.mktemp("drawn")
    model = drawn.model(request.param)
    found = collection.of(drawn.pictures(root / "filter", shards=3).uri)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encode, "SHARD_PICTURES", EACH)
        return found, model, encode.build(found, model, storage.from_path(root / "indexes"))


class Failing:
    """A shard that answers, or is silent, or raises an error, in the words of ``wrong``."""

    def __init__(self, shard: LocalShard) -> None:
        self.shard, self.wrong, self.asked = shard, "", 0

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        async def ask(*arguments: object) -> Any:
            self.asked += 1
            if self.wrong == "silent":
                await asyncio.sleep(60)
            if self.wrong == "full":
                raise RefusedError(503, "too many requests wait")
            if self.wrong == "slow":
                await asyncio.sleep(3 * SECONDS * (name != "describe"))
            elif self.wrong:
                raise DataError(f"it is {self.wrong}")
            return await getattr(self.shard, name)(*arguments)

        return ask


@pytest.fixture(scope="module")
def whole(made: Made, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """An index of the same pictures in one shard."""
    found, model, _ = made
    return found, model, encode.build(found, model, storage.from_path(tmp_path_factory.mktemp("whole")))


def local(opened: index.Index, model: OwnModel) -> LocalShard:
    return LocalShard(Searcher(opened, model), ThreadPoolExecutor(1), ThreadPoolExecutor(1), 256)


@pytest.fixture
def failing(made: Made) -> list[Any]:
    _, model, found = made
    return [Failing(local(index.open_index(found, model, n), model)) for n in range(index.shards(found))]


@pytest.fixture(params=[60.0])
def service(request: pytest.FixtureRequest, made: Made, failing: Sequence[Any]) -> Iterator[Service]:
    """One that waits for a shard however busy this machine is, if a test does not say another time."""
    opened = Service(*made, Limits(), failing, request.param)
    yield opened
    opened.close()


def test_shards_hold_each_picture_once_and_answer_as_one_index(
    made: Made, whole: Made, service: Service, failing: Sequence[Any]
) -> None:
    alone, within = Service(*whole, Limits()), Service(*made, Limits())
    assert (len(alone.router.shards), len(within.router.shards)) == (1, 3)
    held = [list(each.shard.index.keys) for each in failing]
    assert [len(keys) for keys in held] == [EACH] * 3
    assert [key for keys in held for key in keys] == list(index.open_index(whole[2], whole[1]).keys)

    async def answers(of: Service) -> tuple[list[object], list[float | None]]:
        asked = [await of.search(query, 20, page) for query in drawn.QUERIES[:8] for page in (1, 2, 7)]
        # Each shard rounds the mean of its scores.
        found: list[object] = [each.model_copy(update={"stands_out": 0.0}) for each in asked]
        stored = await of.stored("00000000000000000101")
        found += [await of.captions(stored, 12), await of.spread(7), sorted(await of.examples(3))]
        found.append(await of.urls_of(["00000000000000000003"]))
        return found, [each.stands_out for each in asked]

    one = asyncio.run(answers(alone))
    for each in (service, within):
        several = asyncio.run(answers(each))
        assert several[0] == one[0]
        assert several[1] == pytest.approx(one[1], abs=1.5e-4)
    alone.close()
    within.close()


def test_near_duplicates_in_several_shards_are_folded(whole: Made, failing: Sequence[Any], made: Made) -> None:
    """A third of the pictures has no group; the others are in one of twelve, which are in all shards."""
    drawn_groups = random.Random(0)
    groups = [drawn_groups.choice([-1, drawn_groups.randrange(12), drawn_groups.randrange(12)]) for _ in range(150)]
    for number, each in enumerate(failing):
        known = {"group": np.array(groups[number * EACH : (number + 1) * EACH], np.int64)}
        each.shard = local(replace(each.shard.index, columns=known), made[1])
    service, alone = Service(*made, Limits(), failing, 60.0), Service(*whole, Limits())
    row_of = {key: row for row, key in enumerate(index.open_index(whole[2], whole[1]).keys)}

    async def ranked(of: Service, pages: int, **asked: Any) -> list[Any]:
        answers = [await of.search(QUERY, 20, page, Filters(**asked)) for page in range(1, pages + 1)]
        return [hit for each in answers for hit in each.results]

    expected, seen = [], set()
    for hit in asyncio.run(ranked(alone, 8)):
        if (group := groups[row_of[hit.picture]]) not in seen:
            expected.append(hit)
        seen |= {group} - {-1}
    assert 50 < len(expected) < 80
    assert asyncio.run(ranked(service, 4, fold=True)) == expected
    service.close()
    alone.close()


def test_pages_are_the_ranks_of_every_picture_compared(whole: Made, service: Service) -> None:
    _, model, found = whole
    opened = index.open_index(found, model)
    text = model.saved.encode_text([QUERY])
    if model.token_wise:
        assert opened.picture_tokens is not None
        pictures = opened.picture_tokens.read(torch.arange(len(opened.keys))).numpy()
        best = np.einsum("npd,td->npt", pictures, text.vectors[0].numpy()).max(1)
        scores = best[:, text.counted[0].numpy()].mean(1)
    else:
        scores = opened.picture_vectors.read().numpy() @ text.vectors[0].numpy()
    expected = [opened.keys[row] for row in np.lexsort((np.arange(150), -scores.round(4)))]

    async def pages() -> list[Any]:
        return [await service.search(QUERY, 40, page) for page in (1, 2, 3, 4)]

    answers = asyncio.run(pages())
    assert [hit.picture for each in answers for hit in each.results] == expected
    assert [(each.page, each.more, each.matching) for each in answers] == [
        (1, True, 150), (2, True, 150), (3, True, 150), (4, False, 150),
    ]  # fmt: skip


def test_pages_among_candidates_are_parts_of_one_ranking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There are so few of them that more would change the ranks, if other pages asked for more."""
    pytest.importorskip("faiss")
    monkeypatch.setattr(shard, "EXACT_BELOW", 100)
    monkeypatch.setattr(search, "_RANKS", 30)
    monkeypatch.setattr(recall, "MOST_CANDIDATES", 60)
    model = drawn.model("global")
    found = collection.of(drawn.pictures(tmp_path / "filter", 300, 1).uri)
    made = encode.build(found, model, storage.from_path(tmp_path / "indexes"))
    service = Service(found, model, made, Limits())

    async def shown(size: int, last: int) -> list[str]:
        pages = [await service.search(QUERY, size, page) for page in range(1, last + 1)]
        assert {(each.matching, each.looked_at) for each in pages} == {(300, 60)}
        return [hit.picture for each in pages for hit in each.results]

    whole = asyncio.run(shown(30, 1))
    assert len(set(whole)) == 30
    assert asyncio.run(shown(5, 6)) == asyncio.run(shown(1, 30)) == whole
    service.close()


def test_a_page_that_is_too_far_is_refused(made: Made, service: Service) -> None:
    depth = 200 if made[1].token_wise else 1_000
    with pytest.raises(RefusedError, match=f"page 11 is too far: only the first {depth} pictures are ranked"):
        asyncio.run(service.search(QUERY, depth // 10, 11))
    with pytest.raises(RefusedError, match=f"{depth + 1} pictures are too many: only the first {depth} are ranked"):
        asyncio.run(service.search(QUERY, depth + 1))


@pytest.mark.parametrize("made", ["token"], indirect=True)
@pytest.mark.parametrize("service", [SECONDS], indirect=True)
@pytest.mark.parametrize("wrong", ["silent", "damaged"])
def test_a_lost_shard_is_named_within_the_time_and_then_not_waited_for(
    service: Service, failing: Sequence[Any], wrong: str
) -> None:
    whole = asyncio.run(service.search(QUERY, 150))
    mine = set(failing[1].shard.index.keys)

    async def ask() -> None:
        failing[1].wrong = wrong
        began = time.monotonic()
        first = await service.search(QUERY, 150)
        assert time.monotonic() - began < 2 * SECONDS + 1
        assert first.missing == ["shard 2 of 3"]
        assert first.results == [hit for hit in whole.results if hit.picture not in mine]
        assert first.matching == 150 - len(mine)
        while not service.router.states[1].reason:
            await asyncio.sleep(0.01)
        asked = failing[1].asked
        assert (await service.search(QUERY, 3)).missing == ["shard 2 of 3"]
        assert failing[1].asked - asked <= 1, "it is tried, but no question waits for it"
        with pytest.raises(RefusedError, match=r"may be in a part of the index that does not answer \(shard 2 of 3\)"):
            await service.stored("no such key")
        failing[1].wrong = ""
        while service.router.states[1].reason:
            await asyncio.sleep(0.05)
        assert await service.search(QUERY, 150) == whole

    asyncio.run(ask())


@pytest.mark.parametrize("made", ["token"], indirect=True)
@pytest.mark.parametrize("service", [SECONDS], indirect=True)
def test_a_shard_that_is_only_slow_is_asked_again(service: Service, failing: Sequence[Any]) -> None:
    async def ask() -> None:
        failing[0].wrong = "slow"
        assert (await service.search(QUERY, 3)).missing == ["shard 1 of 3"]
        failing[0].wrong = ""
        assert (await service.search(QUERY, 3)).missing == []
        assert (service.router.states[0].reason, service.router.states[0].failures) == ("", 1)

    asyncio.run(ask())


def test_what_a_shard_refuses_is_refused(service: Service, failing: Sequence[Any]) -> None:
    failing[2].wrong = "full"
    with pytest.raises(RefusedError, match="too many requests wait") as refused:
        asyncio.run(service.search(QUERY, 3))
    assert refused.value.status == 503


def test_without_any_shard_it_is_said_that_nothing_can_be_searched(service: Service, failing: Sequence[Any]) -> None:
    for each in failing:
        each.wrong = "damaged"
    with served(service) as site:
        for _ in range(2):
            refused = site.ask("/api/search", q=QUERY)
            assert refused.status == 503
            assert refused.json["error"].startswith("no part of the index answers")
            assert "shard 3 of 3: DataError: it is damaged" in refused.json["error"]
        page = site.ask("/", q=QUERY)
        assert (page.status, "no part of the index answers" in page.text) == (503, True)
        assert site.ask("/about").status == 200
        metrics = site.ask("/metrics").text
        assert 'wukong_serve_shard_up{shard="3"} 0.0' in metrics


def test_json_page_and_metrics_name_what_is_missing(service: Service, failing: Sequence[Any]) -> None:
    with served(service) as site:
        assert site.ask("/api/search", q=QUERY).json["missing"] == []
        failing[1].wrong = "damaged"
        assert site.ask("/api/search", q=QUERY).json["missing"] == ["shard 2 of 3"]
        text = site.ask("/", q=QUERY).text
        assert "A part of the index did not answer" in text and "shard 2 of 3" in text
        about = site.ask("/about").text
        assert about.count('<th scope="row"') > 5 and "lost" in about
        metrics = site.ask("/metrics").text.splitlines()
        assert 'wukong_serve_shard_up{shard="1"} 1.0' in metrics and 'wukong_serve_shard_up{shard="2"} 0.0' in metrics
        assert 'wukong_serve_shard_pictures{shard="2"} 50.0' in metrics
        assert 'wukong_serve_shard_failures_total{shard="2"} 1.0' in metrics


def test_shards_of_another_model_are_refused(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    other = drawn.model("global" if made[1].token_wise else "token").saved
    monkeypatch.setattr("wukong.load", lambda *_, **__: other)
    (wrong,) = start.shards("models:/other@champion", made[2].uri, [0]).values()
    assert isinstance(wrong, DataError) and "was made with another model than models:/other@champion" in str(wrong)


def test_of_the_shards_that_are_asked_for_those_that_are_whole_are_loaded(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, model, found = made
    monkeypatch.setattr("wukong.load", lambda *_, **__: model.saved)
    uri = superseded.shard_uri(found.uri, superseded.listed(found.uri).keys[1])
    file = Path(uri.removeprefix("file://"), "pictures.f16")
    file.rename(file.with_suffix(".kept"))
    try:
        opened = start.shards("m", found.uri, [0, 1, 2])
    finally:
        file.with_suffix(".kept").rename(file)
    assert isinstance(opened[0], LocalShard) and isinstance(opened[2], LocalShard)
    assert "shard 2 of 3" in str(opened[1]) and "is damaged" in str(opened[1])


def test_a_router_of_nothing_known_asks_nobody_twice(failing: Sequence[Any]) -> None:
    router = Router(failing, SECONDS)

    async def describe() -> list[int]:
        await router.describe()
        await router.describe()
        return [each.asked for each in failing]

    assert asyncio.run(describe()) == [1, 1, 1]
