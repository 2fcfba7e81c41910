"""A new version of what is searched takes the place of the old one while clients ask, on a real server."""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import colours
import pytest
from search_site import LIMITS, Answer, Server, started

from wukong.evaluate.model import OwnModel
from wukong.serve import collection, encode
from wukong.serve.app import create_app
from wukong.serve.metrics import Metrics
from wukong.serve.service import Service
from wukong.serve.versions import Switch, Watch
from wukong.store import storage

PATIENCE = 60.0
KINDS = {"a.png": ("红", "蓝"), "b.png": ("绿", "黑")}


class Data:
    """A folder of pictures, and the services that were loaded of it."""

    def __init__(self, root: Path, model: OwnModel) -> None:
        self._root, self._model = root, model
        self.loaded: list[Service] = []
        self.closed: list[Service] = []
        self.may_load = threading.Event()
        self.may_load.set()
        self.looked = 0

    def write(self, *names: str) -> None:
        pictures = {name: colours.encoded(colours.picture(*KINDS[name])) for name in names}
        captions = {name: ["和".join(KINDS[name])] for name in names}
        colours.folder(self._root / "pictures", captions, pictures)

    def version(self) -> str:
        self.looked += 1
        return collection.of(str(self._root / "pictures")).digest

    def load(self) -> Service:
        assert self.may_load.wait(PATIENCE)
        found = collection.of(str(self._root / "pictures"))
        made = encode.build(found, self._model, storage.from_path(self._root / "indexes"))
        service = Service(found, self._model, made, LIMITS)
        close = service.close

        def closed() -> None:
            close()
            self.closed.append(service)

        service.close = closed  # type: ignore[method-assign]
        self.loaded.append(service)
        return service


@pytest.fixture
def data(tmp_path: Path) -> Data:
    made = Data(tmp_path, colours.model("global"))
    made.write("a.png")
    return made


@contextmanager
def watched(data: Data) -> Iterator[Server]:
    known, service = data.version(), data.load()
    watch = Watch(data.version, partial(asyncio.to_thread, data.load), 0.05, known)
    with started(Switch(partial(create_app, metrics=Metrics()), service, watch)) as server:
        yield server


def until(true: Callable[[], object]) -> None:
    ends = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < ends
        time.sleep(0.02)


def test_the_old_index_answers_until_the_new_one_is_loaded(data: Data) -> None:
    with watched(data) as server:
        answers: list[Answer] = []
        ended = threading.Event()

        def ask() -> None:
            while not ended.is_set():
                answers.append(server.ask("/api/search", q="绿黑"))

        clients = [threading.Thread(target=ask) for _ in range(3)]
        for client in clients:
            client.start()
        data.may_load.clear()
        data.write("b.png")
        looked, asked = data.looked, len(answers)
        until(lambda: data.looked > looked and len(answers) > asked + 5)
        assert server.ask("/api/about").json["pictures"] == 1
        data.may_load.set()
        until(lambda: server.ask("/api/about").json["pictures"] == 2)
        asked = len(answers)
        until(lambda: len(answers) > asked + 5)
        ended.set()
        for client in clients:
            client.join()
        assert {each.status for each in answers} == {200}
        found = [len(each.json["results"]) for each in answers]
        assert set(found) == {1, 2} and found[0] == 1 and found[-1] == 2
        assert answers[-1].json["results"][0]["captions"] == ["绿和黑"]
        until(lambda: data.closed == data.loaded[:1])
        metrics = server.ask("/metrics").text
        assert "wukong_serve_index_pictures 2.0" in metrics
        served = sum(each.status == 200 for each in answers)
        counted = next(line for line in metrics.splitlines() if 'requests_total{route="/api/search"' in line)
        assert float(counted.split()[1]) == served, "the metrics outlive a version"
    assert data.closed == data.loaded


def test_a_request_that_has_begun_ends_with_its_own_index(data: Data) -> None:
    with watched(data) as server:
        old = data.loaded[0]
        answer, waits = old.router.search, threading.Event()

        async def slow(*arguments: object) -> object:
            await asyncio.to_thread(waits.wait, PATIENCE)
            return await answer(*arguments)  # type: ignore[arg-type]

        old.router.search = slow  # type: ignore[method-assign,assignment]
        found: list[Answer] = []
        client = threading.Thread(target=lambda: found.append(server.ask("/api/search", q="绿黑")))
        client.start()
        data.write("b.png")
        until(lambda: server.ask("/api/about").json["pictures"] == 2)
        assert len(server.ask("/api/search", q="绿黑").json["results"]) == 2
        assert data.closed == []
        waits.set()
        client.join()
        assert (found[0].status, len(found[0].json["results"])) == (200, 1)
        until(lambda: data.closed == [old])


def test_what_cannot_be_loaded_is_said_once_and_the_old_index_answers(
    data: Data, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "wukong.serve.versions")
    with watched(data) as server:
        (data._root / "pictures" / "a.png").rename(data._root / "pictures" / "a.text")
        (data._root / "pictures" / "c.png").write_bytes(b"no picture")
        until(lambda: "the old index goes on answering" in caplog.text)
        looked = data.looked
        until(lambda: data.looked > looked + 3)
        assert server.ask("/api/search", q="红").status == 200
        (data._root / "pictures" / "a.text").rename(data._root / "pictures" / "a.png")
        data.write("b.png")
        until(lambda: server.ask("/api/about").json["pictures"] == 2)
    said = [record.message for record in caplog.records if "goes on answering" in record.message]
    assert len(said) == 1 and "no picture of" in said[0]


def test_before_the_first_index_is_loaded_it_is_said_so() -> None:
    with started(Switch(create_app)) as server:
        answer = server.ask("/api/search", q="红")
        assert (answer.status, answer.json["error"]) == (503, "the index is being loaded: try again in a minute")
