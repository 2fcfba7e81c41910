"""HTTP requests over libcurl, many at a time in one asyncio event loop.

libcurl was the fastest in measurements and has what a web crawler needs: keep-alive and HTTP/2, a DNS cache, a limit on
every resource, and a callback with the address of each socket before it connects. Redirects are not followed here: each
one is a new request, which the caller must check.
"""

import asyncio
import re
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urljoin, urlsplit

import certifi
import pycurl

from wukong.crawl.addresses import ConnectTo
from wukong.crawl.status import FetchError, Status
from wukong.crawl.usage import NOTHING, Said
from wukong.runtime.environment import CONNECT_TO

_BUFFER = 16 * 1024
_CONNECT_SECONDS = 10.0
_DNS_CACHE_SECONDS = 300
_MAX_HEADER_BYTES = 64 * 1024
_MAX_ERROR_BYTES = 64 * 1024
"""The body of a redirect or an error is ignored. Up to this size it is read to its end, so that the connection can be
reused."""

_STATUS_LINE = re.compile(rb"HTTP/\S+\s+([1-9][0-9][0-9])(?![0-9])")
_CURL_STATUS: dict[int, tuple[Status, str]] = {
    pycurl.E_OPERATION_TIMEDOUT: (Status.TIMEOUT, "not finished in the time allowed"),
    pycurl.E_COULDNT_RESOLVE_HOST: (Status.DNS_ERROR, "the host name does not resolve"),
    pycurl.E_COULDNT_CONNECT: (Status.CONNECTION_ERROR, "the server cannot be connected to"),
    pycurl.E_SSL_CONNECT_ERROR: (Status.TLS_ERROR, "the TLS handshake failed"),
    pycurl.E_PEER_FAILED_VERIFICATION: (
        Status.TLS_ERROR,
        "the server's certificate is not valid for this host",
    ),
    pycurl.E_PARTIAL_FILE: (Status.INCOMPLETE, "the connection ended before the answer did"),
    pycurl.E_GOT_NOTHING: (Status.CONNECTION_ERROR, "the server closed the connection without an answer"),
    pycurl.E_RECV_ERROR: (Status.CONNECTION_ERROR, "the connection was reset"),
    pycurl.E_SEND_ERROR: (Status.CONNECTION_ERROR, "the connection was reset"),
    pycurl.E_URL_MALFORMAT: (Status.INVALID_URL, "not a URL"),
    pycurl.E_UNSUPPORTED_PROTOCOL: (Status.CONNECTION_ERROR, "the server does not speak HTTP"),
    pycurl.E_FTP_WEIRD_SERVER_REPLY: (Status.CONNECTION_ERROR, "the server does not speak HTTP"),
    pycurl.E_BAD_CONTENT_ENCODING: (Status.INCOMPLETE, "the content encoding cannot be undone"),
}
_BROKEN = frozenset({pycurl.E_RECV_ERROR, pycurl.E_SEND_ERROR, pycurl.E_HTTP2, pycurl.E_GOT_NOTHING})


@dataclass
class Response:
    """An HTTP answer: status code, headers and body.

    Names of headers are in lower case. Repeated values are joined by a comma, those of ``x-robots-tag`` by a line feed.
    ``said`` are the statements about its use, of this answer and all that redirected to it.
    """

    url: str
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytearray = field(default_factory=bytearray)
    said: Said = NOTHING

    @property
    def location(self) -> str | None:
        """The target of a redirect, as an absolute URL unless it is malformed; None if this is not a redirect."""
        if self.status not in {301, 302, 303, 307, 308} or "location" not in self.headers:
            return None
        target = _decode_location(self.headers["location"])
        try:
            return urljoin(self.url, target)
        except ValueError:
            return target  # ``normalise`` will report what is wrong


def _decode_location(location: str) -> str:
    """Decode a ``Location`` header as browsers do: as UTF-8; if it is not UTF-8, percent-encode its bytes."""
    raw = location.encode("latin-1", errors="replace")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return "".join(chr(byte) if byte < 0x80 else f"%{byte:02X}" for byte in raw)


Watcher = Callable[[Response], None]
"""Called with a 2xx answer when its headers are complete and after each piece of its body; it may raise ``FetchError``
to end the request."""


class Transport:
    """Sends requests over a shared pool of connections; create and close it inside one running event loop.

    Args:
        user_agent: the user agent of every request.
        connect_to: hosts whose address the operator chose.
        connections: maximum number of open connections.
    """

    def __init__(self, *, user_agent: str, connect_to: ConnectTo, connections: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._user_agent = user_agent
        self._connect_to = connect_to
        self._idle: list[pycurl.Curl] = []
        self._running: dict[pycurl.Curl, asyncio.Future[int]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._watched: dict[int, int] = {}
        self._multi = pycurl.CurlMulti()
        self._multi.setopt(pycurl.M_SOCKETFUNCTION, self._on_socket)
        self._multi.setopt(pycurl.M_TIMERFUNCTION, self._on_timer)
        self._multi.setopt(pycurl.M_MAXCONNECTS, connections)

    async def get(
        self, url: str, *, seconds: float, max_bytes: int, watch: Watcher | None = None, truncate: bool = False
    ) -> Response:
        """Send one GET request without following redirects; the address of the socket is checked before it connects.

        Args:
            url: a URL from ``normalise``.
            seconds: time limit of the whole request.
            max_bytes: limit on the bytes of the decoded body.
            watch: called while the answer arrives; it may end the request by raising ``FetchError``.
            truncate: whether a body with more than ``max_bytes`` is cut; if not, it is an error.

        Raises:
            FetchError: there was no complete answer, or ``watch`` raised it.
        """
        exchange = _Exchange(Response(url), max_bytes, watch, truncate)
        host = urlsplit(url).hostname or ""
        refused: list[str] = []

        def open_socket(_purpose: int, address: Any) -> Any:
            family, kind, protocol, (ip, port, *_) = address
            if not self._connect_to.allows(host, ip, port):
                refused.append(ip)
                return pycurl.SOCKET_BAD
            return socket.socket(family, kind, protocol)

        handle = self._idle.pop() if self._idle else self._new_handle()
        handle.setopt(pycurl.URL, url)
        handle.setopt(pycurl.TIMEOUT_MS, max(1, int(seconds * 1000)))
        handle.setopt(pycurl.OPENSOCKETFUNCTION, open_socket)
        handle.setopt(pycurl.HEADERFUNCTION, exchange.on_header)
        handle.setopt(pycurl.WRITEFUNCTION, exchange.on_body)
        if target := self._connect_to.targets.get(host):
            address, port = target
            handle.setopt(pycurl.CONNECT_TO, [f"::[{address}]:{port}" if ":" in address else f"::{address}:{port}"])
        else:
            handle.unsetopt(pycurl.CONNECT_TO)
        done = self._loop.create_future()
        self._running[handle] = done
        self._multi.add_handle(handle)
        try:
            code = await done
        finally:
            self._running.pop(handle, None)
            self._multi.remove_handle(handle)
        self._idle.append(handle)
        # The idle handle keeps the exchange until its next request. It must keep neither the body nor an error, whose
        # traceback holds the frames that have, or will have, a body.
        response, exchange.response = exchange.response, Response(url)
        stopped, exchange.stopped = exchange.stopped, None
        if stopped is not None:
            try:
                raise stopped
            finally:
                del stopped
        if code != pycurl.E_OK and not exchange.enough:
            if refused and not response.status:
                why = f"the host's address is not a public one; {CONNECT_TO} opens hosts of your own"
                raise FetchError(Status.FORBIDDEN_ADDRESS, why)
            if code in _BROKEN and response.status:
                code = pycurl.E_PARTIAL_FILE
            status, why = _CURL_STATUS.get(code, (Status.CONNECTION_ERROR, f"libcurl error {code}"))
            raise FetchError(status, why, http_status=response.status or None)
        return response

    def close(self) -> None:
        """Close all connections."""
        if self._timer is not None:
            self._timer.cancel()
        for fd in list(self._watched):
            self._unwatch(fd)
        for handle in [*self._idle, *self._running]:
            handle.close()
        self._idle.clear()
        self._multi.close()

    def _new_handle(self) -> pycurl.Curl:
        handle = pycurl.Curl()
        handle.setopt(pycurl.USERAGENT, self._user_agent)
        handle.setopt(pycurl.ACCEPT_ENCODING, "")
        handle.setopt(pycurl.PROTOCOLS, pycurl.PROTO_HTTP | pycurl.PROTO_HTTPS)
        handle.setopt(pycurl.FOLLOWLOCATION, 0)
        handle.setopt(pycurl.PROXY, "")  # a proxy from the environment would hide the real address from the check
        handle.setopt(pycurl.NOSIGNAL, 1)
        handle.setopt(pycurl.CONNECTTIMEOUT_MS, int(_CONNECT_SECONDS * 1000))
        handle.setopt(pycurl.DNS_CACHE_TIMEOUT, _DNS_CACHE_SECONDS)
        handle.setopt(pycurl.BUFFERSIZE, _BUFFER)
        handle.setopt(pycurl.CAINFO, certifi.where())
        handle.setopt(pycurl.HTTP_VERSION, pycurl.CURL_HTTP_VERSION_2TLS)
        return handle

    def _on_socket(self, event: int, fd: int, _multi: Any, _data: Any) -> None:
        if event == pycurl.POLL_REMOVE:
            self._unwatch(fd)
            return
        before = self._watched.get(fd, 0)
        wanted = event & (pycurl.POLL_IN | pycurl.POLL_OUT)
        if wanted & pycurl.POLL_IN and not before & pycurl.POLL_IN:
            self._loop.add_reader(fd, self._act, fd, pycurl.CSELECT_IN)
        elif before & pycurl.POLL_IN and not wanted & pycurl.POLL_IN:
            self._loop.remove_reader(fd)
        if wanted & pycurl.POLL_OUT and not before & pycurl.POLL_OUT:
            self._loop.add_writer(fd, self._act, fd, pycurl.CSELECT_OUT)
        elif before & pycurl.POLL_OUT and not wanted & pycurl.POLL_OUT:
            self._loop.remove_writer(fd)
        self._watched[fd] = wanted

    def _unwatch(self, fd: int) -> None:
        before = self._watched.pop(fd, 0)
        if before & pycurl.POLL_IN:
            self._loop.remove_reader(fd)
        if before & pycurl.POLL_OUT:
            self._loop.remove_writer(fd)

    def _on_timer(self, milliseconds: int) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if milliseconds >= 0:
            # Not directly from this callback: libcurl forbids calls into itself from a callback.
            self._timer = self._loop.call_later(milliseconds / 1000, self._act, pycurl.SOCKET_TIMEOUT, 0)

    def _act(self, fd: int, events: int) -> None:
        self._multi.socket_action(fd, events)
        while True:
            waiting, finished, failed = self._multi.info_read()
            for handle in finished:
                self._finish(handle, pycurl.E_OK)
            for handle, code, _message in failed:
                self._finish(handle, code)
            if not waiting:
                return

    def _finish(self, handle: pycurl.Curl, code: int) -> None:
        future = self._running.get(handle)
        if future is not None and not future.done():
            future.set_result(code)


class _Exchange:
    """Collects one answer from libcurl's callbacks."""

    def __init__(self, response: Response, max_bytes: int, watch: Watcher | None, truncate: bool) -> None:
        self.response = response
        self.stopped: Exception | None = None
        self.enough = False
        self.bytes_read = 0
        self._max_bytes = max_bytes
        self._watch = watch
        self._truncate = truncate
        self._header_bytes = 0

    def on_header(self, line: bytes) -> int:
        try:
            return self._header(line)
        except Exception as error:  # noqa: BLE001 - libcurl would only print it; ``get`` raises it
            return self._stop(error)

    def on_body(self, piece: bytes) -> int:
        try:
            return self._body(piece)
        except Exception as error:  # noqa: BLE001 - libcurl would only print it; ``get`` raises it
            return self._stop(error)

    def _header(self, line: bytes) -> int:
        response = self.response
        self._header_bytes += len(line)
        if self._header_bytes > _MAX_HEADER_BYTES:
            raise FetchError(
                Status.HTTP_ERROR, "the answer's headers are too large", http_status=self.response.status or None
            )
        if line.startswith(b"HTTP/"):
            code = _STATUS_LINE.match(line)
            if code is None:
                raise FetchError(Status.CONNECTION_ERROR, "the server does not speak HTTP")
            response.status = int(code[1])
            response.headers.clear()
            return len(line)
        name, colon, value = line.decode("latin-1").partition(":")
        if colon:
            name, value = name.strip().lower(), value.strip()
            known = response.headers.get(name)
            between = "\n" if name == "x-robots-tag" else ", "  # a crawler's name in one does not hold for the next
            response.headers[name] = value if known is None or name == "location" else f"{known}{between}{value}"
        elif line in {b"\r\n", b"\n"} and self._is_wanted():
            length = response.headers.get("content-length", "")
            if re.fullmatch("[0-9]{1,20}", length) and int(length) > self._max_bytes and not self._truncate:
                raise self._too_large()
            self._show()
        return len(line)

    def _body(self, piece: bytes) -> int:
        self.bytes_read += len(piece)
        if not self._is_wanted():
            self.enough = self.bytes_read > _MAX_ERROR_BYTES
            return -1 if self.enough else len(piece)
        self.response.body += piece
        if self.bytes_read > self._max_bytes:
            if not self._truncate:
                raise self._too_large()
            del self.response.body[self._max_bytes :]
            self.enough = True
            return -1
        self._show()
        return len(piece)

    def _is_wanted(self) -> bool:
        return 200 <= self.response.status < 300

    def _too_large(self) -> FetchError:
        return FetchError(
            Status.TOO_LARGE, f"more than {self._max_bytes} bytes", http_status=self.response.status or None
        )

    def _show(self) -> None:
        if self._watch is not None:
            self._watch(self.response)

    def _stop(self, error: Exception) -> int:
        self.stopped = error
        return -1
