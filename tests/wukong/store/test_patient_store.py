"""Against the real SeaweedFS server, killed by SIGKILL and started again, and a server that answers errors."""

import http.server
import logging
import os
import pickle
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest
from object_store import ObjectStore

from wukong.errors import StorageError
from wukong.store import patience, patient_filesystem, patient_store, storage

_LONG = os.urandom(1 << 20) * 8  # bytes; at 1 MiB a piece some are read before the server is killed, most after
_TABLE = pa.table({"row": range(100_000), "text": [f"文{row % 1000}" for row in range(100_000)]})
_AWAY_SECONDS = 1.0
_PATIENCE = 120  # seconds; a server on a busy machine may need 30 to start


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStore]:
    server = ObjectStore(tmp_path_factory.mktemp("store") / "weed")
    server.start()
    try:
        server.wait_ready("bucket")
        yield server
    finally:
        server.kill()


@pytest.fixture
def root(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> str:
    for name, value in store.variables().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv(patience.VARIABLE, str(_PATIENCE))
    return "s3://bucket"


def read_in_pieces(uri: str, under_way: threading.Event, go_on: threading.Event) -> bytes:
    pieces = []
    with storage.open_input(uri) as stream:
        while piece := stream.read(1 << 20):
            pieces.append(piece)
            if len(pieces) == 3:
                under_way.set()
                assert go_on.wait(_PATIENCE)
    return b"".join(pieces)


def write_in_pieces(uri: str, under_way: threading.Event, go_on: threading.Event) -> None:
    filesystem, path = storage.filesystem(uri)
    with filesystem.open_output_stream(path) as stream:
        stream.write(_LONG[: 3 << 20])
        under_way.set()
        assert go_on.wait(_PATIENCE)
        stream.write(_LONG[3 << 20 :])


def over_and_over(request: Callable[[], Any], expected: Any, stop: threading.Event) -> int:
    count = 0
    while not stop.is_set():
        assert request() == expected
        count += 1
    return count


@pytest.mark.long
def test_what_goes_on_while_the_server_is_killed_succeeds(
    root: str, store: ObjectStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Everything that reads, lists or writes is under way when the server dies, and has the right bytes in the end."""
    storage.write_bytes(f"{root}/long", _LONG)
    storage.write_table(f"{root}/t.parquet", _TABLE)
    names = [f"{root}/list/{number:03}" for number in range(20)]
    for name in names:
        storage.write_bytes(name, b"")
    filesystem, path = storage.filesystem(f"{root}/t.parquet")
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "weights").write_bytes(_LONG)
    reading, writing, go_on, stop = (threading.Event() for _ in range(4))
    with caplog.at_level(logging.WARNING), ThreadPoolExecutor(8) as threads:
        read = threads.submit(read_in_pieces, f"{root}/long", reading, go_on)
        wrote = threads.submit(write_in_pieces, f"{root}/streamed", writing, go_on)
        repeated = [
            threads.submit(over_and_over, lambda: storage.list_files(f"{root}/list"), names, stop),
            threads.submit(over_and_over, lambda: storage.read_table(f"{root}/t.parquet").num_rows, 100_000, stop),
            threads.submit(over_and_over, lambda: storage.read_bytes(f"{root}/long") == _LONG, True, stop),
        ]
        assert reading.wait(_PATIENCE)
        assert writing.wait(_PATIENCE)
        store.kill()
        go_on.set()
        asked = [
            threads.submit(storage.write_bytes, f"{root}/written", _LONG),
            threads.submit(pafs.copy_files, str(tmp_path / "checkpoint"), "bucket/checkpoint", None, filesystem),
            threads.submit(lambda: pq.read_table(path, filesystem=filesystem).equals(_TABLE)),
        ]
        time.sleep(_AWAY_SECONDS)
        under_way: list[Future[Any]] = [read, wrote, *asked, *repeated]
        assert not any(future.done() for future in under_way)
        store.start()
        assert read.result(_PATIENCE) == _LONG
        wrote.result(_PATIENCE)
        assert [future.result(_PATIENCE) for future in asked] == [None, None, True]
        stop.set()
        assert all(future.result(_PATIENCE) for future in repeated)
    for name in ("streamed", "written", "checkpoint/weights"):
        assert storage.read_bytes(f"{root}/{name}") == _LONG, name
    lines = [record.getMessage() for record in caplog.records if record.name == patience.__name__]
    assert re.search(rf"the object store is away \(.*\); what needs it is repeated for up to {_PATIENCE} s", lines[0])
    # A server that starts may answer one request and refuse the next: that is an outage more.
    back = next(line for line in lines if "is back after" in line)
    assert _AWAY_SECONDS / 2 < float(back.split()[-2]) < _PATIENCE
    said = ["begins" if "is away" in line else "ends" if "is back" in line else "lasts" for line in lines]
    outages = " ".join(said).replace(" lasts", "").split(" ends")
    assert {outage.strip() for outage in outages} <= {"begins", ""}, "of many requests that fail, one line says so"
    assert said.count("lasts") <= _PATIENCE / 30, "one line in 30 s says so"


@pytest.mark.long
def test_wrong_credentials_and_missing_things_are_errors_at_once(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    began = time.monotonic()
    with pytest.raises(StorageError, match="nothing at that address"):
        storage.read_bytes(f"{root}/none")
    storage.delete(f"{root}/none")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
    for refused in (storage.exists, storage.read_bytes, storage.list_files, storage.delete):
        with pytest.raises(StorageError, match=r"ACCESS_DENIED|INVALID_ACCESS_KEY_ID"):
            refused(f"{root}/x")
    with pytest.raises(StorageError, match=r"ACCESS_DENIED|INVALID_ACCESS_KEY_ID"):
        storage.write_bytes(f"{root}/x", b"")
    assert time.monotonic() - began < _PATIENCE, "none is waited for"


@pytest.mark.long
def test_the_file_system_survives_pickling(root: str) -> None:
    storage.write_bytes(f"{root}/pickled", b"content")
    filesystem, path = storage.filesystem(f"{root}/pickled")
    again = pickle.loads(pickle.dumps(filesystem))
    assert again == filesystem
    with again.open_input_stream(path) as stream:
        assert stream.read() == b"content"
    again.move(path, "bucket/moved")
    assert not storage.exists(f"{root}/pickled")
    assert storage.read_bytes(f"{root}/moved") == b"content"


class Answers(http.server.BaseHTTPRequestHandler):
    """Answers each request with the next of ``statuses``, and the last one for ever; 0 sends half an object.

    With a ``refusal``, writes of objects get that.
    """

    statuses: list[tuple[int, str]]
    refusal: tuple[int, str] | None = None

    def do_GET(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        status, code = self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]
        writes = self.command in ("PUT", "POST")
        if self.refusal and writes and self.path.count("/") > 1:
            status, code = self.refusal
        body = f"<Error><Code>{code}</Code><Message>told so</Message></Error>".encode() if status != 200 else b"content"
        if status == 200 and writes:
            body = b""
        self.send_response(status or 200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", '"0"')
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_HEAD = do_PUT = do_POST = do_DELETE = do_GET  # noqa: N815 - names of the standard library

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """A function that says what a server answers, to which the environment leads."""
    handler = type("Handler", (Answers,), {})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{server.server_address[1]}")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
        yield lambda *statuses: setattr(handler, "statuses", list(statuses))
        server.shutdown()


@pytest.mark.parametrize(
    ("status", "code"),
    [(503, "SlowDown"), (500, "InternalError"), (502, ""), (503, "ServiceUnavailable"), (504, ""), (429, "")],
)
def test_an_overloaded_store_is_asked_again(
    answers: Callable[..., None], monkeypatch: pytest.MonkeyPatch, status: int, code: str
) -> None:
    monkeypatch.setattr(patient_filesystem, "_ATTEMPTS", 1)  # so that the SDK leaves it to us
    storage._s3.cache_clear()
    monkeypatch.setenv(patience.VARIABLE, "30")
    answers((status, code), (status, code), (200, ""))
    assert storage.exists("s3://bucket/key")


@pytest.mark.parametrize(
    ("status", "code"),
    [(403, "AccessDenied"), (400, "InvalidBucketName"), (501, "NotImplemented"), (403, "SignatureDoesNotMatch")],
)
def test_a_refusal_is_an_error_at_once(
    answers: Callable[..., None], monkeypatch: pytest.MonkeyPatch, status: int, code: str
) -> None:
    monkeypatch.setenv(patience.VARIABLE, "30")
    # Where the key may not ask for an object by its name, its name is listed.
    answers((status, code), *[(status, code)] * (status == 403), (200, ""))
    with pytest.raises(StorageError, match="cannot look up"):
        storage.exists("s3://bucket/key")


@pytest.mark.parametrize(
    ("refusal", "says_so", "conditional"),
    [
        ((500, "InternalError"), False, True),
        ((507, ""), True, False),
        pytest.param((507, "XMinioStorageFull"), True, True, marks=pytest.mark.long),
        pytest.param((500, "InternalError"), False, False, marks=pytest.mark.long),
    ],
)
def test_a_store_that_answers_reads_and_refuses_to_write_is_called_full(
    answers: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    refusal: tuple[int, str],
    says_so: bool,
    conditional: bool,
) -> None:
    monkeypatch.setattr(patience, "_LASTING", 0.5)
    monkeypatch.setattr(patient_filesystem, "_ATTEMPTS", 1)
    monkeypatch.setattr(patient_store.STORE, "_began", None)
    storage._s3.cache_clear()
    monkeypatch.setenv(patience.VARIABLE, "1")
    answers((200, ""))
    monkeypatch.setattr(Answers, "refusal", refusal)
    seems = r"the object store is full, it seems: .*Delete outputs that are not needed"
    with caplog.at_level(logging.WARNING), pytest.raises(StorageError, match=seems):
        if conditional:
            storage.write_if("s3://bucket/key", b"data", None)
        else:
            storage.write_bytes("s3://bucket/key", b"data")
    first, *_ = (record.getMessage() for record in caplog.records)
    assert ("is full" in first, "is away" in first) == (says_so, not says_so)
    assert "are its credentials" not in caplog.text
    monkeypatch.setattr(Answers, "refusal", None)
    caplog.clear()
    storage.write_bytes("s3://bucket/key", b"data")
    assert not caplog.records


def test_a_store_that_refuses_reads_too_is_called_away(
    answers: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "_LASTING", 0.5)
    monkeypatch.setenv(patience.VARIABLE, "1")
    answers(*[(500, "InternalError")] * 1000)
    with pytest.raises(StorageError, match="the object store is away"):
        storage.write_bytes("s3://bucket/key", b"data")


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def test_a_store_that_stays_away_is_an_error_that_names_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{closed_port()}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    monkeypatch.setenv(patience.VARIABLE, "1")
    began = time.monotonic()
    with pytest.raises(StorageError, match=r"cannot read .*so it was for [1-9] s .*Is the object store") as caught:
        storage.read_bytes("s3://bucket/key")
    assert 1 <= time.monotonic() - began < 20
    assert isinstance(pickle.loads(pickle.dumps(caught.value)), StorageError)


def test_a_local_file_system_is_asked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(patience.VARIABLE, "600")
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="you may write to it"):
        storage.write_bytes(storage.from_path(tmp_path / "file" / "x"), b"")
    assert isinstance(storage.filesystem(storage.from_path(tmp_path))[0], pafs.LocalFileSystem)


def failing(failures: list[BaseException]) -> Callable[[], str]:
    def request() -> str:
        if failures:
            raise failures.pop(0)
        return "answer"

    return request


def away() -> OSError:
    return OSError("When deleting: AWS Error NETWORK_CONNECTION during DeleteObject operation: curlCode: 52, Empty")


def test_a_deletion_whose_answer_was_lost_has_succeeded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(patience.VARIABLE, "30")
    assert patient_store.STORE.until_answered(failing([away()])) == "answer"
    assert patient_store.STORE.until_answered(failing([away(), FileNotFoundError()]), deletes=True) is None
    with pytest.raises(FileNotFoundError):
        patient_store.STORE.until_answered(failing([FileNotFoundError()]), deletes=True)
    with pytest.raises(FileNotFoundError):
        patient_store.STORE.until_answered(failing([away(), FileNotFoundError()]))


@pytest.mark.parametrize("code", [60, 3])
def test_a_wrong_certificate_or_address_is_not_waited_for(code: int) -> None:
    assert not patient_store.is_away(OSError(f"AWS Error NETWORK_CONNECTION during X: curlCode: {code}, text"))
