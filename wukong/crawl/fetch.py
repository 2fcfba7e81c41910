"""Polite fetching: robots.txt, the opt-out list, a pace for each host, redirects, retries."""

import asyncio
import logging
import re
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from urllib.parse import urlsplit

from wukong.config import Crawl
from wukong.crawl import robots
from wukong.crawl.addresses import ConnectTo
from wukong.crawl.clock import Clock
from wukong.crawl.permits import Permits
from wukong.crawl.status import FetchError, Status
from wukong.crawl.transport import Response, Transport, Watcher
from wukong.crawl.unexpected import unexpected
from wukong.crawl.url import normalise
from wukong.errors import WukongError
from wukong.publish.optout import OptOut

logger = logging.getLogger(__name__)

MAX_REDIRECTS = 5
_FIRST_BACKOFF = 0.5
_RETRIED_NOW = frozenset({Status.TIMEOUT, Status.CONNECTION_ERROR, Status.INCOMPLETE, Status.DNS_ERROR})
_RETRIED_CODES = frozenset({408, 425, 429, 500, 502, 503, 504})
_HELD_HOSTS = 100_000
_QUICK_SECONDS = 2.0
_QUICK_BYTES = 16 * 1024
"""A request that takes no more than so many seconds, and one for each so many bytes it gives, is not slow."""

_PARSED_IN_PLACE = 16 * 1024
"""Bytes of a robots.txt: a larger one is parsed in a thread."""

_TOLD_SECONDS = 1.0

RobotsCache = dict[str, robots.Rules]


@dataclass
class Slowness:
    """What one host's slowness has cost this process.

    Attributes:
        seconds: so far.
        told: how much of it ``Fetcher.slow_hosts`` has told.
        closed_until: when the host may be asked again, on ``time.monotonic``'s clock.
    """

    seconds: float = 0.0
    told: float = 0.0
    closed_until: float = 0.0


SlowHosts = dict[str, Slowness]


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
        slow: what hosts have cost already; filled in place, so that a process keeps it between parts of one crawl.
        permits: decides which processes may ask a host; needed where ``share`` is more than ``per_host_concurrency``.
    """

    def __init__(
        self,
        config: Crawl,
        connect_to: ConnectTo,
        *,
        share: int = 1,
        rules: RobotsCache | None = None,
        slow: SlowHosts | None = None,
        permits: Permits | None = None,
    ) -> None:
        polite = config.politeness
        self._config = config
        self._product = robots.product_token(polite.user_agent)
        self._opt_out = OptOut.load(polite.opt_out) if polite.opt_out else OptOut()
        self._rules: RobotsCache = {} if rules is None else rules
        self._slow: SlowHosts = {} if slow is None else slow
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
        truncate: bool = False,
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
            truncate: a body over ``max_bytes`` is cut there; else it is an error.

        Yields:
            the answer with a 2xx code, or with a redirect where these are not followed.

        Raises:
            FetchError: there is none; ``status`` says why.
        """
        response = await self._with_retries(url, max_bytes, watch, obey_robots, follow_redirects, truncate)
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
        truncate: bool,
    ) -> Response:
        if obey_robots is None:
            obey_robots = self._config.politeness.robots_txt
        seconds = self._config.max_seconds  # time on the wire, over all attempts and redirects
        attempt = 0
        while True:
            started = Clock()
            try:
                return await self._follow(
                    url, seconds, max_bytes, watch, obey_robots, follow_redirects, truncate, started
                )
            except FetchError as error:
                seconds -= started.spent
                attempt += 1
                if attempt > self._config.retries or seconds <= 0 or not _is_passing(error):
                    raise
                pause = _FIRST_BACKOFF * 2 ** (attempt - 1)
                if error.retry_after is not None:
                    if error.retry_after > self._config.politeness.max_retry_after:
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
        truncate: bool,
        clock: Clock,
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
                    with clock, self._watching(target) as answer:
                        response = await self._transport.get(
                            target,
                            seconds=left,
                            max_bytes=max_bytes or self._config.max_bytes,
                            watch=watch() if watch else None,
                            truncate=truncate,
                        )
                        answer.append(response)
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
            # The server speaks for the whole host, so every other URL of it waits too, or is given up.
            host, now = self._host(url), time.monotonic()
            if wait > self._config.politeness.max_retry_after:
                self._slowness(url).closed_until = now + wait
            elif now + wait > host.next_start:
                self.charge(url, now + wait - max(now, host.next_start))
                host.next_start = now + wait
        return FetchError(Status.HTTP_ERROR, f"HTTP {response.status}", http_status=response.status, retry_after=wait)

    def _host(self, url: str) -> _Host:
        name = urlsplit(url).netloc
        host = self._hosts.get(name)
        if host is None:
            host = self._hosts[name] = _Host(asyncio.Semaphore(self._per_host), self._delay)
        return host

    def charge(self, url: str, seconds: float) -> None:
        """Note that a URL's host has cost so many seconds more than it should."""
        if seconds > 0:
            self._slowness(url).seconds += seconds

    def slow_hosts(self) -> dict[str, float]:
        """What each host has cost since last asked, in seconds; hosts that cost less than one are left out."""
        told = {}
        for name, slow in self._slow.items():
            if slow.seconds - slow.told >= _TOLD_SECONDS:
                told[name] = slow.seconds - slow.told
                slow.told = slow.seconds
        return told

    def _slowness(self, url: str) -> Slowness:
        return self._slow.setdefault(urlsplit(url).hostname or "", Slowness())

    @contextmanager
    def _watching(self, url: str) -> Iterator[list[Response]]:
        """Charge a host for a request that is slow: wholly where it gives nothing, else for what is over the usual."""
        started = time.monotonic()
        answers: list[Response] = []
        try:
            yield answers
        finally:
            # Requests that run side by side cost the crawl no more than one of them.
            given = sum(len(answer.body) for answer in answers)
            slow = time.monotonic() - started - _QUICK_SECONDS - given / _QUICK_BYTES
            self.charge(url, slow / self._per_host)

    def _check_patience(self, url: str) -> None:
        """Let pass a URL whose host has not used up the crawl's patience.

        Raises:
            FetchError: (``host_too_slow``) it has, or it asked to be left alone for long.
        """
        slow = self._slow.get(urlsplit(url).hostname or "")
        if slow is None:
            return
        if slow.closed_until > time.monotonic():
            raise FetchError(Status.HOST_TOO_SLOW, "the host asks to wait longer than politeness.max_retry_after")
        if slow.seconds >= self._config.politeness.max_host_seconds:
            raise FetchError(Status.HOST_TOO_SLOW, "the host has cost politeness.max_host_seconds")

    @asynccontextmanager
    async def _turn(self, url: str) -> AsyncIterator[None]:
        """Wait until the host's pace allows one more request.

        Raises:
            FetchError: (``host_too_slow``) the host has used up the crawl's patience.
        """
        host, name = self._host(url), urlsplit(url).netloc
        self._check_patience(url)
        host.users += 1
        try:
            async with host.slots:
                if self._permits is not None:
                    await self._permits.take(name)
                self._check_patience(url)
                while (wait := host.next_start - time.monotonic()) > 0:
                    await asyncio.sleep(wait)
                    self._check_patience(url)
                if host.delay:
                    host.next_start = time.monotonic() + host.delay
                    self.charge(url, host.delay - self._delay)  # the operator's own is not the host's doing
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
        rules.check(url, self._product)
        asked = rules.delay(self._product)
        if asked > self._config.politeness.max_crawl_delay:
            raise FetchError(Status.HOST_TOO_SLOW, "robots.txt asks for more than politeness.max_crawl_delay")
        if asked:
            host = self._host(url)
            host.delay = max(host.delay, asked * self._share)

    async def _ask_robots(self, site: str) -> robots.Rules:
        try:
            async with self.get(site, max_bytes=robots.MAX_BYTES + 1, obey_robots=False, truncate=True) as response:
                body = bytes(response.body)
            if len(body) <= _PARSED_IN_PLACE:
                return robots.Rules.from_body(body, self._product)
            return await asyncio.to_thread(robots.Rules.from_body, body, self._product)
        except FetchError as error:
            return robots.Rules.from_failure(error)
        except WukongError:
            raise
        except Exception as error:  # noqa: BLE001 - of one host, which is then not asked; it is logged
            return robots.Rules.from_failure(unexpected(site, error))


def _is_passing(error: FetchError) -> bool:
    """Tell whether trying again within this run may help."""
    return error.status in _RETRIED_NOW or (error.status is Status.HTTP_ERROR and error.http_status in _RETRIED_CODES)


def _retry_after(response: Response) -> float | None:
    """Seconds that the server asks to wait, from either form of ``Retry-After``; None where it does not."""
    value = response.headers.get("retry-after", "").strip()
    if not value:
        return None
    if re.fullmatch("[0-9]+", value):
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError, IndexError, OSError):
        return None  # neither form, or a date that no calendar has
