"""What the environment says of a store reaches both of its clients."""

import http.server
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from wukong.errors import ConfigError, StorageError
from wukong.store import address, patience, storage


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Host and path of each request to a server to which the environment leads, under the name localhost."""
    seen: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            seen.append(f"{self.headers['Host'].partition(':')[0]}{self.path}")
            self.send_response(200)
            self.send_header("Content-Length", "7")
            self.send_header("ETag", '"0"')
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    resolve = socket.getaddrinfo

    def of_loopback(host: str, *arguments: Any, **named: Any) -> Any:
        """As many systems answer; curl, which pyarrow uses, does so by itself."""
        return resolve("127.0.0.1" if host.endswith("localhost") else host, *arguments, **named)

    monkeypatch.setattr(socket, "getaddrinfo", of_loopback)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    monkeypatch.setenv(patience.VARIABLE, "5")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://localhost:{server.server_address[1]}")
        yield seen
        server.shutdown()


@pytest.mark.parametrize("ask", [storage.version, storage.exists])
@pytest.mark.parametrize(
    ("style", "expected"),
    [("", "localhost/bucket/key"), ("path", "localhost/bucket/key"), ("virtual", "bucket.localhost/key")],
)
def test_a_buckets_name_stands_where_the_setting_says(
    asked: list[str], monkeypatch: pytest.MonkeyPatch, ask: Callable[[str], Any], style: str, expected: str
) -> None:
    monkeypatch.setenv(address.ADDRESSING, style)
    assert ask("s3://bucket/key")
    assert set(asked) == {expected}


@pytest.mark.parametrize("ask", [storage.version, storage.exists])
def test_settings_that_cannot_be_are_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, ask: Callable[[str], Any]
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "https://127.0.0.1:1")
    monkeypatch.setenv(address.ADDRESSING, "host")
    with pytest.raises(ConfigError, match="WUKONG_S3_ADDRESSING is 'host'; it must be one of path, virtual"):
        ask("s3://bucket/key")
    monkeypatch.setenv(address.ADDRESSING, "path")
    monkeypatch.setenv(address.CERTIFICATES, str(tmp_path / "none.crt"))
    with pytest.raises(StorageError, match=r"AWS_CA_BUNDLE names \S+none\.crt, and there is no such file"):
        ask("s3://bucket/key")
