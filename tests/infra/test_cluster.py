"""The cluster's setup job, against a server on loopback that answers as S3 does."""

import http.server
import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from infra import cluster
from wukong.errors import StorageError
from wukong.store import patience, patient_store


class S3:
    """Buckets, the number of requests that find the server busy, and what was asked."""

    def __init__(self) -> None:
        self.buckets: set[str] = set()
        self.busy = 0
        self.refuses = False
        self.asked: Counter[str] = Counter()


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3]:
    """The clock goes on by pauses alone."""
    store = S3()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            name = self.path.strip("/")
            store.asked[f"{self.command} {name}"] += 1
            if store.busy:
                store.busy -= 1
                self._answer(503)
            elif self.command == "HEAD":
                self._answer(200 if name in store.buckets else 403 if store.refuses else 404)
            elif store.refuses:
                self._answer(403)
            else:
                store.buckets.add(name)
                self._answer(200)

        do_PUT = do_HEAD  # noqa: N815 - a name of the standard library

        def _answer(self, status: int) -> None:
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    slept: list[float] = []
    monkeypatch.setattr("wukong.store.patience.time.sleep", slept.append)
    monkeypatch.setattr("wukong.store.patience.time.monotonic", lambda: 100.0 + sum(slept))
    monkeypatch.setattr(patient_store.STORE, "_began", None)  # of that clock
    monkeypatch.delenv(patience.VARIABLE, raising=False)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{server.server_address[1]}")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "setup")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "of-setup")
        yield store
        server.shutdown()


def test_buckets_are_made_once_the_store_answers(s3: S3) -> None:
    s3.busy = 3
    for _ in range(2):
        cluster.make_buckets(["one", "two"])
    assert s3.buckets == {"one", "two"}
    assert s3.asked == {"HEAD one": 5, "PUT one": 1, "HEAD two": 2, "PUT two": 1}


def test_a_bucket_that_is_there_needs_no_right_to_make_it(s3: S3) -> None:
    s3.buckets, s3.refuses = {"one"}, True
    cluster.make_buckets(["one"])
    with pytest.raises(StorageError, match=r"cannot make the bucket two: .* refuses that to the key setup"):
        cluster.make_buckets(["one", "two"])


def test_a_store_that_stays_away_is_reported(s3: S3) -> None:
    s3.busy = 1_000_000
    expected = r"cannot make the bucket one: the object store is away: .*503.*; so it was for 600 s"
    with pytest.raises(StorageError, match=expected):
        cluster.make_buckets(["one"])
