"""A search in shards under Ray Serve: the answers of one process, a replica that is lost, another index meanwhile."""

import asyncio
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote

import pytest

from wukong.errors import ConfigError, DataError

PATIENCE = 180.0
SECONDS = 5.0


def test_arguments_that_make_no_sense_are_refused() -> None:
    from ray_jobs.serve import search

    given = {"model": "m", "data": "d", "index": "i"}
    with pytest.raises(ConfigError, match="shards: 0 is too few"):
        search({**given, "shards": 0})
    with pytest.raises(ConfigError, match=r"does not know \['shard'\]: give model, data and index, and perhaps"):
        search({**given, "shard": 2})


def test_each_deployment_reserves_what_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray import serve

    from ray_jobs.serve import search

    made: dict[str, dict[str, Any]] = {}

    def deployment(_: object, *, name: str, **options: Any) -> SimpleNamespace:
        made[name] = options
        return SimpleNamespace(bind=lambda *_: name)

    monkeypatch.setattr(serve, "deployment", deployment)
    given = {"model": "m", "data": "d", "index": "i", "memory": 1.5}
    search({**given, "shards": 2, "shard_replicas": 3, "shard_cpus": 4, "cpus": 1})
    assert set(made) == {"search", "shard-0", "shard-1"}
    assert made["search"]["ray_actor_options"] == {"num_cpus": 1, "num_gpus": 0}
    assert made["search"]["user_config"] == {"model": "m", "data": "d", "index": "i"}
    apart = {"label_selector": {"ray.io/node-group": "!headgroup"}}
    assert made["shard-1"]["ray_actor_options"] == {"num_cpus": 4, "memory": 1.5 * 2**30, **apart}
    assert made["shard-1"]["num_replicas"] == 3
    made.clear()
    search(given)
    assert set(made) == {"search"}
    assert made["search"]["ray_actor_options"] == {"num_cpus": 2, "num_gpus": 0, "memory": 1.5 * 2**30}


@pytest.mark.parametrize("shards", range(1, 12))
@pytest.mark.parametrize("deployments", range(1, 5))
def test_each_shard_is_held_once_and_evenly(shards: int, deployments: int) -> None:
    from ray_jobs.serve import _held

    if shards < deployments:
        with pytest.raises(DataError, match=f"has {shards} shards: start as many deployments"):
            _held(shards, deployments)
        return
    held = _held(shards, deployments)
    assert [number for each in held for number in each] == list(range(shards))
    assert max(map(len, held)) - min(map(len, held)) <= 1


def test_a_user_config_of_something_else_is_refused() -> None:
    from ray_jobs.serve import Search

    search = Search({"watch": 0.0, "model": "m", "data": "d", "index": "i"})
    with pytest.raises(ConfigError, match=r"does not know \['datta'\]"):
        asyncio.run(search.reconfigure({"datta": "x"}))


@pytest.fixture
def rebuilt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Writes a filter's output of so many shards at a place, with its index in shards, and returns the place."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "wukong" / "serve"))
    import drawn
    import searched

    from wukong.serve import encode, start
    from wukong.store import storage

    searched.model(tmp_path / "model", "global")
    monkeypatch.setattr(encode, "SHARD_PICTURES", 30)

    def make(shards: int, name: str = "data") -> str:
        made = drawn.pictures(tmp_path / f"of-{shards}", 30 * shards, shards)
        place = tmp_path / name
        if place.exists():
            storage.delete(storage.from_path(place))
        Path(made.uri.removeprefix("file://")).rename(place)
        start.indexed(str(tmp_path / "model"), str(place), str(tmp_path / "indexes"))
        return str(place)

    return make


async def asked(application: Any, path: str, query: str) -> tuple[int, Any]:
    """What an ASGI application answers, without a server."""
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    scope: dict[str, Any] = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
    }
    scope |= {"path": path, "raw_path": path.encode(), "query_string": query.encode(), "headers": [], "root_path": ""}
    await application(scope, receive, send)
    return sent[0]["status"], json.loads(b"".join(each.get("body", b"") for each in sent[1:]))


@pytest.mark.long
def test_another_user_config_is_searched_without_a_gap(tmp_path: Path, rebuilt: Callable[..., str]) -> None:
    """In this process, as Ray Serve calls a replica: what is left out is that of the arguments."""
    from ray_jobs.serve import Search

    first, second = rebuilt(2), rebuilt(1, "second")
    settings = {"model": str(tmp_path / "model"), "data": first, "index": str(tmp_path / "indexes"), "watch": 0.2}
    settings |= {"gpus": 0, "cpus": 1, "seconds": SECONDS, "shard_replicas": 1}

    async def change() -> list[tuple[int, int]]:
        search = Search(settings)
        await search.reconfigure({})
        found: list[tuple[int, int]] = []
        application = search.__serve_build_asgi_app__()

        async def until_pictures(count: int) -> None:
            ends = time.monotonic() + PATIENCE
            while not found or found[-1][1] != count:
                assert time.monotonic() < ends, found
                status, answer = await asked(application, "/api/search", f"q={quote('红')}")
                found.append((status, answer["matching"]))

        await until_pictures(60)
        await search.reconfigure({"data": str(tmp_path / "not there")})
        await search.reconfigure({"data": second})
        await until_pictures(30)
        await search.reconfigure({})
        await until_pictures(60)
        for task in search._tasks:
            task.cancel()
        return found

    assert {status for status, _ in asyncio.run(change())} == {200}


@pytest.fixture
def site(tmp_path: Path, rebuilt: Callable[..., str], local_ray: None) -> Iterator[Any]:
    """Two deployments over three shards."""
    from ray import serve
    from search_site import Server

    from ray_jobs.serve import search

    arguments = {
        "model": str(tmp_path / "model"), "data": rebuilt(3), "index": str(tmp_path / "indexes"), "cpus": 1,
        "shards": 2, "shard_cpus": 0.5, "seconds": SECONDS, "watch": 0.5,
    }  # fmt: skip
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    try:
        serve.run(search(arguments), route_prefix="/")
        yield Server(f"http://127.0.0.1:{port}")
    finally:
        serve.shutdown()


def until(true: Callable[[], object]) -> None:
    ends = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < ends
        time.sleep(0.1)


def kill(deployment: str) -> None:
    """End the replica of a deployment, as a lost machine does."""
    import ray

    (name,) = [
        each["name"] for each in ray.util.list_named_actors(all_namespaces=True) if f"#{deployment}#" in each["name"]
    ]
    ray.kill(ray.get_actor(name, namespace="serve"))


@pytest.mark.long
def test_shards_answer_as_one_process_and_a_lost_one_is_named(
    tmp_path: Path, rebuilt: Callable[..., str], site: Any
) -> None:
    import drawn
    from search_site import nearly, served

    from wukong.serve import start

    until(lambda: site.ask("/api/search", q="红").json.get("missing") == [])
    one = start.service(str(tmp_path / "model"), str(tmp_path / "data"), str(tmp_path / "indexes"))
    with served(one) as plain:
        for path, query in (
            ("/api/search", {"q": "红色", "top": 20, "page": 2}),
            ("/api/search", {"q": "红", "word": "第1"}),
            ("/api/captions", {"picture": f"{45:020d}"}),
            ("/api/captions", {"picture": "none"}),
            ("/api/search", {"q": "红", "source": "example.com"}),
            ("/", {"q": "红"}),
        ):
            here, there = plain.ask(path, **query), site.ask(path, **query)
            assert (here.status, here.body) == (there.status, there.body), path
    whole = site.ask("/api/search", q=drawn.QUERIES[0], top=90).json["results"]
    assert len(whole) == 90
    kill("shard-1")
    began = time.monotonic()
    with ThreadPoolExecutor(1) as other:  # at once: Ray soon starts another replica
        page = other.submit(site.ask, "/", q="红")
        found = site.ask("/api/search", q=drawn.QUERIES[0], top=90)
    assert time.monotonic() - began < 2 * SECONDS + 5
    assert (found.status, found.json["missing"]) == (200, ["shard 2 of 3", "shard 3 of 3"])
    assert found.json["results"] == nearly([hit for hit in whole if int(hit["picture"]) < 30])
    assert "A part of the index did not answer" in page.result().text
    until(lambda: site.ask("/api/search", q="红").json["missing"] == [])
    assert site.ask("/api/search", q=drawn.QUERIES[0], top=90).json["results"] == whole

    # Another index, while a client asks.
    answers: list[Any] = []
    ended = threading.Event()

    def ask() -> None:
        while not ended.is_set():
            answers.append(site.ask("/api/search", q="红", top=1))

    client = threading.Thread(target=ask)
    client.start()
    try:
        rebuilt(4)
        until(lambda: answers[-1].json.get("matching") == 120)
    finally:
        ended.set()
        client.join()
    assert {each.status for each in answers} == {200}
    assert {each.json["matching"] for each in answers} == {90, 120}
    assert all(each.json["missing"] == [] for each in answers)
