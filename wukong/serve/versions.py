"""Exchange what a server answers with while it answers: the old index is there until the new one is loaded."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from wukong.errors import WukongError
from wukong.serve import garbage
from wukong.serve.service import Service

log = logging.getLogger(__name__)


@dataclass
class _Served:
    """A version: its application, and how many requests it answers at this moment."""

    application: ASGIApp
    service: Service
    requests: int = 0
    is_old: bool = False

    def close_if_done(self) -> None:
        """Close an old version once its last request is answered."""
        if self.is_old and not self.requests:
            self.service.close()
            garbage.collect_kept()


class Switch:
    """An ASGI application that passes a request to the version that is loaded, with which it stays to its end.

    Args:
        make: makes the application of a service; called in a thread once there is an event loop.
        service: the first version; None where it is loaded later.
        watch: is run as long as the application is, for instance ``Watch``; None for nothing.
    """

    def __init__(
        self,
        make: Callable[[Service], ASGIApp],
        service: Service | None = None,
        watch: "Callable[[Switch], Awaitable[None]] | None" = None,
    ) -> None:
        self._make, self._watch = make, watch
        self._served = None if service is None else _Served(make(service), service)

    @property
    def is_loaded(self) -> bool:
        """Whether there is a version that answers."""
        return self._served is not None

    async def use(self, service: Service) -> None:
        """Answer with this service from now on; the one before is closed when it has answered what has begun."""
        made = _Served(await asyncio.to_thread(self._make, service), service)
        before, self._served = self._served, made
        if before is not None:
            before.is_old = True
            before.close_if_done()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or start and end with the server."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
            return
        served = self._served
        if served is None:
            await JSONResponse({"error": "the index is being loaded: try again in a minute"}, 503)(scope, receive, send)
            return
        served.requests += 1
        try:
            await served.application(scope, receive, send)
        finally:
            served.requests -= 1
            served.close_if_done()

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        watching = None if self._watch is None else asyncio.ensure_future(self._watch(self))
        await send({"type": "lifespan.startup.complete"})
        await receive()
        if watching is not None:
            watching.cancel()
        if self._served is not None:
            self._served.service.close()
        await send({"type": "lifespan.shutdown.complete"})


class Watch:
    """Looks from time to time whether there is another version, and loads it.

    Args:
        current: tells which version there is now, in little time; called in a thread.
        load: loads it.
        seconds: between two looks.
        known: the version that is loaded; None if none is.
    """

    def __init__(
        self,
        current: Callable[[], Hashable],
        load: Callable[[], Awaitable[Service]],
        seconds: float,
        known: Hashable = None,
    ) -> None:
        self._current, self._load, self._seconds, self._known = current, load, seconds, known
        self._one = asyncio.Lock()
        self._complaint = ""

    async def __call__(self, switch: Switch) -> None:
        """Look until the task is cancelled."""
        while True:
            await asyncio.sleep(self._seconds)
            await self.look(switch)

    async def look(self, switch: Switch) -> None:
        """Load another version if there is one; if that does not succeed, the old one goes on answering."""
        try:
            await self.change(switch)
        except (WukongError, OSError) as error:
            if str(error) != self._complaint:
                log.warning("the old index goes on answering: %s", error)
            self._complaint = str(error)

    async def change(self, switch: Switch) -> None:
        """Load another version if there is one.

        Raises:
            WukongError, OSError: it cannot be loaded.
        """
        async with self._one:
            now = await asyncio.to_thread(self._current)
            if now == self._known:
                return
            log.info("the index is loaded; if there is one already, it answers until then")
            service = await self._load()
            await switch.use(service)
            self._known, self._complaint = now, ""
            log.info("%d pictures are searched now", service.pictures)
