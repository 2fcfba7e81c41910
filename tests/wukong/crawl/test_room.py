"""Bytes in flight: never more than there is room for, nobody waits for ever, and the process's memory shows it."""

import asyncio
import gzip
import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from crawl_samples import HOST, make_config
from hypothesis import given, settings
from hypothesis import strategies as st
from loopback_web import Web, answering, raw
from pydantic import ValidationError

from wukong.crawl import fetch
from wukong.crawl.addresses import ConnectTo
from wukong.crawl.fetch import Fetcher, RequestOptions
from wukong.crawl.room import Room

steps = st.lists(st.tuples(st.integers(0, 120), st.lists(st.integers(0, 130), max_size=4), st.booleans()), max_size=30)


@given(steps, st.randoms(use_true_random=False))
@settings(max_examples=150)
def test_no_more_is_held_than_there_is_and_everybody_gets_it(
    requests: list[tuple[int, list[int], bool]], order: random.Random
) -> None:
    """Requests that take bytes, grow or give up and come again, and may be cancelled at any time."""
    size, held_now, most, finished = 100, 0, 0, 0

    async def one(room: Room, first: int, sizes: list[int]) -> None:
        nonlocal held_now, most, finished
        wanted = first
        for later in [*sizes, 0]:
            held = await room.take(wanted)
            held_now += held.size
            most = max(most, held_now)
            try:
                await asyncio.sleep(0)
                before = held.size
                if held.grow(later):
                    held_now += held.size - before
                    most = max(most, held_now)
                    await asyncio.sleep(0)
            finally:
                held_now -= held.size
                held.release()
            wanted = later
        finished += 1

    async def run() -> None:
        room = Room(size)
        tasks = [asyncio.create_task(one(room, first, sizes)) for first, sizes, _ in requests]
        for task, (_, _, cancelled) in zip(tasks, requests, strict=True):
            for _ in range(order.randrange(4)):
                await asyncio.sleep(0)
            if cancelled:
                task.cancel()
        async with asyncio.timeout(30):
            await asyncio.gather(*tasks, return_exceptions=True)
            assert (await room.take(size)).size == size, "all of it is free again"

    asyncio.run(run())
    assert most <= size
    assert held_now == 0
    assert finished >= sum(not cancelled for _, _, cancelled in requests)


def test_who_asks_first_gets_it_first() -> None:
    async def run() -> list[int]:
        room, order = Room(10), []
        held = await room.take(6)

        async def taking(size: int) -> None:
            taken = await room.take(size)
            order.append(size)
            taken.release()

        tasks = [asyncio.create_task(taking(size)) for size in (10, 1, 9)]
        await asyncio.sleep(0)
        assert not held.grow(7), "others wait"
        held.release()
        await asyncio.gather(*tasks)
        return order

    assert asyncio.run(run()) == [10, 1, 9]


BODY = random.Random(0).randbytes(2**20) * 8
ANSWERS = {
    "length": answering(BODY),
    "chunked": raw(
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
        + b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)
    ),
    "gzip": answering(gzip.compress(bytes(8 * 2**20)), Content_Encoding="gzip"),
}

FETCHING = """
import asyncio, json, sys
from pathlib import Path
from wukong.config.crawl import Crawl
from wukong.crawl.addresses import ConnectTo
from wukong.crawl import fetch
from wukong.crawl.fetch import Fetcher

fetch.BYTES_IN_FLIGHT = 32 * 2**20
port, settings = int(sys.argv[1]), json.loads(sys.argv[2])

def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024

async def run():
    fetcher = Fetcher(Crawl.model_validate(settings), ConnectTo({"images.test": ("127.0.0.1", port)}))
    async def one(number):
        async with fetcher.get(f"http://images.test/{number}") as response:
            await asyncio.sleep(0.05)
            return len(response.body)
    sizes = await asyncio.gather(*[one(number) for number in range(24)])
    fetcher.close()
    return sizes

before = peak()
sizes = asyncio.run(run())
print(json.dumps([peak() - before, sizes]))
"""


@pytest.mark.parametrize("answer", ANSWERS)
def test_large_answers_do_not_take_more_memory_than_allowed(web: Web, answer: str) -> None:
    """24 answers of 8 MiB at the same time, which would take 192 MiB, with room for 32 MiB."""
    web.fallback = ANSWERS[answer]
    config = make_config(
        max_bytes=16 * 2**20,
        concurrency=24,
        max_seconds=60.0,
        politeness={"per_host_concurrency": 24},
    )
    done = subprocess.run(
        [sys.executable, "-c", FETCHING, str(web.port), config.model_dump_json()],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[3],
    )
    assert done.returncode == 0, done.stderr
    mib, sizes = json.loads(done.stdout)
    assert sizes == [8 * 2**20] * 24, "all of them arrive"
    assert mib < 80


@pytest.fixture
def little_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "BYTES_IN_FLIGHT", 16 * 2**20)


def fetched(web: Web, count: int, **changes: Any) -> list[int]:
    async def run() -> list[int]:
        config = make_config(politeness={"per_host_concurrency": 64}, **changes)
        fetcher = Fetcher(config, ConnectTo({HOST: web.connect_to}))

        async def one(number: int) -> int:
            async with fetcher.get(f"http://{HOST}/{number}") as response:
                await asyncio.sleep(0.01)
                return len(response.body)

        try:
            return await asyncio.gather(*[one(number) for number in range(count)])
        finally:
            fetcher.close()

    return asyncio.run(run())


def test_usual_answers_are_requested_once(web: Web) -> None:
    web.fallback = answering(bytes(200_000))
    assert fetched(web, 100) == [200_000] * 100
    assert set(web.requests.values()) == {1}


@pytest.mark.usefixtures("little_room")
def test_an_answer_without_room_is_requested_again(web: Web) -> None:
    web.fallback = answering(bytes(6 * 2**20))
    assert fetched(web, 8, max_bytes=8 * 2**20) == [6 * 2**20] * 8
    requests = sum(count for path, count in web.requests.items() if path != "/robots.txt")
    assert 8 < requests <= 24


@pytest.mark.usefixtures("little_room")
def test_small_answers_do_not_wait_for_each_other(web: Web) -> None:
    """More requests at a time than there is room for at their beginning."""
    web.fallback = answering(bytes(1000))
    assert fetched(web, 200, concurrency=200, max_bytes=8 * 2**20) == [1000] * 200


def test_the_largest_image_must_fit() -> None:
    with pytest.raises(ValidationError, match="max_bytes"):
        make_config(max_bytes=fetch.BYTES_IN_FLIGHT + 1)


@pytest.mark.usefixtures("little_room")
def test_a_server_that_changes_its_length_is_not_asked_for_ever(web: Web) -> None:
    sizes = iter(range(2, 1000))

    async def growing(path: str, writer: asyncio.StreamWriter) -> None:
        await answering(bytes(min(7, next(sizes)) * 2**20))(path, writer)

    web.fallback = growing
    options = {"max_bytes": 8 * 2**20}
    assert len(fetched(web, 6, **options)) == 6
    assert max(count for path, count in web.requests.items() if path != "/robots.txt") <= 3


@pytest.mark.usefixtures("little_room")
def test_room_is_given_back_after_every_failure(web: Web) -> None:
    async def run() -> int:
        config = make_config(max_bytes=8 * 2**20, max_seconds=1.0)
        fetcher = Fetcher(config, ConnectTo({HOST: web.connect_to}))

        async def one(path: str) -> None:
            async with fetcher.get(f"http://{HOST}{path}", RequestOptions(obey_robots=False)):
                raise RuntimeError("while it is used")

        await asyncio.gather(*[one(f"/{name}/{n}") for name in handlers for n in range(9)], return_exceptions=True)
        fetcher.close()
        return fetcher._room._free

    async def silent(_path: str, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 3000000\r\n\r\n" + bytes(2_000_000))
        await asyncio.sleep(5)

    handlers = {
        "whole": answering(bytes(3_000_000)),
        "too-large": answering(bytes(9 * 2**20)),
        "missing": answering(b"", status="404 Not Found"),
        "cut": raw(b"HTTP/1.1 200 OK\r\nContent-Length: 3000000\r\n\r\n" + bytes(2_000_000)),
        "silent": silent,
    }

    async def fallback(path: str, writer: asyncio.StreamWriter) -> None:
        await handlers[path.split("/")[1]](path, writer)

    web.fallback = fallback
    assert asyncio.run(run()) == 16 * 2**20
