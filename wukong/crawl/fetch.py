"""Polite fetching: robots.txt, the opt-out list, a pace for each host, redirects, retries."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from urllib.parse import urlsplit

from wukong.config import Crawl
from wukong.crawl import robots
from wukong.crawl.addresses import ConnectTo
from wukong.crawl.optout import OptOut
from wukong.crawl.permits import Permits
from wukong.crawl.status import FetchError, Status
from wukong.crawl.transport import Response, Transport, Watcher, normalise

logger = logging.getLogger(__name__)

MAX_REDIRECTS = 5
MAX_RETRY_AFTER = 60.0
"""Seconds: a server that asks to wait longer is left alone in this run."""

_FIRST_BACKOFF = 0.5
_RETRIED_NOW = frozenset({Status.TIMEOUT, Status.CONNECTION_ERROR, Status.INCOMPLETE, Status.DNS_ERROR})
_RETRIED_CODES = frozenset({408, 425, 429, 500, 502, 503, 504})
_HELD_HOSTS = 100_000

RobotsCache = dict[str, robots.Rules]


@dataclass
class _Host:
    """How one host is being treated: connections in use, when the next request may start, how many ask or wait to."""

    slots: asyncio.Semaphore
    delay: float
    next_start: float = 0.0
    users: int = 0
    asking_robots: asyncio.Lock = field(default_factory=asyncio.Lock)


class Fetcher:
    """Fetches URLs as the operator's politeness settings say.

    Create it inside a running loop. Its limits hold for one process: where several run at once, each gets its share,
    and where there are more of them than a host may be asked by at once, they need permits.

    Args:
        config: the crawl's settings.
        connect_to: hosts whose address the operator chose.
        share: how many processes crawl at the same time and so divide what a host is asked for.
        rules: robots.txt rules already known; the cache is filled in place, so that a process keeps it between parts.
        permits: decides which processes may ask a host; needed where ``share`` is more than ``per_host_concurrency``.
    """

    def __init__(
        self,
        config: Crawl,
        connect_to: ConnectTo,
        *,
        share: int = 1,
        rules: RobotsCache | None = None,
        permits: Permits | None = None,
    ) -> None:
        polite = config.politeness
        self._config = config
        self._product = robots.product_token(polite.user_agent)
        self._opt_out = OptOut.load(polite.opt_out) if polite.opt_out else OptOut()
        self._rules: RobotsCache = {} if rules is None else rules
        self._hosts: dict[str, _Host] = {}
        self._per_host = max(1, polite.per_host_concurrency // share)
        self._share = min(share, polite.per_host_concurrency)  # of processes that ask one host at a time
        self._delay = polite.per_host_delay * self._share
        self._permits = permits
        self._in_flight = asyncio.Semaphore(config.concurrency)
        self._transport = Transport(user_agent=polite.user_agent, connect_to=connect_to, connections=config.concurrency)

    @property
    def opt_out(self) -> OptOut:
        """The opt-out list in force."""
        return self._opt_out

    def close(self) -> None:
        """Close every connection."""
        self._transport.close()

    @asynccontextmanager
    async def get(
        self,
        url: str,
        *,
        max_bytes: int | None = None,
        watch: Callable[[], Watcher] | None = None,
        obey_robots: bool | None = None,
        follow_redirects: bool = True,
    ) -> AsyncIterator[Response]:
        """Fetch a URL, in its turn.

        The block that uses the answer counts as part of the request: no more than ``concurrency`` answers are held in
        memory, however slowly they are used.

        Args:
            url: as found; it is normalised here.
            max_bytes: of the body; the configured limit where None.
            watch: makes the watcher of one attempt, see ``transport.Watcher``.
            obey_robots: overrides ``politeness.robots_txt``.
            follow_redirects: whether a redirect is followed or is itself the answer.

        Yields:
            the answer with a 2xx code, or with a redirect where these are not followed.

        Raises:
            FetchError: there is none; ``status`` says why.
        """
        response = await self._with_retries(url, max_bytes, watch, obey_robots, follow_redirects)
        try:
            yield response
        finally:
            self._in_flight.release()

    async def _with_retries(
        self,
        url: str,
        max_bytes: int | None,
        watch: Callable[[], Watcher] | None,
        obey_robots: bool | None,
        follow_redirects: bool,
    ) -> Response:
        if obey_robots is None:
            obey_robots = self._config.politeness.robots_txt
        seconds = self._config.max_seconds  # time on the wire, over all attempts and redirects
        attempt = 0
        while True:
            started = _Clock()
            try:
                return await self._follow(url, seconds, max_bytes, watch, obey_robots, follow_redirects, started)
            except FetchError as error:
                seconds -= started.spent
                attempt += 1
                if attempt > self._config.retries or seconds <= 0 or not _is_passing(error):
                    raise
                pause = _FIRST_BACKOFF * 2 ** (attempt - 1)
                if error.retry_after is not None:
                    if error.retry_after > MAX_RETRY_AFTER:
                        raise
                    pause = max(pause, error.retry_after)
                await asyncio.sleep(pause)

    async def _follow(
        self,
        url: str,
        seconds: float,
        max_bytes: int | None,
        watch: Callable[[], Watcher] | None,
        obey_robots: bool,
        follow_redirects: bool,
        clock: "_Clock",
    ) -> Response:
        """Make one attempt; the answer comes with a place in flight, which the caller gives back."""
        target = normalise(url)
        for _ in range(MAX_REDIRECTS + 1):
            if self._opt_out.covers(target):
                raise FetchError(Status.OPTED_OUT, "the opt-out list names this URL or its domain")
            if obey_robots:
                await self._check_robots(target)
            async with self._turn(target):
                await self._in_flight.acquire()
                keep = False
                try:
                    left = seconds - clock.spent
                    if left <= 0:
                        raise FetchError(Status.TIMEOUT, "not finished in the time allowed")
                    with clock:
                        response = await self._transport.get(
                            target,
                            seconds=left,
                            max_bytes=max_bytes or self._config.max_bytes,
                            watch=watch() if watch else None,
                        )
                    location = response.location
                    if location is None and not 200 <= response.status < 300:
                        raise self._http_error(target, response)
                    keep = location is None or not follow_redirects
                finally:
                    if not keep:
                        self._in_flight.release()
            if location is None or not follow_redirects:
                return response
            target = normalise(location)
        raise FetchError(Status.REDIRECT_ERROR, f"more than {MAX_REDIRECTS} redirects", http_status=response.status)

    def _http_error(self, url: str, response: Response) -> FetchError:
        wait = _retry_after(response)
        if wait is not None and response.status in {429, 503}:
            # The server speaks for the whole host, so every other URL of it waits too.
            host = self._host(url)
            host.next_start = max(host.next_start, time.monotonic() + min(wait, MAX_RETRY_AFTER))
        return FetchError(Status.HTTP_ERROR, f"HTTP {response.status}", http_status=response.status, retry_after=wait)

    def _host(self, url: str) -> _Host:
        name = urlsplit(url).netloc
        host = self._hosts.get(name)
        if host is None:
            host = self._hosts[name] = _Host(asyncio.Semaphore(self._per_host), self._delay)
        return host

    @asynccontextmanager
    async def _turn(self, url: str) -> AsyncIterator[None]:
        """Wait until the host's pace allows one more request."""
        host, name = self._host(url), urlsplit(url).netloc
        host.users += 1
        try:
            async with host.slots:
                if self._permits is not None:
                    await self._permits.take(name)
                while (wait := host.next_start - time.monotonic()) > 0:
                    await asyncio.sleep(wait)
                if host.delay:
                    host.next_start = time.monotonic() + host.delay
                yield
        finally:
            host.users -= 1
            if self._permits is not None and not host.users:
                self._permits.give(name)

    async def _check_robots(self, url: str) -> None:
        site = robots.address_of(url)
        rules = self._rules.get(site)
        if rules is None or rules.expires < time.monotonic():
            host = self._host(url)
            async with host.asking_robots:
                rules = self._rules.get(site)
                if rules is None or rules.expires < time.monotonic():
                    rules = await self._ask_robots(site)
                    if len(self._rules) >= _HELD_HOSTS:
                        self._rules.pop(next(iter(self._rules)))
                    self._rules[site] = rules
        asked = rules.delay(self._product)
        if asked:
            host = self._host(url)
            host.delay = max(host.delay, asked * self._share)
        rules.check(url, self._product)

    async def _ask_robots(self, site: str) -> robots.Rules:
        try:
            async with self.get(site, max_bytes=8 * robots.MAX_BYTES, obey_robots=False) as response:
                return robots.Rules.from_body(bytes(response.body))
        except FetchError as error:
            return robots.Rules.from_failure(error)


class _Clock:
    """Adds up the time spent inside its blocks."""

    def __init__(self) -> None:
        self.spent = 0.0
        self._entered = 0.0

    def __enter__(self) -> None:
        self._entered = time.monotonic()

    def __exit__(self, *_: object) -> None:
        self.spent += time.monotonic() - self._entered


def _is_passing(error: FetchError) -> bool:
    """Tell whether trying again within this run may help."""
    return error.status in _RETRIED_NOW or (error.status is Status.HTTP_ERROR and error.http_status in _RETRIED_CODES)


def _retry_after(response: Response) -> float | None:
    """Seconds that the server asks to wait, from either form of ``Retry-After``; None where it does not."""
    value = response.headers.get("retry-after", "").strip()
    if not value:
        return None
    if value.isdigit():
        return float(value)
    try:
        moment = parsedate_to_datetime(value)
    except ValueError:
        return None
    return max(0.0, moment.timestamp() - time.time())
