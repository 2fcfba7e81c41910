"""Unexpected errors: they affect one URL, one answer or one host, and are logged once."""

import asyncio
import logging
from pathlib import Path
from typing import Any

import pytest
from crawl_samples import HOST, make_config, make_picture
from loopback_web import Web, answering

from wukong.config.crawl import Crawl
from wukong.crawl import image_header, robots, stored_image, unexpected
from wukong.crawl.addresses import ConnectTo
from wukong.crawl.download import download_part
from wukong.crawl.engine import Result
from wukong.crawl.engines.baidu import Baidu
from wukong.crawl.engines.searxng import SearXNG
from wukong.crawl.fetch import Fetcher
from wukong.crawl.search import Searched, search_block
from wukong.crawl.url import key_of
from wukong.errors import StorageError
from wukong.store import storage

SITE = f"http://{HOST}"


@pytest.fixture(autouse=True)
def _nothing_logged_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unexpected, "_traced", set())


def download(web: Web, urls: list[str], target: Path, config: Crawl | None = None) -> dict[str, Any]:
    """Download a part and return its record."""

    async def run() -> dict[str, Any]:
        settings = config or make_config()
        fetcher = Fetcher(settings, ConnectTo({HOST: web.connect_to, "other.test": web.connect_to}))
        rows = [
            {"key": key_of(url), "url": url, "caption": "词", "queries": [], "engine": "urls", "page_url": None}
            for url in urls
        ]
        try:
            return await download_part(storage.from_path(target), rows, fetcher, settings)
        finally:
            fetcher.close()

    return asyncio.run(run())


def test_an_unexpected_error_for_one_image(web: Web, tmp_path: Path, monkeypatch, caplog) -> None:
    web.bytes_at("/good.jpg", make_picture())
    web.bytes_at("/bad.jpg", make_picture(333, 250))
    web.bytes_at("/worse.jpg", make_picture(333, 251))
    original = stored_image.store_jpeg

    def failing(data: bytes, header: image_header.Header, config: Crawl) -> stored_image.Stored | None:
        if header.width == 333:
            raise AttributeError("nobody thought of this")
        return original(data, header, config)

    monkeypatch.setattr(stored_image, "store_jpeg", failing)
    record = download(web, [f"{SITE}/{name}.jpg" for name in ("good", "bad", "worse")], tmp_path / "0")
    assert record["statuses"] == {"internal_error": 2, "success": 1}
    assert record["examples"]["internal_error"][1] == "unexpected AttributeError"
    logged = [r for r in caplog.records if r.levelno == logging.ERROR]
    assert sorted(r.getMessage() for r in logged) == [
        f"{SITE}/{name}.jpg: unexpected AttributeError: nobody thought of this" for name in ("bad", "worse")
    ]
    assert sum(r.exc_info is not None for r in logged) == 1, "one traceback of a kind"


def test_an_unexpected_error_in_the_decoder(web: Web, tmp_path: Path, monkeypatch, caplog) -> None:
    """The child's code fails, because a module shadows one of its libraries."""
    (tmp_path / "shadow" / "simplejpeg").mkdir(parents=True)
    (tmp_path / "shadow" / "simplejpeg" / "__init__.py").write_text(
        "def encode_jpeg(*_, **__):\n    raise AttributeError('no encoder')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path / "shadow"))
    web.bytes_at("/a.png", make_picture(kind="PNG"))
    web.bytes_at("/b.jpg", make_picture())
    record = download(web, [f"{SITE}/a.png", f"{SITE}/b.jpg"], tmp_path / "0")
    assert record["statuses"] == {"internal_error": 1, "success": 1}
    (logged,) = [r.getMessage() for r in caplog.records if r.levelno == logging.ERROR]
    assert logged.startswith(f"{SITE}/a.png: unexpected AttributeError")
    assert "no encoder" in logged


def test_an_unexpected_error_in_one_robots_txt(web: Web, tmp_path: Path, monkeypatch, caplog) -> None:
    web.fallback = answering(make_picture())
    web.bytes_at("/robots.txt", b"User-agent: *\nAllow: /", "text/plain")

    def failing(body: bytes, product: str) -> robots.Rules:
        raise ZeroDivisionError("in the parser")

    monkeypatch.setattr(robots.Rules, "from_body", failing)
    record = download(web, [f"{SITE}/{n}.jpg" for n in range(3)], tmp_path / "0")
    assert record["statuses"] == {"internal_error": 3}, "what is not understood does not allow"
    assert web.requests == {"/robots.txt": 1}
    (logged,) = [r.getMessage() for r in caplog.records if r.levelno == logging.ERROR]
    assert logged.startswith(f"{SITE}/robots.txt: unexpected ZeroDivisionError")


def test_a_full_disk_ends_the_crawl(web: Web, tmp_path: Path, monkeypatch) -> None:
    web.bytes_at("/good.jpg", make_picture())

    class Full:
        def seek(self, _place: int) -> None: ...

        def write(self, _data: bytes) -> None:
            raise OSError(28, "No space left on device")

        def close(self) -> None: ...

    monkeypatch.setattr("wukong.crawl.part_writer.tempfile.TemporaryFile", lambda **_: Full())
    with pytest.raises(ExceptionGroup) as raised:
        download(web, [f"{SITE}/good.jpg"], tmp_path / "0")
    (error,) = raised.value.exceptions
    assert isinstance(error, StorageError)
    assert "TMPDIR" in str(error)


def search(web: Web, engine: Any, queries: list[str]) -> Searched:
    async def run() -> Searched:
        config = make_config()
        fetcher = Fetcher(config, ConnectTo({HOST: web.connect_to}))
        try:
            return await search_block(list(enumerate(queries)), engine, fetcher, config)
        finally:
            fetcher.close()

    return asyncio.run(run())


def test_an_unexpected_error_in_one_search_answer(web: Web, caplog) -> None:
    class Odd:
        name = "odd"

        def page_url(self, query: str, page: int) -> str:
            return f"{SITE}/{query}?{page}"

        def parse(self, body: bytes) -> list[Result]:
            if body == b"bad":
                raise AttributeError("nobody thought of this")
            return [Result(body.decode(), "说明")]

    web.bytes_at("/good", b"http://x.test/1.jpg", "text/plain")
    web.bytes_at("/bad", b"bad", "text/plain")
    searched = search(web, Odd(), ["good", "bad"])
    assert searched.table["query"].to_pylist() == ["good"]
    assert searched.failed == {"bad": "unexpected AttributeError"}
    assert searched.unexpected == 1
    (logged,) = [r.getMessage() for r in caplog.records if r.levelno == logging.ERROR]
    assert logged == f"{SITE}/bad?0: unexpected AttributeError: nobody thought of this"


def test_half_a_surrogate_from_an_engine_does_not_end_the_search(web: Web) -> None:
    class Careless:
        name = "careless"

        def page_url(self, query: str, page: int) -> str:
            return f"{SITE}/{query}?{page}"

        def parse(self, body: bytes) -> list[Result]:
            return [
                Result("http://x.test/1.jpg\ud800", "说明\udfff", "http://x.test/\ud800"),
                Result("http://x.test/2", ""),
            ]

    web.bytes_at("/q", b"", "text/plain")
    searched = search(web, Careless(), ["q"])
    assert sorted(searched.table["url"].to_pylist()) == ["http://x.test/1.jpg\ufffd", "http://x.test/2"]


HOSTILE_ANSWERS = {
    "nested": b'{"data":' + b"[" * 200_000 + b"]" * 200_000 + b"}",
    "nested objects": b'{"a":' * 200_000 + b"1" + b"}" * 200_000,
    "digits": b"9" * 5_000,
    "nothing": b"",
    "binary": bytes(range(256)),
    "list": b"[]",
    "cut": b'{"data":[{"objURL":"http://x.test/1.jpg"',
}


@pytest.mark.parametrize("answer", HOSTILE_ANSWERS)
@pytest.mark.parametrize("engine", [Baidu, SearXNG])
def test_hostile_search_answers(web: Web, caplog, engine, answer: str) -> None:
    web.bytes_at("/search", HOSTILE_ANSWERS[answer], "application/json")
    searched = search(web, engine(f"{SITE}/search"), ["词"])
    assert list(searched.failed) == ["词"]
    assert searched.failed["词"].startswith(f"not an answer of {engine.name}")
    assert not caplog.records


def test_one_bad_url_does_not_affect_the_others(web: Web) -> None:
    body = b'{"results":[{"img_src":"//[::1/x"},{"img_src":"//x.test/1.jpg"}]}'
    urls = [result.url for result in SearXNG(f"{SITE}/search").parse(body)]
    assert urls == ["//[::1/x", "http://x.test/1.jpg"]
