"""A proxy before an object store that adds 20 ms to each request, as a store of a cluster does, and counts them."""

import asyncio
import threading
from collections import Counter
from urllib.parse import unquote, urlsplit

METHODS = (b"GET ", b"PUT ", b"HEAD", b"POST", b"DELE")
SECONDS = 0.02


class SlowStore:
    """A proxy on a port of loopback, in a thread.

    Args:
        target: address of the store, such as ``http://127.0.0.1:8333``.

    Attributes:
        requests: number of requests, by method.
        read: how often the content of each object was asked for, by its path and the range of bytes, if one was named.
    """

    def __init__(self, target: str) -> None:
        self.requests: Counter[str] = Counter()
        self.read: Counter[tuple[str, str]] = Counter()
        self._to = urlsplit(target)
        self._loop, started = asyncio.new_event_loop(), threading.Event()

        async def start() -> None:
            server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
            self.endpoint = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            started.set()

        def serve() -> None:
            self._loop.create_task(start())
            self._loop.run_forever()

        threading.Thread(target=serve, daemon=True).start()
        started.wait()

    async def _connected(self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        store, to_store = await asyncio.open_connection(self._to.hostname, self._to.port)
        answered = asyncio.create_task(_pass_on(store, to_client))
        try:
            # A client sends a request after the answer to the one before, so what follows is part of a body.
            while data := await client.read(1 << 16):
                if data.startswith(METHODS):
                    self._count(data)
                    await asyncio.sleep(SECONDS)
                to_store.write(data)
                await to_store.drain()
        except ConnectionError:
            pass
        finally:
            to_store.close()
            await answered

    def _count(self, data: bytes) -> None:
        first, *headers = data.partition(b"\r\n\r\n")[0].decode("latin-1").split("\r\n")
        method, _, rest = first.partition(" ")
        self.requests[method] += 1
        place = urlsplit(rest.partition(" ")[0])
        if method == "GET" and "list-type" not in place.query:
            part = next((line.partition("=")[2] for line in headers if line.lower().startswith("range:")), "")
            self.read[unquote(place.path), part] += 1


async def _pass_on(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    try:
        while data := await source.read(1 << 16):
            target.write(data)
            await target.drain()
    except ConnectionError:
        pass
    finally:
        target.close()
