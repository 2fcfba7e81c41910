"""Requests are signed with the credentials that the environment has at the time, by both clients of the store."""

import http.server
import re
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from wukong.store import storage


@pytest.fixture
def signed_by(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The access key of each request to a server to which the environment leads."""
    keys: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            keys.extend(re.findall(r"Credential=([^/]+)/", self.headers["Authorization"]))
            self.send_response(200)
            self.send_header("Content-Length", "7")
            self.send_header("ETag", '"0"')
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{server.server_address[1]}")
        yield keys
        server.shutdown()


@pytest.mark.parametrize("ask", [storage.version, storage.exists])
def test_new_credentials_count_at_once(
    signed_by: list[str], monkeypatch: pytest.MonkeyPatch, ask: Callable[[str], Any]
) -> None:
    for key in ("first", "second", "first"):
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", key)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", f"of-{key}")
        assert ask("s3://bucket/key")
    assert signed_by == ["first", "second", "first"]
