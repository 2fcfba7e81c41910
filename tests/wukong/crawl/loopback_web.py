"""A web server on loopback. Its handlers write raw bytes, so that it can misbehave like any real server."""

import asyncio
import ssl
import threading
from collections import Counter
from collections.abc import Awaitable, Callable
from concurrent.futures import Future

Handler = Callable[[str, asyncio.StreamWriter], Awaitable[None]]


class Web:
    """Serves ``handlers`` by path and 404 for other paths; records the count and the headers of requests by path."""

    def __init__(self, tls: ssl.SSLContext | None = None, address: str = "127.0.0.1") -> None:
        self.handlers: dict[str, Handler] = {}
        self.fallback: Handler | None = None
        self.requests: Counter[str] = Counter()
        self.headers: dict[str, dict[str, str]] = {}
        self.times: list[tuple[str, float]] = []
        self.connections = 0
        self.open_now = 0
        self.most_open = 0
        self._tls = tls
        self._address = address
        self._loop = asyncio.new_event_loop()
        ready: Future[int] = Future()
        self._thread = threading.Thread(target=self._run, args=(ready,), daemon=True)
        self._thread.start()
        self.port = ready.result(timeout=120)

    @property
    def connect_to(self) -> tuple[str, int]:
        return (self._address, self.port)

    def bytes_at(
        self, path: str, body: bytes, kind: str = "image/jpeg", status: str = "200 OK", **headers: str
    ) -> None:
        """Answer a path with a well-formed response; header names are given with underscores."""
        self.handlers[path] = answering(body, kind, status, **headers)

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._main.cancel)
        self._thread.join(timeout=120)

    def _run(self, ready: "Future[int]") -> None:
        asyncio.set_event_loop(self._loop)
        self._main = self._loop.create_task(self._serve(ready))
        try:
            self._loop.run_until_complete(self._main)
        except asyncio.CancelledError:
            pass
        finally:
            for task in asyncio.all_tasks(self._loop):
                task.cancel()
            self._loop.run_until_complete(asyncio.sleep(0.01))
            self._loop.close()

    async def _serve(self, ready: "Future[int]") -> None:
        server = await asyncio.start_server(self._connection, self._address, 0, ssl=self._tls, backlog=256)
        ready.set_result(server.sockets[0].getsockname()[1])
        async with server:
            await asyncio.Event().wait()

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
                path = head[0].split(" ")[1]
                self.requests[path] += 1
                self.times.append((path, self._loop.time()))
                self.headers[path] = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in head[1:])}
                handler = self.handlers.get(path) or self.handlers.get(path.partition("?")[0]) or self.fallback
                self.open_now += 1
                self.most_open = max(self.most_open, self.open_now)
                try:
                    await (handler or answering(b"", status="404 Not Found"))(path, writer)
                    await writer.drain()
                finally:
                    self.open_now -= 1
        except (
            asyncio.IncompleteReadError,
            ConnectionError,
            asyncio.LimitOverrunError,
            ssl.SSLError,
            asyncio.CancelledError,
        ):
            pass
        finally:
            writer.close()


def answering(body: bytes, kind: str = "image/jpeg", status: str = "200 OK", **headers: str) -> Handler:
    """A handler that answers correctly."""
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", f"Content-Type: {kind}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    data = "\r\n".join([*lines, "", ""]).encode("latin-1") + body

    async def handler(_path: str, writer: asyncio.StreamWriter) -> None:
        writer.write(data)

    return handler


def raw(data: bytes, *, then_close: bool = True, reset: bool = False) -> Handler:
    """A handler that writes these bytes and then closes or resets the connection."""

    async def handler(_path: str, writer: asyncio.StreamWriter) -> None:
        writer.write(data)
        if reset:
            await asyncio.sleep(0.02)
            writer.transport.abort()
        elif then_close:
            await writer.drain()
            writer.close()

    return handler


def redirect(target: str, status: str = "302 Found") -> Handler:
    return answering(b"", "text/plain", status, Location=target)


def in_turn(*handlers: Handler) -> Handler:
    """A handler that uses the given handlers one after another; the last one stays."""
    left = list(handlers)

    async def handler(path: str, writer: asyncio.StreamWriter) -> None:
        await (left.pop(0) if len(left) > 1 else left[0])(path, writer)

    return handler
