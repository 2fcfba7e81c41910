"""Polite fetching: robots.txt, opt-out list, rate limit for each host, redirects and retries."""

import asyncio
import re
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar
from urllib.parse import urlsplit

from wukong.config.crawl import BYTES_IN_FLIGHT, Crawl
from wukong.crawl import robots, usage
from wukong.crawl.addresses import ConnectTo
from wukong.crawl.clock import Clock
from wukong.crawl.optout import LISTED, OptOut
from wukong.crawl.permits import Permits
from wukong.crawl.room import USUAL_BYTES, Held, NoRoomError, Room, within
from wukong.crawl.status import FetchError, Status
from wukong.crawl.transport import Response, Transport, Watcher
from wukong.crawl.unexpected import unexpected
from wukong.crawl.url import normalise
from wukong.errors import WukongError

MAX_REDIRECTS = 5
MAX_PATIENCE = 60.0
"""Seconds: a host that asks for more between two requests, or to wait longer once, is left alone."""

_FIRST_BACKOFF = 0.5
_RETRIED_NOW = frozenset({Status.TIMEOUT, Status.CONNECTION_ERROR, Status.INCOMPLETE, Status.DNS_ERROR})
_RETRIED_CODES = frozenset({408, 425, 429, 500, 502, 503, 504})
_QUICK_SECONDS = 2.0
_QUICK_BYTES = 16 * 1024
"""A request is slow if it takes longer than ``_QUICK_SECONDS`` plus one second for each ``_QUICK_BYTES`` received."""

_PARSED_IN_LOOP = 16 * 1024
"""A robots.txt with more bytes than this is parsed in a thread."""

_MIN_REPORTED_SECONDS = 1.0

_NEXT_LOOK = 0.1
"""Seconds between two looks for tasks that wait to send a request."""


@dataclass
class Slowness:
    """The time that one slow host has cost this process.

    Attributes:
        seconds: total so far.
        reported: the part of ``seconds`` that ``Fetcher.slow_hosts`` has returned already.
        closed_until: time at which the host may get requests again, on the clock of ``time.monotonic``.
    """

    seconds: float = 0.0
    reported: float = 0.0
    closed_until: float = 0.0


SlowHosts = dict[str, Slowness]
_Result = TypeVar("_Result")


@dataclass
class _Host:
    """The state of one host.

    Attributes:
        slots: limits the number of requests at a time.
        delay: seconds between the starts of two requests.
        next_start: earliest start of the next request, on the clock of ``time.monotonic``.
        users: number of requests that run or wait.
        robots_lock: lets only one task fetch the host's robots.txt.
    """

    slots: asyncio.Semaphore
    delay: float
    next_start: float = 0.0
    users: int = 0
    robots_lock: asyncio.Lock = field(default_factory=asyncio.Lock)


@dataclass(frozen=True)
class RequestOptions:
    """How to fetch one URL.

    Attributes:
        max_bytes: limit on the bytes of the body; None for the configured limit.
        watch: called at the start of each attempt; returns the watcher of this attempt, see ``transport.Watcher``.
        obey_robots: whether robots.txt is obeyed; None for the setting ``politeness.robots_txt``.
        follow_redirects: whether redirects are followed; if not, a redirect is a valid answer.
        truncate: whether a body with more than ``max_bytes`` is cut; if not, it is an error.
    """

    max_bytes: int | None = None
    watch: Callable[[], Watcher] | None = None
    obey_robots: bool | None = None
    follow_redirects: bool = True
    truncate: bool = False


DEFAULT_OPTIONS = RequestOptions()


class Fetcher:
    """Fetches URLs within the limits of the operator's politeness settings.

    Create it inside a running event loop. Its limits hold for one process. If several processes crawl at the same time,
    each gets its share of the limits. If there are more processes than a host accepts requests at a time, they also
    need permits.

    Args:
        config: the crawl's settings.
        connect_to: hosts whose address the operator chose.
        share: number of processes that crawl at the same time and share the limits.
        rules: cache of robots.txt rules; updated in place, so that a process can keep it between parts.
        slow: time that hosts have cost so far; updated in place, so that a process can keep it between parts of one
            crawl.
        permits: decides which processes may send requests to a host; required if ``share`` is more than
            ``per_host_concurrency``.
    """

    def __init__(
        self,
        config: Crawl,
        connect_to: ConnectTo,
        *,
        share: int = 1,
        rules: robots.RobotsCache | None = None,
        slow: SlowHosts | None = None,
        permits: Permits | None = None,
    ) -> None:
        polite = config.politeness
        self._config = config
        self._connect_to = connect_to
        self._product = robots.product_token(polite.user_agent)
        self._opt_out = OptOut.load(polite.opt_out) if polite.opt_out else OptOut()
        self._rules = robots.RobotsCache() if rules is None else rules
        self._slow: SlowHosts = {} if slow is None else slow
        self._hosts: dict[str, _Host] = {}
        self._per_host = max(1, polite.per_host_concurrency // share)
        self._share = min(share, polite.per_host_concurrency)  # processes that send requests to one host at a time
        self._delay = polite.per_host_delay * self._share
        self._permits = permits
        self._in_flight = asyncio.Semaphore(config.concurrency)
        self._sending: set[asyncio.Task[Any] | None] = set()
        self._room = Room(BYTES_IN_FLIGHT)
        self._transport = Transport(user_agent=polite.signature, connect_to=connect_to, connections=config.concurrency)

    @property
    def opt_out(self) -> OptOut:
        """The opt-out list of the configuration."""
        return self._opt_out

    def close(self) -> None:
        """Close every connection."""
        self._transport.close()

    async def cancel_waiting(self, tasks: Iterable[asyncio.Task[Any]]) -> None:
        """Cancel the tasks that wait to send a request, and wait for the rest.

        A task is not cancelled between the start of a request and the end of the block that uses the answer. The
        server would still work on that request while the next one begins, which is more than the host's limit.
        """
        left = {*tasks}
        while left:
            for task in left - self._sending:
                task.cancel()
            _, left = await asyncio.wait(left, timeout=_NEXT_LOOK)

    @asynccontextmanager
    async def get(self, url: str, options: RequestOptions = DEFAULT_OPTIONS) -> AsyncIterator[Response]:
        """Fetch a URL as soon as the limits allow it.

        The block that uses the answer counts as part of the request, so there are never more than ``concurrency``
        answers in memory, with ``BYTES_IN_FLIGHT`` bytes.

        Args:
            url: the URL as it was found; it is normalised here.
            options: how to fetch it.

        Yields:
            The answer with a 2xx code, or with a redirect if redirects are not followed.

        Raises:
            FetchError: there is no such answer; ``status`` gives the reason.
        """
        response, held = await self._get_with_retries(url, options)
        try:
            yield response
        finally:
            self._end_request(held)

    async def _get_with_retries(self, url: str, options: RequestOptions) -> tuple[Response, Held]:
        seconds = self._config.max_seconds  # limit on the transfer time of all attempts and redirects together
        attempt = 0
        while True:
            transfer = Clock()
            try:
                return await self._get_once(url, options, seconds, transfer)
            except FetchError as error:
                seconds -= transfer.spent
                attempt += 1
                if attempt > self._config.retries or seconds <= 0 or not _can_be_retried_now(error):
                    raise
                pause = _FIRST_BACKOFF * 2 ** (attempt - 1)
                if error.retry_after is not None:
                    if error.retry_after > MAX_PATIENCE:
                        raise
                    pause = max(pause, error.retry_after)
                await asyncio.sleep(pause)

    async def _get_once(self, url: str, options: RequestOptions, seconds: float, clock: Clock) -> tuple[Response, Held]:
        """Make one attempt, with its redirects. The caller must call ``_end_request`` after use."""
        polite = self._config.politeness
        obey_robots = polite.robots_txt if options.obey_robots is None else options.obey_robots
        target = normalise(url)
        said: list[usage.Said] = []
        for _ in range(MAX_REDIRECTS + 1):
            if self._opt_out.covers(target):
                raise FetchError(Status.OPTED_OUT, LISTED)
            if obey_robots:
                said.append(await self._check_robots(target))
            size = USUAL_BYTES
            while True:
                try:
                    response, held = await self._request(target, options, seconds, clock, size)
                except NoRoomError as error:
                    size = error.size
                else:
                    break
            said.append(usage.said_in(response.headers, self._product))
            if held is not None:
                response.said = usage.combined(said)
                return response, held
            previous, target = target, normalise(response.location or "")
            if not self._connect_to.may_follow(previous, target):
                raise FetchError(Status.FORBIDDEN_ADDRESS, "a redirect leads to a host whose address was chosen")
        raise FetchError(Status.REDIRECT_ERROR, f"more than {MAX_REDIRECTS} redirects", http_status=response.status)

    async def _request(
        self, target: str, options: RequestOptions, seconds: float, clock: Clock, size: int
    ) -> tuple[Response, Held | None]:
        """Send one request with room for ``size`` bytes; return no bytes held if the answer is a redirect to follow.

        Raises:
            FetchError: there is no 2xx answer and no redirect.
            NoRoomError: there is no room for the body.
        """
        max_bytes = options.max_bytes or self._config.max_bytes
        async with self._host_slot(target):
            await self._in_flight.acquire()
            held, keep, spent = None, False, clock.spent
            try:
                held = await self._room.take(min(size, max_bytes))
                left = seconds - clock.spent
                if left <= 0:
                    raise FetchError(Status.TIMEOUT, "not finished in the time allowed")
                self._sending.add(asyncio.current_task())
                with clock, self._charging_slowness(target) as answer:
                    response = await self._transport.get(
                        target,
                        seconds=left,
                        max_bytes=max_bytes,
                        watch=within(held, max_bytes, options.watch() if options.watch else None),
                        truncate=options.truncate,
                    )
                    answer.append(response)
                if response.location is None and not 200 <= response.status < 300:
                    raise self._http_error(target, response)
                keep = response.location is None or not options.follow_redirects
                held.shrink(len(response.body))
            except NoRoomError:
                clock.spent = spent  # the host is not slower for it
                raise
            else:
                return response, held if keep else None
            finally:
                if not keep:
                    self._end_request(held)

    def _end_request(self, held: Held | None) -> None:
        """Give back what this task's request took: its bytes, and its place among the requests in flight."""
        self._sending.discard(asyncio.current_task())
        self._in_flight.release()
        if held is not None:
            held.release()

    def _http_error(self, url: str, response: Response) -> FetchError:
        wait = _retry_after(response)
        if wait is not None and response.status in {429, 503}:
            # The request to wait concerns the whole host, so all its other URLs wait too, or fail.
            host, now = self._host(url), time.monotonic()
            if wait > MAX_PATIENCE:
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
        """Add seconds to the time that the URL's host has cost beyond what is usual."""
        if seconds > 0:
            self._slowness(url).seconds += seconds

    def slow_hosts(self) -> dict[str, float]:
        """Return the seconds that each host has cost since the last call, without hosts that cost less than one."""
        costs = {}
        for name, slow in self._slow.items():
            if slow.seconds - slow.reported >= _MIN_REPORTED_SECONDS:
                costs[name] = slow.seconds - slow.reported
                slow.reported = slow.seconds
        return costs

    def _slowness(self, url: str) -> Slowness:
        return self._slow.setdefault(urlsplit(url).hostname or "", Slowness())

    @contextmanager
    def _charging_slowness(self, url: str) -> Iterator[list[Response]]:
        """Charge the host for the time that the request in this block takes beyond what is usual for its bytes."""
        started = time.monotonic()
        answers: list[Response] = []
        try:
            yield answers
        finally:
            # Requests that run at the same time cost the crawl no more than one of them.
            received = sum(len(answer.body) for answer in answers)
            slow = time.monotonic() - started - _QUICK_SECONDS - received / _QUICK_BYTES
            self.charge(url, slow / self._per_host)

    async def _in_thread(self, url: str, work: Callable[[], _Result]) -> _Result:
        """Do in a thread what takes long, and charge the URL's host for the processor time."""
        cost = 0.0

        def measured() -> _Result:
            nonlocal cost
            started = time.thread_time()
            try:
                return work()
            finally:
                cost = time.thread_time() - started

        try:
            return await asyncio.to_thread(measured)
        finally:
            self.charge(url, cost)

    def _refuse_slow_host(self, url: str) -> None:
        """Check that the URL's host is not too slow.

        Raises:
            FetchError: (``host_too_slow``) the host has cost too much time, or asked to wait too long.
        """
        slow = self._slow.get(urlsplit(url).hostname or "")
        if slow is None:
            return
        if slow.closed_until > time.monotonic():
            raise FetchError(Status.HOST_TOO_SLOW, f"the host asks to wait longer than {MAX_PATIENCE:g} s")
        if slow.seconds >= self._config.politeness.max_host_seconds:
            raise FetchError(Status.HOST_TOO_SLOW, "the host has cost politeness.max_host_seconds")

    @asynccontextmanager
    async def _host_slot(self, url: str) -> AsyncIterator[None]:
        """Wait until the limits of the URL's host allow one more request; the block is that request.

        Raises:
            FetchError: (``host_too_slow``) the host has cost too much time, or asked to wait too long.
        """
        host, name = self._host(url), urlsplit(url).netloc
        self._refuse_slow_host(url)
        host.users += 1
        try:
            async with host.slots:
                if self._permits is not None:
                    await self._permits.acquire(name)
                self._refuse_slow_host(url)
                while (wait := host.next_start - time.monotonic()) > 0:
                    await asyncio.sleep(wait)
                    self._refuse_slow_host(url)
                if host.delay:
                    host.next_start = time.monotonic() + host.delay
                    self.charge(url, host.delay - self._delay)  # the operator's own delay is not the host's fault
                yield
        finally:
            host.users -= 1
            if self._permits is not None and not host.users:
                self._permits.release(name)

    async def _check_robots(self, url: str) -> usage.Said:
        """Check that robots.txt allows a URL; return what it says about the use of what is there."""
        site = robots.address_of(url)
        rules = self._rules.get(site)
        if rules is None:
            host = self._host(url)
            async with host.robots_lock:
                rules = self._rules.get(site)
                if rules is None:
                    rules = await self._fetch_robots(site)
                    self._rules.put(site, rules)
        if rules.is_slow:
            async with self._host(url).robots_lock:
                self._refuse_slow_host(url)
                said = await self._in_thread(url, lambda: rules.check(url))
        else:
            said = rules.check(url)
        if rules.delay > MAX_PATIENCE:
            raise FetchError(Status.HOST_TOO_SLOW, f"robots.txt asks for more than {MAX_PATIENCE:g} s")
        if rules.delay:
            host = self._host(url)
            host.delay = max(host.delay, rules.delay * self._share)
        return said

    async def _fetch_robots(self, site: str) -> robots.Rules:
        options = RequestOptions(max_bytes=robots.MAX_BYTES + 1, obey_robots=False, truncate=True)
        try:
            async with self.get(site, options) as response:
                body = bytes(response.body)
            if len(body) <= _PARSED_IN_LOOP:
                return robots.Rules.from_body(body, self._product)
            return await self._in_thread(site, lambda: robots.Rules.from_body(body, self._product))
        except FetchError as error:
            return robots.Rules.from_failure(error)
        except WukongError:
            raise
        except Exception as error:  # noqa: BLE001 - it concerns one host, which then gets no requests; it is logged
            return robots.Rules.from_failure(unexpected(site, error))


def _can_be_retried_now(error: FetchError) -> bool:
    """Return whether another attempt within this run may succeed."""
    return error.status in _RETRIED_NOW or (error.status is Status.HTTP_ERROR and error.http_status in _RETRIED_CODES)


def _retry_after(response: Response) -> float | None:
    """Return the seconds that the server asks to wait, from either form of ``Retry-After``; None if it does not."""
    value = response.headers.get("retry-after", "").strip()
    if not value:
        return None
    if re.fullmatch("[0-9]+", value):
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError, IndexError, OSError):
        return None  # neither form, or a date that does not exist
