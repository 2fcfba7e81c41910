"""An application on a real server, uvicorn on loopback; the search page is over pictures of colours."""

import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import colours
import pytest
import uvicorn
from starlette.types import ASGIApp

from wukong.crawl.uploads import Limits
from wukong.serve import app, collection, encode
from wukong.serve.index import Index
from wukong.serve.listening import Protocol, listen
from wukong.serve.search import DIGITS
from wukong.serve.served_shard import LocalShard
from wukong.serve.service import Service
from wukong.store import storage

HOSTILE = """<script>alert(1)</script>"' onerror=alert(2) {{7*7}} </main>黑"""
LIMITS = Limits(upload_bytes=200_000, upload_seconds=1.0, pixels=4_000_000, labels=4, characters=60)


def nearly(answer: Any) -> Any:
    """What an answer is compared with: texts that are encoded together have scores that differ in the last digit."""
    if isinstance(answer, float):
        return pytest.approx(answer, abs=2 * 10**-DIGITS)
    if isinstance(answer, dict):
        return {name: nearly(value) for name, value in answer.items()}
    return [nearly(each) for each in answer] if isinstance(answer, list) else answer


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Any
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def text(self) -> str:
        return self.body.decode()


@dataclass(frozen=True)
class Server:
    address: str

    def ask(self, path: str, body: bytes | None = None, headers: dict[str, str] | None = None, **query: Any) -> Answer:
        url = f"{self.address}{path}" + (f"?{urlencode(query, doseq=True)}" if query else "")
        request = urllib.request.Request(url, body, headers or {}, method="POST" if body is not None else "GET")
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return Answer(answer.status, answer.headers, answer.read())
        except urllib.error.HTTPError as error:
            return Answer(error.code, error.headers, error.read())


@dataclass(frozen=True)
class Site(Server):
    service: Service

    @property
    def index(self) -> Index:
        """Of a service that has it in this process, as one shard."""
        (shard,) = self.service.router.shards
        assert isinstance(shard, LocalShard)
        return shard.index

    def captions_of(self, row: int) -> list[str]:
        return [self.index.captions[each] for each in self.index.captions_of[row]]

    @property
    def key_of_hostile(self) -> str:
        return next(key for row, key in enumerate(self.index.keys) if HOSTILE in self.captions_of(row))


@contextmanager
def running(root: Path, similarity: str = "token") -> Iterator[Site]:
    """Every pair of colours, with calibration; one picture has a hostile caption, one has none."""
    uri = colours.every_pair(root / "pictures")
    black = {"hostile.png": colours.encoded(colours.picture("黑")), "none.png": colours.encoded(colours.picture("黄"))}
    colours.folder(root / "pictures", {"hostile.png": [HOSTILE]}, black)
    model = colours.model(similarity)
    found = collection.of(uri)
    made = encode.build(found, model, storage.from_path(root / "indexes"))
    with served(Service(found, model, made, LIMITS)) as site:
        yield site


@contextmanager
def served(service: Service) -> Iterator[Site]:
    """The page and the API of a service; it answers only under this name, until the block ends."""
    with started(app.create_app(service, ("127.0.0.1",))) as server:
        yield Site(server.address, service)


@contextmanager
def started(application: ASGIApp) -> Iterator[Server]:
    """A server on loopback, until the block ends."""
    with listen("127.0.0.1", 0) as listening:
        server = uvicorn.Server(uvicorn.Config(application, http=Protocol, log_config=None, log_level="warning"))
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        try:
            while not server.started:
                time.sleep(0.01)
            yield Server(f"http://127.0.0.1:{listening.getsockname()[1]}")
        finally:
            server.should_exit = True
            thread.join(30)
