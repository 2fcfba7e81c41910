"""An HTTP proxy before a real S3 server that loses answers, and kills its client at a write."""

import http.client
import http.server
import os
import signal
import threading
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple
from urllib.parse import urlsplit

_OF_ONE_HOP = {"connection", "content-length", "expect", "keep-alive", "transfer-encoding"}


class Write(NamedTuple):
    """A write that the store has done.

    Attributes:
        path: of the object.
        body: what was written; None for a deletion.
    """

    path: str
    body: bytes | None


class History:
    """The writes that a store has done, in its order: proxies that share a history let through one at a time."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.writes: list[Write] = []

    def of(self, end: str) -> list[bytes]:
        """What was written to the object whose path ends so."""
        return [write.body for write in self.writes if write.path.endswith(end) and write.body is not None]


class LossyProxy:
    """A proxy of one client, on a port of loopback.

    Args:
        endpoint: of the store.
        history: where the writes are noted.
        is_lost: gets the number of a write from 1 on, a repetition counts too, and says whether its answer is lost.
        kill_at: number of the write at which the client is killed; 0 for never.
        is_done: whether that write is done before.
    """

    def __init__(
        self,
        endpoint: str,
        history: History,
        is_lost: Callable[[int], bool] = lambda _: False,
        kill_at: int = 0,
        *,
        is_done: bool = True,
    ) -> None:
        self.client = 0
        self._target, self._history, self._is_lost = urlsplit(endpoint), history, is_lost
        self._kill_at, self._is_done = kill_at, is_done
        self._writes = 0
        handler = type("OfThisProxy", (_Handler,), {"proxy": self})
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def pass_on(self, method: str, path: str, headers: dict[str, str], body: bytes) -> http.client.HTTPResponse | None:
        """Let the store answer a request, whose body is then read; None if the answer is lost."""
        if method in ("GET", "HEAD"):
            return self._ask(method, path, headers, body)
        with self._history.lock:
            self._writes += 1
            number = self._writes
            if number == self._kill_at and not self._is_done:
                os.kill(self.client, signal.SIGKILL)
                return None
            answer = self._ask(method, path, headers, body)
            if answer.status < 300:
                self._history.writes.append(Write(urlsplit(path).path, body if method == "PUT" else None))
            if number == self._kill_at:
                os.kill(self.client, signal.SIGKILL)
                return None
        return None if self._is_lost(number) else answer

    def _ask(self, method: str, path: str, headers: dict[str, str], body: bytes) -> http.client.HTTPResponse:
        connection = http.client.HTTPConnection(self._target.hostname or "", self._target.port or 80, timeout=60)
        connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
        for name, value in headers.items():
            connection.putheader(name, value)
        if body or method in ("PUT", "POST"):
            connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body or None)
        answer = connection.getresponse()
        answer.body = answer.read()  # type: ignore[attr-defined]
        connection.close()
        return answer


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    proxy: ClassVar[LossyProxy]

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        headers = {name: value for name, value in self.headers.items() if name.lower() not in _OF_ONE_HOP}
        answer = self.proxy.pass_on(self.command, self.path, headers, body)
        if answer is None:
            self.close_connection = True
            return
        self.send_response_only(answer.status)
        told = {name: value for name, value in answer.getheaders() if name.lower() not in _OF_ONE_HOP}
        length = answer.getheader("Content-Length", "0") if self.command == "HEAD" else str(len(answer.body))  # type: ignore[attr-defined]
        for name, value in (told | {"Content-Length": length}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(answer.body)  # type: ignore[attr-defined]

    do_GET = do_HEAD = do_POST = do_DELETE = do_PUT  # noqa: N815 - names of the standard library

    def log_message(self, *_: Any) -> None:
        pass
