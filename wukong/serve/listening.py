"""The socket of a server, and the names under which it may be asked."""

import errno
import ipaddress
import json
import socket
import sys

from uvicorn.protocols.http.auto import AutoHTTPProtocol

from wukong.errors import ConfigError

_FILES = 65_536
_HEADERS = 64 * 2**10
USUAL_PORT = 8500
"""Port of a server for which no port is asked."""


def listen(host: str, port: int | None) -> socket.socket:
    """Take a port, before anything that takes long.

    Args:
        host: address to listen on.
        port: port; 0 for any that is free; None for ``USUAL_PORT``, or any that is free where that is taken.

    Raises:
        ConfigError: the address is not of this machine, or the port is taken.
    """
    asked = USUAL_PORT if port is None else port
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # With its protocol: asyncio sends at once only on sockets that name TCP. Else the body of an answer waits until the
    # client has acknowledged its head, about 40 ms.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, asked))
    except OSError as error:
        listener.close()
        if port is None and error.errno == errno.EADDRINUSE:
            return listen(host, 0)
        raise ConfigError(f"cannot listen on {host}, port {asked} ({error.strerror}): give another --port") from error
    listener.listen(2048)
    return listener


def allow_connections() -> None:
    """Let this process have as many files open as it may: each client holds one, and the usual limit is 1,024."""
    if sys.platform != "win32":
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        most = _FILES if hard == resource.RLIM_INFINITY else min(hard, _FILES)
        if soft != resource.RLIM_INFINITY and soft < most:
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


class Protocol(AutoHTTPProtocol):  # type: ignore[misc,valid-type]
    """HTTP of a server that says in its own way what it cannot read, such as an address of more than 64 KiB."""

    _bytes_of_headers = 0

    def on_message_begin(self) -> None:
        """Begin a request; its parser calls it."""
        self._bytes_of_headers = 0
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header; its parser calls it, and ends where an error is raised."""
        self._bytes_of_headers += len(name) + len(value)
        if self._bytes_of_headers > _HEADERS:
            raise ValueError
        super().on_header(name, value)

    def send_400_response(self, msg: str) -> None:
        """Answer what is no request, and end the connection; uvicorn calls it."""
        status = "400 Bad Request"
        wrong = "this is no HTTP request that can be read, or its address is too long: shorten the text of the query"
        if self._bytes_of_headers > _HEADERS:
            status = "431 Request Header Fields Too Large"
            wrong = f"the headers have more than {_HEADERS // 2**10} KiB: send fewer cookies and other headers"
        body = json.dumps({"error": wrong}).encode()
        head = f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
        self.transport.write(f"{head}connection: close\r\n\r\n".encode() + body)
        self.transport.close()


def address(listening: socket.socket) -> str:
    """Return the address of a server's socket as it stands in a URL; one that listens everywhere is on this machine."""
    host = str(listening.getsockname()[0]).partition("%")[0]
    shown = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - what is shown, not what is bound
    return f"[{shown}]" if ":" in shown else shown


def hosts(listening: socket.socket, host: str) -> tuple[str, ...]:
    """Return the names under which a server may be asked, without ports; ``*`` for any, if it is not on loopback.

    Args:
        listening: its socket. What it is bound to decides, because loopback has many names.
        host: what the user calls it.
    """
    bound = ipaddress.ip_address(str(listening.getsockname()[0]).partition("%")[0])
    mapped = bound.ipv4_mapped if isinstance(bound, ipaddress.IPv6Address) else None
    if not (mapped or bound).is_loopback:
        return ("*",)
    called = f"[{host}]" if ":" in host else host
    return ("127.0.0.1", "localhost", "[::1]", address(listening), called.lower().rstrip("."))
