"""Stores that heed the conditions of a write in different ways, as a server on loopback plays them."""

import hashlib
import http.server
import logging
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import pytest
from free_ports import free_port

from wukong.errors import StorageError
from wukong.store import fence, patience, storage
from wukong.store.conditional_store import ChangedError, UnconditionalError

URI = "s3://bucket/runs/claim.json"


class Store(http.server.BaseHTTPRequestHandler):
    """An S3 server of one bucket in memory. ``heeds`` says how it compares ``If-Match`` with an entity tag.

    ``quoted`` as HTTP says; ``bare`` without quotes, as Ceph's gateway 16.2; ``never`` finds no tag equal, as that one
    in a bucket that keeps versions, but for ``If-None-Match``; ``creates`` ignores it; ``nothing`` ignores both;
    ``elsewhere`` is AWS in another region.
    """

    protocol_version = "HTTP/1.1"  # else it leaves a client without an answer to its ``Expect: 100-continue``
    heeds: ClassVar[str]
    objects: ClassVar[dict[str, bytes]]
    writes: ClassVar[int]
    lock = threading.Lock()

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        cls = type(self)
        if cls.heeds == "elsewhere":
            self._answer(400, b"<Error><Code>AuthorizationHeaderMalformed</Code></Error>")
            return
        bucket = f"/{self.path.split('/')[1]}"
        if self.path == bucket:
            cls.objects[bucket] = b""
            self._answer(200, b"")
            return
        if bucket != "/bucket" and bucket not in cls.objects:
            self._answer(404, b"<Error><Code>NoSuchBucket</Code></Error>")
            return
        with self.lock:
            cls.writes += 1
            there = cls.objects.get(self.path)
            tag = hashlib.md5(there).hexdigest() if there is not None else ""
            makes, replaces = self.headers["If-None-Match"], self.headers["If-Match"]
            equal = {"quoted": f'"{tag}"', "bare": tag, "never": None}.get(cls.heeds, replaces)
            if (makes and there is not None and cls.heeds != "nothing") or (replaces and replaces != equal):
                self._answer(412, b"<Error><Code>PreconditionFailed</Code></Error>")
                return
            cls.objects[self.path] = body
        self._answer(200, b"")

    def do_GET(self) -> None:
        there = type(self).objects.get(self.path)
        if there is None:
            self._answer(404, b"<Error><Code>NoSuchKey</Code></Error>")
        else:
            self._answer(200, there, {"ETag": f'"{hashlib.md5(there).hexdigest()}"'})

    do_HEAD = do_GET  # noqa: N815 - a name of the standard library

    def _answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def store(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Store]]:
    made = type("OfThisTest", (Store,), {"heeds": request.param, "objects": {}, "writes": 0})
    fence.is_conditional.cache_clear()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), made) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{server.server_address[1]}")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
        monkeypatch.setenv(patience.VARIABLE, "5")
        yield made
        server.shutdown()


@pytest.mark.parametrize("store", ["quoted", "bare"], indirect=True)
def test_what_was_seen_is_replaced_and_nothing_else_is(store: type[Store]) -> None:
    storage.write_if(URI, b"0", None)
    for number in range(3):
        seen = storage.version(URI)
        with ThreadPoolExecutor(4) as threads:
            done = list(threads.map(lambda writer: _writes(f"{number} {writer}".encode(), seen), range(4)))  # noqa: B023
        assert sum(done) == 1 and storage.read_bytes(URI) == f"{number} {done.index(True)}".encode()
    with pytest.raises(ChangedError):
        storage.write_if(URI, b"late", seen)
    before = store.writes
    storage.write_if(URI, b"once", storage.version(URI))
    assert store.writes == before + 1, "what the store compares is known by now"


def _writes(data: bytes, seen: str | None) -> bool:
    try:
        storage.write_if(URI, data, seen)
    except ChangedError:
        return False
    return True


@pytest.mark.parametrize(
    ("store", "why"),
    [
        ("quoted", ""),
        ("bare", ""),
        ("nothing", "it ignores If-None-Match"),
        ("creates", "it ignores If-Match"),
        ("never", f"{URI}: the store refuses If-Match with the version that it has"),
    ],
    indirect=["store"],
)
def test_what_a_store_does_not_heed_is_found_and_publishing_ends(
    store: type[Store], why: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A write that is refused for ever would be tried for ever."""
    storage.write_if(URI, b"{}", None)
    assert fence.why_unconditional(URI) == why
    assert storage.read_bytes(URI) == b"{}", "it stays as it was"
    monkeypatch.setenv(fence.VARIABLE, URI)
    monkeypatch.setattr(fence, "check", lambda: None)
    monkeypatch.setattr(
        storage, "write_bytes", lambda uri, data: store.objects.update({uri.removeprefix("s3:/"): data})
    )
    with caplog.at_level(logging.WARNING):
        for number in range(2):
            fence.publish("s3://bucket/manifest.json", number)
    assert store.objects["/bucket/manifest.json"] == b"1\n"
    assert [record for record in caplog.records if "no conditional writes" in record.message] != [] or not why


def add_many(uri: str, writer: int) -> None:
    for number in range(5):
        storage.update(uri, lambda there, name=f"{writer}-{number}": {**(there or {}), name: writer})


@pytest.mark.parametrize("store", ["quoted"], indirect=True)
@pytest.mark.parametrize("place", ["object", "file"])
def test_what_many_add_to_a_file_is_all_there(store: type[Store], tmp_path: Path, place: str) -> None:
    uri = "s3://new/sweeps/a.json" if place == "object" else storage.from_path(tmp_path / "sweeps/a.json")
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda writer: add_many(uri, writer), range(8)))
    assert storage.read_json(uri) == {f"{writer}-{number}": writer for writer in range(8) for number in range(5)}


@pytest.mark.parametrize("store", ["never", "nothing", "creates"], indirect=True)
def test_a_file_is_changed_in_a_store_that_heeds_no_conditions(
    store: type[Store], caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(3):
        storage.update(URI, lambda there, number=number: [*(there or []), number])
    assert storage.read_json(URI) == [0, 1, 2]
    told = any("may be lost" in record.message for record in caplog.records)
    assert told == (store.heeds == "never"), "one that ignores conditions says nothing"


@pytest.mark.parametrize("store", ["quoted"], indirect=True)
def test_a_bucket_that_is_not_there_is_no_object_that_somebody_has_deleted(store: type[Store]) -> None:
    """That would be tried for ever too."""
    with pytest.raises(StorageError, match="There is no bucket other at http") as caught:
        storage.write_if("s3://other/manifest.json", b"1", None)
    assert not isinstance(caught.value, ChangedError)


@pytest.mark.parametrize("store", ["quoted"], indirect=True)
def test_a_store_that_takes_no_connections_is_waited_for(store: type[Store], monkeypatch: pytest.MonkeyPatch) -> None:
    storage.write_if(URI, b"1", None)
    there, port = storage.version(URI), free_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{port}")
    with ThreadPoolExecutor(1) as threads:
        asked = threads.submit(storage.version, URI)
        with pytest.raises(TimeoutError):
            asked.result(1)
        with http.server.ThreadingHTTPServer(("127.0.0.1", port), store) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            assert asked.result(20) == there
            server.shutdown()


@pytest.mark.parametrize("store", ["elsewhere"], indirect=True)
def test_another_region_is_no_lack_of_conditional_writes(store: type[Store]) -> None:
    with pytest.raises(StorageError, match="in another region than us-east-1: set AWS_REGION") as caught:
        storage.write_if(URI, b"1", None)
    assert not isinstance(caught.value, UnconditionalError)
