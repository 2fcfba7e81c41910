"""Permits that keep the limit of requests to a host over many crawling processes.

If there are no more processes than requests allowed to a host at a time, each process takes its share of the limit. If
there are more, a process needs a permit for a host before it sends requests there, and keeps it until it has no more
requests for this host. One ``Ledger`` records who holds which permits. A process talks to it through its ``Permits``,
which joins the requests for many hosts.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable

from wukong.errors import WukongError

Exchange = Callable[[list[str], list[str]], Awaitable[list[str]]]
"""Tells the ledger which hosts are held and which are wanted; returns the wanted hosts that are granted."""

_RETRY_SECONDS = 0.25
"""Time between two requests for hosts that were not granted."""


class LedgerError(WukongError):
    """The ledger of permits cannot be reached, so no requests may be sent."""


class Ledger:
    """Records which process holds a permit for which host; a host has at most ``limit`` holders.

    Every request lists all hosts that its holder holds. So a ledger that was restarted is complete again after one
    request of each holder, and repeating a request changes nothing.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._holders: dict[str, set[str]] = {}
        self._held: dict[str, set[str]] = {}

    def exchange(self, holder: str, held: Iterable[str], wanted: Iterable[str]) -> list[str]:
        """Record the hosts that a holder holds now, and grant it more hosts within the limit.

        Args:
            holder: name of a process's work; the same name if this work is repeated.
            held: hosts that it holds; it loses its permits for all others.
            wanted: hosts that it wants to send requests to.

        Returns:
            The hosts of ``wanted`` that are granted, in the same order.
        """
        now = set(held)
        for host in self._held.pop(holder, set()) - now:
            holders = self._holders[host]
            holders.discard(holder)
            if not holders:
                del self._holders[host]
        granted = [host for host in wanted if host in now or len(self._holders.get(host, ())) < self._limit]
        now.update(granted)
        for host in now:
            self._holders.setdefault(host, set()).add(holder)
        if now:
            self._held[holder] = now
        return granted


class Permits:
    """The permits of one process; create it inside a running event loop.

    Args:
        exchange: calls the ledger.
    """

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._held: set[str] = set()
        self._wanted: dict[str, asyncio.Future[None]] = {}
        self._has_released = False
        self._exchanges: asyncio.Task[None] | None = None

    async def acquire(self, host: str) -> None:
        """Wait until this process has a permit for the host.

        Raises:
            LedgerError: the ledger cannot be reached.
        """
        if host in self._held:
            return
        granted = self._wanted.get(host)
        if granted is None:
            granted = self._wanted[host] = asyncio.get_running_loop().create_future()
            self._start_exchanges()
        await asyncio.shield(granted)

    def release(self, host: str) -> None:
        """Give a permit back, or cancel the request for it."""
        if host in self._held:
            self._held.discard(host)
            self._has_released = True
            self._start_exchanges()
        elif (granted := self._wanted.pop(host, None)) is not None:
            granted.cancel()

    async def close(self) -> None:
        """Give all permits back, and wait until the ledger has recorded it."""
        if self._exchanges is not None:
            self._exchanges.cancel()
            await asyncio.gather(self._exchanges, return_exceptions=True)
        self._held.clear()
        await self._exchange([], [])

    def _start_exchanges(self) -> None:
        if self._exchanges is None or self._exchanges.done():
            self._exchanges = asyncio.get_running_loop().create_task(self._exchange_while_needed())

    async def _exchange_while_needed(self) -> None:
        """Call the ledger until nothing is wanted and all releases are recorded."""
        try:
            while self._wanted or self._has_released:
                await asyncio.sleep(0)  # so that hosts wanted at the same moment go into one request
                self._has_released = False
                granted = await self._exchange(sorted(self._held), list(self._wanted))
                for host in granted:
                    waiting = self._wanted.pop(host, None)
                    if waiting is None:  # cancelled in the meantime
                        self._has_released = True
                    else:
                        self._held.add(host)
                        waiting.set_result(None)
                if self._wanted and not self._has_released:
                    await asyncio.sleep(_RETRY_SECONDS)
        except Exception as error:  # noqa: BLE001 - it is raised in all tasks that wait
            waiting_hosts, self._wanted = self._wanted, {}
            lost = LedgerError(
                f"the ledger of permits for hosts cannot be reached ({type(error).__name__}: {error}); "
                "run the crawl again, it continues where it stopped"
            )
            lost.__cause__ = error
            for waiting in waiting_hosts.values():
                if not waiting.done():
                    waiting.set_exception(lost)
