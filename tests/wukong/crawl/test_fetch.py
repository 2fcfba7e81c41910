"""Politeness, retries and redirects, as the server sees them."""

import asyncio
import email.utils
import itertools
import time
from collections.abc import Callable
from typing import Any

import pycurl
import pytest
from crawl_samples import HOST
from loopback_web import Web, answering, in_turn, raw, redirect

from wukong.config.crawl import Crawl
from wukong.crawl import addresses
from wukong.crawl.addresses import ConnectTo
from wukong.crawl.fetch import Fetcher
from wukong.crawl.robots import RobotsCache
from wukong.crawl.status import FetchError, Status
from wukong.crawl.transport import Response, Transport
from wukong.crawl.url import normalise
from wukong.store import storage

SITE = f"http://{HOST}"
OK = answering(b"ok", "text/plain")


def fetch(
    web: Web, config: Crawl, *urls: str, hosts: tuple[str, ...] = (HOST,), **options: Any
) -> list[bytes | FetchError]:
    """Fetch all URLs at the same time with one fetcher; return bodies, or the errors."""

    async def one(fetcher: Fetcher, url: str) -> bytes | FetchError:
        try:
            async with fetcher.get(url) as response:
                return bytes(response.body)
        except FetchError as error:
            return error

    async def run() -> list[bytes | FetchError]:
        fetcher = Fetcher(config, ConnectTo(dict.fromkeys(hosts, web.connect_to)), **options)
        try:
            return list(await asyncio.gather(*(one(fetcher, url) for url in urls)))
        finally:
            fetcher.close()

    return asyncio.run(run())


def status_of(outcome: bytes | FetchError) -> Status:
    return outcome.status if isinstance(outcome, FetchError) else Status.SUCCESS


ROBOTS = b"""
User-agent: *
Disallow: /private/
Allow: /private/open*.jpg$

User-agent: wukong-crawler
User-agent: otherbot
Disallow: /not-for-wukong/
Disallow: /\xe7\x86\x8a
"""


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("/a.jpg", True),
        ("/private/a.jpg", True),  # the group for this crawler replaces the one for all
        ("/not-for-wukong/a.jpg", False),
        ("/not-for-wukong", True),
        ("/%E7%86%8A.jpg", False),
        ("/熊.jpg", False),
    ],
)
def test_robots_txt(web: Web, crawl_config: Callable[..., Crawl], path: str, allowed: bool) -> None:
    web.bytes_at("/robots.txt", ROBOTS, "text/plain")
    web.fallback = OK
    (outcome,) = fetch(web, crawl_config(), SITE + path)
    assert status_of(outcome) is (Status.SUCCESS if allowed else Status.ROBOTS_DISALLOWED)
    assert web.requests["/robots.txt"] == 1


def test_the_group_for_all_crawlers_applies_without_a_group_for_us(
    web: Web, crawl_config: Callable[..., Crawl]
) -> None:
    web.bytes_at("/robots.txt", ROBOTS, "text/plain")
    web.fallback = OK
    config = crawl_config(politeness={"user_agent": "research/2 (me@example.org)"})
    outcomes = fetch(web, config, f"{SITE}/private/a.jpg", f"{SITE}/private/open1.jpg", f"{SITE}/not-for-wukong/a.jpg")
    assert [status_of(o) for o in outcomes] == [Status.ROBOTS_DISALLOWED, Status.SUCCESS, Status.SUCCESS]
    assert web.headers["/private/open1.jpg"]["user-agent"] == "research/2 (me@example.org)"


def test_a_request_names_the_crawlers_operator(web: Web, crawl_config: Callable[..., Crawl]) -> None:
    web.bytes_at("/robots.txt", ROBOTS, "text/plain")
    web.fallback = OK
    config = crawl_config(politeness={"contact": "https://example.org/crawl"})
    outcomes = fetch(web, config, f"{SITE}/a.jpg", f"{SITE}/not-for-wukong/a.jpg")
    assert web.headers["/a.jpg"]["user-agent"] == "wukong-crawler/0.1 (+https://example.org/crawl)"
    assert [status_of(o) for o in outcomes] == [Status.SUCCESS, Status.ROBOTS_DISALLOWED], "its rules are found"


def test_robots_txt_can_be_switched_off(web: Web, crawl_config: Callable[..., Crawl]) -> None:
    web.bytes_at("/robots.txt", b"User-agent: *\nDisallow: /", "text/plain")
    web.fallback = OK
    (outcome,) = fetch(web, crawl_config(politeness={"robots_txt": False}), f"{SITE}/a.jpg")
    assert outcome == b"ok"
    assert web.requests["/robots.txt"] == 0


@pytest.mark.parametrize(
    ("handler", "expected"),
    [
        (answering(b"", status="404 Not Found"), Status.SUCCESS),
        (answering(b"", status="403 Forbidden"), Status.SUCCESS),
        (answering(b"", status="429 Too Many Requests"), Status.ROBOTS_UNAVAILABLE),
        (answering(b"", status="503 Unavailable"), Status.ROBOTS_UNAVAILABLE),
        (raw(b""), Status.ROBOTS_UNAVAILABLE),
        (redirect("/robots2.txt"), Status.ROBOTS_DISALLOWED),
        (redirect("/robots.txt"), Status.SUCCESS),
        (answering(b"\xff\xfe<html>"), Status.SUCCESS),
        (answering(b"\xef\xbb\xbfUser-agent: *\r\nDisallow: /"), Status.ROBOTS_DISALLOWED),
    ],
    ids=["404", "403", "429", "503", "reset", "moved", "loop", "html", "bom"],
)
def test_errors_of_robots_txt_give_the_right_status(web: Web, crawl_config, handler, expected: Status) -> None:
    web.handlers["/robots.txt"] = handler
    web.bytes_at("/robots2.txt", b"User-agent: *\nDisallow: /", "text/plain")
    web.fallback = OK
    outcomes = fetch(web, crawl_config(), *(f"{SITE}/{i}.jpg" for i in range(5)))
    assert {status_of(outcome) for outcome in outcomes} == {expected}
    assert sum(web.requests[path] for path in ("/robots.txt", "/robots2.txt")) <= 6, "asked once, redirects followed"


def test_robots_txt_is_fetched_once_and_cached(web: Web, crawl_config) -> None:
    web.bytes_at("/robots.txt", b"User-agent: *\nAllow: /", "text/plain")
    web.fallback = OK
    rules = RobotsCache()
    for _ in range(2):
        fetch(web, crawl_config(), *(f"{SITE}/{number}" for number in range(20)), rules=rules)
    assert web.requests["/robots.txt"] == 1


def test_a_redirect_is_checked_like_a_new_url(web: Web, crawl_config) -> None:
    web.bytes_at("/robots.txt", b"User-agent: *\nDisallow: /private", "text/plain")
    web.handlers["/a"] = redirect("/private/b")
    (outcome,) = fetch(web, crawl_config(), f"{SITE}/a")
    assert status_of(outcome) is Status.ROBOTS_DISALLOWED
    assert web.requests["/private/b"] == 0


def test_opted_out_domains_and_urls_are_not_requested(web: Web, crawl_config, tmp_path) -> None:
    (tmp_path / "out.txt").write_text(
        f"# those who asked\nother.test   # and all below it\n{SITE}/图 片.jpg\n中国.test\n", encoding="utf-8"
    )
    web.fallback = OK
    config = crawl_config(politeness={"opt_out": storage.from_path(tmp_path / "out.txt")})
    hosts = (HOST, "other.test", "a.other.test", "another.test", "xn--fiqs8s.test")
    urls = [f"{SITE}/图 片.jpg", f"{SITE}/b", *(f"http://{host}/c" for host in hosts[1:])]
    outcomes = [status_of(o) for o in fetch(web, config, *urls, hosts=hosts)]
    out, ok = Status.OPTED_OUT, Status.SUCCESS
    assert outcomes == [out, ok, out, out, ok, out]
    assert web.requests["/c"] == 1
    assert web.requests["/robots.txt"] == 2, "not even their robots.txt"


def test_requests_to_a_host_at_a_time_stay_within_the_share(web: Web, crawl_config) -> None:
    async def slow(path: str, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.02)
        await OK(path, writer)

    web.fallback = slow
    config = crawl_config(politeness={"per_host_concurrency": 6, "robots_txt": False})
    fetch(web, config, *(f"{SITE}/{number}" for number in range(30)), share=2)
    assert web.most_open == 3
    assert sum(web.requests.values()) == 30


def test_the_delay_between_requests_to_a_host(web: Web, crawl_config) -> None:
    web.fallback = OK
    config = crawl_config(politeness={"per_host_delay": 0.05, "robots_txt": False})
    fetch(web, config, *(f"{SITE}/{number}" for number in range(6)))
    moments = sorted(moment for _, moment in web.times)
    assert min(b - a for a, b in itertools.pairwise(moments)) > 0.04


def test_crawl_delay_is_obeyed(web: Web, crawl_config) -> None:
    web.bytes_at("/robots.txt", b"User-agent: *\nCrawl-delay: 0.1", "text/plain")
    web.fallback = OK
    fetch(web, crawl_config(), *(f"{SITE}/{number}" for number in range(4)))
    moments = sorted(moment for path, moment in web.times if path != "/robots.txt")
    assert min(b - a for a, b in itertools.pairwise(moments)) > 0.08


@pytest.mark.parametrize("code", ["429 Too Many Requests", "503 Service Unavailable"])
@pytest.mark.parametrize("form", ["seconds", "date"])
def test_retry_after_applies_to_the_whole_host(web: Web, crawl_config, code: str, form: str) -> None:
    when = "1" if form == "seconds" else email.utils.formatdate(time.time() + 2, usegmt=True)
    web.handlers["/a"] = in_turn(answering(b"", status=code, Retry_After=when), OK)
    web.fallback = OK
    config = crawl_config(retries=1, politeness={"robots_txt": False, "per_host_concurrency": 1})
    started = time.monotonic()
    outcomes = fetch(web, config, f"{SITE}/a", f"{SITE}/b")
    assert outcomes == [b"ok", b"ok"]
    assert time.monotonic() - started > 0.9
    asked = dict(reversed(web.times))
    assert asked["/b"] - asked["/a"] > 0.9, "the server spoke for the host"


def test_a_long_retry_after_is_not_waited_for(web: Web, crawl_config) -> None:
    web.handlers["/a"] = answering(b"", status="429 Too Many Requests", Retry_After="3600")
    started = time.monotonic()
    (outcome,) = fetch(web, crawl_config(retries=3), f"{SITE}/a")
    assert isinstance(outcome, FetchError)
    assert (outcome.status, outcome.http_status) == (Status.HTTP_ERROR, 429)
    assert web.requests["/a"] == 1
    assert time.monotonic() - started < 300


@pytest.mark.parametrize("failure", [raw(b""), raw(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\nshort")])
def test_temporary_failures_are_retried(web: Web, crawl_config, failure) -> None:
    web.handlers["/a"] = in_turn(failure, failure, OK)
    assert fetch(web, crawl_config(retries=2), f"{SITE}/a") == [b"ok"]
    assert web.requests["/a"] == 3


@pytest.mark.parametrize("code", ["404 Not Found", "403 Forbidden", "410 Gone"])
def test_permanent_failures_are_not_retried(web: Web, crawl_config, code: str) -> None:
    web.handlers["/a"] = answering(b"", status=code)
    (outcome,) = fetch(web, crawl_config(retries=2), f"{SITE}/a")
    assert status_of(outcome) is Status.HTTP_ERROR
    assert web.requests["/a"] == 1


def test_the_time_limit_covers_all_attempts(web: Web, crawl_config) -> None:
    async def silent(_path: str, _writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(600)

    web.handlers["/a"] = silent
    started = time.monotonic()
    (outcome,) = fetch(web, crawl_config(retries=100, max_seconds=1.0), f"{SITE}/a")
    assert status_of(outcome) is Status.TIMEOUT
    assert time.monotonic() - started < 90, "a second for each attempt would be 101"


def test_connections_are_reused(web: Web, crawl_config) -> None:
    web.fallback = answering(b"x" * 1000, status="404 Not Found")
    config = crawl_config(politeness={"robots_txt": False, "per_host_concurrency": 2})
    fetch(web, config, *(f"{SITE}/{number}" for number in range(40)))
    assert sum(web.requests.values()) == 40
    assert web.connections <= 2


def test_a_name_that_resolves_differently_the_second_time(web: Web, crawl_config, monkeypatch) -> None:
    """The name first resolves to a public address, then to an internal one. The connected address is checked."""
    inside = Web(address="127.0.0.2")
    inside.fallback = answering(b"secret", "text/plain")
    web.fallback = answering(b"ok", "text/plain", Connection="close")
    monkeypatch.setattr(addresses, "is_public", lambda address: address == "127.0.0.1")
    answers = iter([f"rebind.test:{web.port}:127.0.0.1", f"rebind.test:{web.port}:127.0.0.2"])

    async def run() -> list[Any]:
        transport = Transport(user_agent="t", connect_to=ConnectTo({}), connections=4)
        original = transport._new_handle

        def resolving() -> pycurl.Curl:
            handle = original()
            handle.setopt(pycurl.DNS_CACHE_TIMEOUT, 0)
            handle.setopt(pycurl.RESOLVE, [f"-rebind.test:{web.port}", next(answers)])
            return handle

        outcomes: list[Any] = []
        for _ in range(2):
            transport._idle.clear()
            monkeypatch.setattr(transport, "_new_handle", resolving)
            try:
                response = await transport.get(f"http://rebind.test:{web.port}/x", seconds=3, max_bytes=1000)
                outcomes.append(bytes(response.body))
            except FetchError as error:
                outcomes.append(error.status)
        transport.close()
        return outcomes

    try:
        assert asyncio.run(run()) == [b"ok", Status.FORBIDDEN_ADDRESS]
        assert not inside.requests
    finally:
        inside.stop()


def test_no_redirect_of_a_stranger_leads_to_a_chosen_address(web: Web, crawl_config, monkeypatch) -> None:
    """The stranger's address counts as public here; the inside is a host whose address the operator chose."""
    inside, redirect = Web(address="127.0.0.2"), {"Location": f"http://{HOST}/x"}
    inside.fallback = answering(b"secret", "text/plain")
    web.fallback = answering(b"", status="302 Found", **redirect)
    monkeypatch.setattr(addresses, "is_public", lambda address: address == "127.0.0.1")

    async def run() -> Any:
        fetcher = Fetcher(crawl_config(politeness={"robots_txt": False}), ConnectTo({HOST: inside.connect_to}))
        with pytest.raises(FetchError) as refused:
            async with fetcher.get(f"http://127.0.0.1:{web.port}/a"):
                pass
        fetcher.close()
        return refused.value.status

    try:
        assert asyncio.run(run()) is Status.FORBIDDEN_ADDRESS
        assert web.requests and not inside.requests
    finally:
        inside.stop()


def test_answers_in_use_count_as_in_flight(web: Web, crawl_config) -> None:
    web.fallback = OK
    held: list[int] = []

    async def run() -> int:
        config = crawl_config(concurrency=3, politeness={"per_host_concurrency": 50, "robots_txt": False})
        fetcher = Fetcher(config, ConnectTo({HOST: web.connect_to}))
        most = 0

        async def one(number: int) -> None:
            nonlocal most
            async with fetcher.get(f"{SITE}/{number}"):
                held.append(number)
                most = max(most, len(held))
                await asyncio.sleep(0.01)
                held.remove(number)

        await asyncio.gather(*(one(number) for number in range(20)))
        fetcher.close()
        return most

    assert asyncio.run(run()) == 3


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://例え.jp/a", "http://xn--r8jz45g.jp/a"),
        ("http://Müller.example/ä?q=ö#frag", "http://xn--mller-kva.example/%C3%A4?q=%C3%B6"),
        ("HTTP://EXAMPLE.com:80", "http://example.com/"),
        (" http://example.com/a b.jpg ", "http://example.com/a%20b.jpg"),
        ("http://example.com/%E7%86%8A%20a.jpg?a=b%26c&d=é", "http://example.com/%E7%86%8A%20a.jpg?a=b%26c&d=%C3%A9"),
        ("http://user:pw@example.com/a", "http://example.com/a"),
        ("http://example.com/a,b;c='d'(e)!*~@:$&+=.jpg", "http://example.com/a,b;c='d'(e)!*~@:$&+=.jpg"),
        ("https://[2001:4860::1]:8443/x", "https://[2001:4860::1]:8443/x"),
    ],
)
def test_urls_are_sent_in_ascii(url: str, expected: str) -> None:
    assert normalise(url) == expected
    assert normalise(expected) == expected


def test_a_relative_redirect_is_resolved_against_its_url() -> None:
    response = Response("http://a.test/x/y?z", 302, {"location": "../b"})
    assert response.location == "http://a.test/b"


@pytest.mark.parametrize(
    ("handler", "expected"),
    [
        (redirect("http://[::1/x"), Status.ROBOTS_UNAVAILABLE),
        (redirect("ftp://images.test/robots.txt"), Status.ROBOTS_UNAVAILABLE),
        (redirect("/gone.txt"), Status.SUCCESS),
        (answering(b"", status="302 Found"), Status.ROBOTS_UNAVAILABLE),
        (answering(b"\x1f\x8b\x08broken", "text/plain", Content_Encoding="gzip"), Status.ROBOTS_UNAVAILABLE),
        (raw(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\nUser-agent: *\n"), Status.ROBOTS_UNAVAILABLE),
        (raw(b"not HTTP at all\r\n\r\n"), Status.ROBOTS_UNAVAILABLE),
        (answering("User-agent: *\nDisallow: /\n".encode("utf-16")), Status.ROBOTS_DISALLOWED),
        (answering("\ufeffUser-agent: *\nDisallow: /\n".encode("utf-16-be")), Status.ROBOTS_DISALLOWED),
        (answering("User-agent: *\nDisallow: /\n".encode("utf-32")), Status.ROBOTS_DISALLOWED),
        (answering(b"# \xb0\xa1\xff\xfe\nUser-agent: *\n\xff\xff\nDisallow: /\n"), Status.ROBOTS_DISALLOWED),
        (answering(b"User-agent: *\rDisallow: /\r"), Status.ROBOTS_DISALLOWED),
        (answering(b"User-agent: *\nDisallow: /\n" + b"# padding\n" * 1_000_000), Status.ROBOTS_DISALLOWED),
        (answering(b"# padding\n" * 50_000 + b"User-agent: *\nDisallow: /\n"), Status.ROBOTS_DISALLOWED),
        (answering(b"User-agent: *\n" + b"# padding\n" * 60_000 + b"Disallow: /\n"), Status.SUCCESS),
        (answering(b"User-agent: *\nCrawl-delay: inf\nDisallow: /no"), Status.SUCCESS),
        (answering(b"User-agent: *\nCrawl-delay: nan\nCrawl-delay: -5\nCrawl-delay: 1e999"), Status.SUCCESS),
        (answering("User-agent: *\nCrawl-delay: ²".encode()), Status.SUCCESS),
    ],
    ids=[
        "to a bracket",
        "to ftp",
        "to 404",
        "to nowhere",
        "broken gzip",
        "cut",
        "not HTTP",
        "utf-16",
        "utf-16-be",
        "utf-32",
        "no utf-8",
        "cr",
        "10 MB",
        "500 KB",
        "after 500 KiB",
        "inf",
        "nan",
        "squared",
    ],
)
def test_unusual_robots_txt_files(web: Web, crawl_config, handler, expected: Status) -> None:
    """RFC 9309: a client error allows everything; rules after the first 500 KiB are ignored; other errors forbid."""
    web.handlers["/robots.txt"] = handler
    web.fallback = OK
    web.handlers["/gone.txt"] = answering(b"", status="404 Not Found")
    (outcome,) = fetch(web, crawl_config(), f"{SITE}/a.jpg")
    assert status_of(outcome) is expected, outcome


def test_a_robots_txt_with_very_many_groups_is_parsed_fast(web: Web, crawl_config) -> None:
    """15,000 crawlers share 15,000 rules; a simple parser would store all rules for each of them."""
    agents = b"".join(b"User-agent: a%d\n" % number for number in range(15_000))
    rules = b"".join(b"Disallow: /%d\n" % number for number in range(15_000))
    web.bytes_at("/robots.txt", agents + b"User-agent: Wukong\n" + rules, "text/plain")
    web.fallback = OK
    started = time.process_time()
    outcomes = fetch(web, crawl_config(), f"{SITE}/1", f"{SITE}/allowed", f"{SITE}/14999")
    assert [status_of(o) for o in outcomes] == [Status.ROBOTS_DISALLOWED, Status.SUCCESS, Status.ROBOTS_DISALLOWED]
    assert time.process_time() - started < 20


def test_groups_for_others_are_removed_only_if_there_are_very_many(web: Web, crawl_config) -> None:
    others = b"".join(b"User-agent: a%d\nDisallow: /\n\n" % number for number in range(300))
    web.bytes_at("/robots.txt", others + b"User-agent: *\nDisallow: /private", "text/plain")
    web.fallback = OK
    outcomes = fetch(web, crawl_config(), f"{SITE}/a", f"{SITE}/private")
    assert [status_of(o) for o in outcomes] == [Status.SUCCESS, Status.ROBOTS_DISALLOWED]


def test_a_host_with_a_crawl_delay_of_a_day_is_not_requested(web: Web, crawl_config) -> None:
    web.bytes_at("/robots.txt", b"User-agent: *\nDisallow: /no\nCrawl-delay: 86400", "text/plain")
    web.fallback = OK
    started = time.monotonic()
    outcomes = fetch(web, crawl_config(), *(f"{SITE}/{number}" for number in range(20)), f"{SITE}/no")
    assert [status_of(o) for o in outcomes] == [Status.HOST_TOO_SLOW] * 20 + [Status.ROBOTS_DISALLOWED]
    assert web.requests == {"/robots.txt": 1}
    assert time.monotonic() - started < 300


@pytest.mark.parametrize("status", ["429 Too Many Requests", "503 Unavailable"])
def test_a_long_retry_after_stops_all_requests_to_the_host(web: Web, crawl_config, status: str) -> None:
    web.fallback = answering(b"", status=status, Retry_After="3600")
    config = crawl_config(retries=2, politeness={"robots_txt": False, "per_host_concurrency": 1})
    started = time.monotonic()
    outcomes = fetch(web, config, *(f"{SITE}/{number}" for number in range(20)))
    assert [status_of(o) for o in outcomes] == [Status.HTTP_ERROR] + [Status.HOST_TOO_SLOW] * 19
    assert sum(web.requests.values()) == 1
    assert time.monotonic() - started < 300


def test_waiting_counts_towards_the_time_limit_of_a_host(web: Web, crawl_config) -> None:
    """The host asks for a second after each request; after three seconds its other URLs fail."""
    web.bytes_at("/robots.txt", b"User-agent: *\nCrawl-delay: 1", "text/plain")
    web.fallback = OK
    slow: dict[str, Any] = {}
    config = crawl_config(politeness={"max_host_seconds": 3.0})
    started = time.monotonic()
    outcomes = [status_of(o) for o in fetch(web, config, *(f"{SITE}/{number}" for number in range(50)), slow=slow)]
    assert time.monotonic() - started < 40
    assert 2 <= outcomes.count(Status.SUCCESS) <= 4
    assert outcomes.count(Status.HOST_TOO_SLOW) == 50 - outcomes.count(Status.SUCCESS)
    again = [status_of(o) for o in fetch(web, config, f"{SITE}/x", slow=slow)]
    assert again == [Status.HOST_TOO_SLOW], "the next part of the crawl does not begin anew"
    assert slow[HOST].seconds >= 3.0


def test_a_host_that_keeps_asking_to_wait_fails(web: Web, crawl_config) -> None:
    web.fallback = answering(b"", status="503 Unavailable", Retry_After="1")
    config = crawl_config(retries=50, politeness={"robots_txt": False, "max_host_seconds": 2.5})
    started = time.monotonic()
    outcomes = fetch(web, config, f"{SITE}/a", f"{SITE}/b")
    assert {status_of(o) for o in outcomes} == {Status.HOST_TOO_SLOW}
    assert time.monotonic() - started < 80


def test_a_host_that_never_answers_fails(web: Web, crawl_config) -> None:
    async def silent(_path: str, _writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(60)

    web.fallback = silent
    polite = {"robots_txt": False, "per_host_concurrency": 2, "max_host_seconds": 1.0}
    config = crawl_config(max_seconds=3.0, politeness=polite)
    started = time.monotonic()
    outcomes = [status_of(o) for o in fetch(web, config, *(f"{SITE}/{number}" for number in range(40)))]
    assert outcomes.count(Status.TIMEOUT) <= 6, "each costs half a second: what is over two, of two at a time"
    assert outcomes.count(Status.HOST_TOO_SLOW) == 40 - outcomes.count(Status.TIMEOUT)
    assert time.monotonic() - started < 55


def test_the_cost_of_slow_hosts_is_reported_once(web: Web, crawl_config) -> None:
    async def run() -> list[dict[str, float]]:
        fetcher = Fetcher(crawl_config(), ConnectTo({HOST: web.connect_to}))
        fetcher.charge(f"{SITE}/a", 2.5)
        fetcher.charge("http://other.test/a", 0.5)
        told = [fetcher.slow_hosts(), fetcher.slow_hosts()]
        fetcher.charge(f"{SITE}/b", 1.5)
        told.append(fetcher.slow_hosts())
        fetcher.close()
        return told

    assert asyncio.run(run()) == [{HOST: 2.5}, {}, {HOST: 1.5}]


def test_the_configured_delay_is_not_charged_to_the_host(web: Web, crawl_config) -> None:
    web.fallback = OK
    slow: dict[str, Any] = {}
    config = crawl_config(politeness={"per_host_delay": 0.05, "robots_txt": False, "max_host_seconds": 0.1})
    outcomes = fetch(web, config, *(f"{SITE}/{number}" for number in range(10)), slow=slow)
    assert {status_of(o) for o in outcomes} == {Status.SUCCESS}
    assert not slow


@pytest.mark.parametrize(
    "spelling",
    [
        "http://images.test:80/out/a.jpg",
        "http://images.test/./out/a.jpg",
        "http://images.test/x/../out/a.jpg",
        "http://images.test/%6Fut/a.jpg",
        "http://IMAGES.test./out/a.jpg#x",
        "http://u:p@images.test/out/%61.jpg",
        "https://images.test:443/out/a.jpg",
    ],
)
def test_an_opted_out_url_is_not_requested_under_another_spelling(web: Web, crawl_config, tmp_path, spelling) -> None:
    (tmp_path / "out.txt").write_text(f"{SITE}/out/a.jpg\n")
    web.fallback = OK
    web.handlers["/moved"] = redirect(spelling)
    config = crawl_config(politeness={"opt_out": storage.from_path(tmp_path / "out.txt"), "robots_txt": False})
    outcomes = fetch(web, config, spelling, f"{SITE}/moved", f"{SITE}/out/b.jpg")
    assert [status_of(o) for o in outcomes] == [Status.OPTED_OUT, Status.OPTED_OUT, Status.SUCCESS]
    assert web.requests == {"/moved": 1, "/out/b.jpg": 1}


def test_a_default_port_makes_no_other_host(web: Web, crawl_config) -> None:
    async def slow(path: str, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.05)
        await OK(path, writer)

    web.fallback = slow
    web.bytes_at("/robots.txt", b"User-agent: *\nAllow: /", "text/plain")
    config = crawl_config(politeness={"per_host_concurrency": 2})
    urls = [f"http://{host}/{number}" for number in range(5) for host in (HOST, f"{HOST}:80", f"{HOST.upper()}.")]
    assert set(fetch(web, config, *urls)) == {b"ok"}
    assert web.most_open <= 2
    assert web.requests["/robots.txt"] == 1


def test_the_loop_goes_on_while_a_robots_txt_of_wildcards_is_compared(web: Web, crawl_config) -> None:
    """900 rules, each compared with 8,000 characters; the host pays for it, and another host is not delayed."""
    rules = b"".join(b"Disallow: /*%da*b\n" % number for number in range(450))
    web.bytes_at("/robots.txt", b"User-agent: *\n" + rules, "text/plain")
    web.fallback = OK
    longest = 0.0
    slow: dict[str, Any] = {}

    async def run() -> list[Status]:
        fetcher = Fetcher(crawl_config(), ConnectTo({HOST: web.connect_to}), slow=slow)

        async def tick() -> None:
            nonlocal longest
            last = time.monotonic()
            while True:
                await asyncio.sleep(0.001)
                longest, last = max(longest, time.monotonic() - last), time.monotonic()

        async def one(number: int) -> Status:
            try:
                async with fetcher.get(f"{SITE}/{'1a' * 3_990}{number}"):
                    return Status.SUCCESS
            except FetchError as error:
                return error.status

        ticking = asyncio.create_task(tick())
        outcomes = await asyncio.gather(*(one(number) for number in range(100)))
        ticking.cancel()
        fetcher.close()
        return outcomes

    assert set(asyncio.run(run())) == {Status.SUCCESS}
    assert longest < 2
    assert slow[HOST].seconds > 0


def test_a_robots_txt_of_more_wildcards_than_allowed(web: Web, crawl_config) -> None:
    """500 KB of wildcards, compared with 200 URLs: it held up the event loop for a minute."""
    web.bytes_at(
        "/robots.txt",
        b"User-agent: *\n"
        + b"Disallow: /*a*b*c*d\n" * 5
        + b"".join(b"Disallow: /*%da*b\n" % number for number in range(25_000)),
        "text/plain",
    )
    web.fallback = OK
    started = time.process_time()
    outcomes = fetch(web, crawl_config(), *(f"{SITE}/{'1a' * 3_990}{number}" for number in range(200)))
    assert {status_of(o) for o in outcomes} == {Status.ROBOTS_DISALLOWED}
    assert "wildcards" in str(outcomes[0])
    assert time.process_time() - started < 10


def test_each_answer_of_a_chain_says_something_about_use(web: Web, crawl_config) -> None:
    rules = b"User-agent: *\nContent-Usage: train-ai=y\nContent-Usage: /a search=n\nContent-Usage: /c train-ai=n"
    web.bytes_at("/robots.txt", rules, "text/plain")
    web.handlers["/a"] = answering(b"", "text/plain", "302 Found", Location="/b", X_Robots_Tag="noindex")
    web.handlers["/b"] = answering(b"", "text/plain", "302 Found", Location="/c", Content_Usage="search=y")
    web.handlers["/c"] = answering(b"ok", "text/plain", X_Robots_Tag="noai")
    web.handlers["/d"] = OK

    async def run() -> list[set[str]]:
        fetcher = Fetcher(crawl_config(), ConnectTo({HOST: web.connect_to}))
        said = []
        for path in ("/a", "/b", "/d"):
            async with fetcher.get(SITE + path) as response:
                said.append(set(response.said))
        fetcher.close()
        return said

    assert asyncio.run(run()) == [
        {"noindex", "noai", "search=n", "train-ai=n"},
        {"noai", "search=y", "train-ai=n"},
        {"train-ai=y"},
    ]
