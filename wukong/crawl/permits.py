"""Which of many crawling processes may ask a host, so that together they keep its limit.

Where there are no more processes than a host may be asked by at once, each simply takes its share. Where there are
more, a process needs a permit for each host before it asks it, and keeps it while it has something to ask there. Who
holds which is in one ``Ledger``; a process speaks to it through its ``Permits``, once for many hosts.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable

from wukong.errors import WukongError

Exchange = Callable[[list[str], list[str]], Awaitable[list[str]]]
"""Tells the ledger which hosts are held and which are wanted; gives those of the wanted that are granted."""

_ASK_AGAIN = 0.25
"""Seconds between two requests for what was not granted."""


class LedgerError(WukongError):
    """The ledger of permits cannot be reached, so no host may be asked."""


class Ledger:
    """Who may ask which host: at most ``limit`` holders each.

    A holder says each time all that it holds, so a ledger that lost its memory has it again after one round, and a
    request that is repeated changes nothing.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._holders: dict[str, set[str]] = {}
        self._held: dict[str, set[str]] = {}

    def exchange(self, holder: str, held: Iterable[str], wanted: Iterable[str]) -> list[str]:
        """Note what a holder holds now, and grant it what it wants as far as the limit allows.

        Args:
            holder: name of a process's work; the same again when that work is repeated.
            held: hosts that it holds; all others are taken from it.
            wanted: hosts that it would ask.

        Returns:
            the hosts of ``wanted`` that are granted, in their order.
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
    """One process's permits; create it inside a running loop.

    Args:
        exchange: reaches the ledger.
    """

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._held: set[str] = set()
        self._wanted: dict[str, asyncio.Future[None]] = {}
        self._given_up = False
        self._asking: asyncio.Task[None] | None = None

    async def take(self, host: str) -> None:
        """Wait until the host may be asked by this process.

        Raises:
            LedgerError: the ledger cannot be reached.
        """
        if host in self._held:
            return
        granted = self._wanted.get(host)
        if granted is None:
            granted = self._wanted[host] = asyncio.get_running_loop().create_future()
            self._ask()
        await asyncio.shield(granted)

    def give(self, host: str) -> None:
        """Give a permit back, or no longer want it."""
        if host in self._held:
            self._held.discard(host)
            self._given_up = True
            self._ask()
        elif (granted := self._wanted.pop(host, None)) is not None:
            granted.cancel()

    async def close(self) -> None:
        """Give every permit back, and wait until the ledger knows it."""
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.gather(self._asking, return_exceptions=True)
        self._held.clear()
        await self._exchange([], [])

    def _ask(self) -> None:
        if self._asking is None or self._asking.done():
            self._asking = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        try:
            while self._wanted or self._given_up:
                await asyncio.sleep(0)  # what is wanted at the same moment goes in one request
                self._given_up = False
                granted = await self._exchange(sorted(self._held), list(self._wanted))
                for host in granted:
                    waiting = self._wanted.pop(host, None)
                    if waiting is None:  # given up in the meantime
                        self._given_up = True
                    else:
                        self._held.add(host)
                        waiting.set_result(None)
                if self._wanted and not self._given_up:
                    await asyncio.sleep(_ASK_AGAIN)
        except Exception as error:  # noqa: BLE001 - raised in whoever waits
            waiting_hosts, self._wanted = self._wanted, {}
            lost = LedgerError(
                f"the ledger that says which hosts may be asked cannot be reached ({type(error).__name__}: {error}); "
                "run the crawl again, it continues where it stopped"
            )
            lost.__cause__ = error
            for waiting in waiting_hosts.values():
                if not waiting.done():
                    waiting.set_exception(lost)
