"""The rules of robots.txt, compared with Protego on ordinary files; hostile files take little time and memory."""

import time
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from protego import Protego

from wukong.crawl.robots import MAX_BYTES, MAX_WILDCARDS, RobotsCache, Rules
from wukong.crawl.status import FetchError, Status
from wukong.crawl.url import normalise

US = "wukong-crawler"
SITE = "http://images.test"


def allows(rules: Rules, path: str) -> bool:
    try:
        rules.check(normalise(SITE + path))
    except FetchError as error:
        assert error.status is Status.ROBOTS_DISALLOWED
        return False
    return True


AGENTS = st.sampled_from(["*", US, "Wukong", "WUKONG-CRAWLER", "otherbot", "crawler", "wuk", "bot*"])
PATTERNS = st.text("/ab*$.?=é7E", min_size=1, max_size=8).map(lambda text: "/" + text) | st.sampled_from(
    [
        "/",
        "/*",
        "/a",
        "/%7E",
        "/%c3%A9a",
        "/a/index.html",
        "/*.jpg$",
        "/a*b*c",
        "/%61",
        "/a%2Fb",
        "/a%2a",
        "",
        "*",
        "/b$",
    ]
)
FIELDS = st.sampled_from(["Disallow", "Allow", "disallow ", "ALLOW", "Dissalow"])
GROUP = st.builds(
    lambda agents, rules, delay, blank: (
        [f"User-agent: {agent}" for agent in agents]
        + [f"{field}: {pattern}" for field, pattern in rules]
        + ([f"Crawl-delay: {delay}"] if delay else [])
        + [""] * blank
    ),
    st.lists(AGENTS, min_size=1, max_size=3),
    st.lists(st.tuples(FIELDS, PATTERNS), max_size=6),
    st.sampled_from(["", "1", "2.5", "x", "-3", "inf"]),
    st.integers(0, 2),
)
PATHS = st.text("/ab*$.?=7E", max_size=8).map(lambda text: "/" + text) | st.sampled_from(
    ["/", "/a", "/a/", "/a.jpg", "/a.jpg?x=1", "/axbyc", "/%61", "/a%2Fb", "/b", "/b/c", "/a*", "/é"]
)


@given(st.lists(GROUP, max_size=4), st.lists(PATHS, min_size=1, max_size=6))
@settings(max_examples=600, deadline=None)
def test_ordinary_files_are_understood_as_protego_does(groups: list[list[str]], paths: list[str]) -> None:
    text = "\n".join(line for group in groups for line in group)
    rules, oracle = Rules.from_body(text.encode(), US), Protego.parse(text)
    for path in paths:
        url = normalise(SITE + path)
        assert allows(rules, path) == oracle.can_fetch(url, US), (text, url)
    assert rules.delay == (oracle.crawl_delay(US) or 0.0)


def test_the_example_of_rfc_9309() -> None:
    text = b"""User-Agent: *
Disallow: *.gif$
Disallow: /example/
Allow: /publications/

User-Agent: foobot
Disallow:/
Allow:/example/page.html
Allow:/example/allowed.gif

User-Agent: barbot
User-Agent: bazbot
Disallow: /example/page.html

User-Agent: quxbot
"""
    star, foo, baz, qux = (Rules.from_body(text, name) for name in (US, "foobot", "bazbot", "quxbot"))
    assert [allows(star, path) for path in ("/x.gif", "/example/a", "/publications/", "/x.gif?y")] == [
        False,
        False,
        True,
        True,
    ]
    assert [allows(foo, path) for path in ("/x", "/example/page.html", "/example/allowed.gif")] == [False, True, True]
    assert [allows(baz, path) for path in ("/example/page.html", "/x.gif")] == [False, True]
    assert allows(qux, "/example/")


AIPREF = b"""User-Agent: *
Allow: /
Disallow: /never/
Content-Usage: train-ai=n
Content-Usage: /ai-ok/ train-ai=y

User-Agent: ExampleBot
Allow: /
Content-Usage: train-ai=y
"""


@pytest.mark.parametrize(
    ("path", "said"), [("/test", {"train-ai=n"}), ("/ai-ok/test", {"train-ai=y"}), ("/ai-ok", {"train-ai=n"})]
)
def test_the_example_of_the_aipref_draft(path: str, said: set[str]) -> None:
    """draft-ietf-aipref-attach-05, 3.5."""
    rules = Rules.from_body(AIPREF, US)
    assert rules.check(SITE + path) == said
    assert not allows(rules, "/never/test")
    assert Rules.from_body(AIPREF, "ExampleBot").check(SITE + path) == {"train-ai=y"}


@pytest.mark.parametrize(
    ("lines", "path", "said"),
    [
        (["Content-Usage: /a train-ai=n", "Content-Usage: /a train-ai=y"], "/a", {"train-ai=n"}),
        (["content-usage:/a\ttrain-ai=n, search=y # so"], "/a/b", {"train-ai=n", "search=y"}),
        (["CONTENT-USAGE : /*.jpg$ train-ai=n", "Content-Usage: / search=n"], "/x.jpg", {"train-ai=n"}),
        (["Content-Usage: /%61b search=n"], "/ab", {"search=n"}),
        (["Content-Usage: /a"], "/a", set()),
        (["Content-Usage: train-ai=N"], "/a", set()),
        (["Content-Usage:"], "/a", set()),
        ([], "/a", set()),
    ],
)
def test_content_usage_rules(lines: list[str], path: str, said: set[str]) -> None:
    rules = Rules.from_body("\n".join(["User-agent: *", *lines]).encode(), US)
    assert rules.check(SITE + path) == said


HOSTILE = {
    "wildcards": b"".join(b"Disallow: /*%da*b\n" % number for number in range(27_000)),
    "one long rule": b"Disallow: /" + b"*a" * 250_000,
    "stars": b"Disallow: /" + b"*" * 500_000 + b"b\n",
    "prefixes": b"".join(b"Disallow: /%d\n" % number for number in range(30_000)),
    "nested prefixes": b"".join(b"Disallow: /%s\n" % (b"a" * number) for number in range(950)),
    "agents": b"".join(b"User-agent: %s\n" % US[: number % len(US) + 1].encode() for number in range(20_000))
    + b"Disallow: /x\n" * 5_000,
    "preferences": b"".join(b"Content-Usage: /*%d train-ai=n\n" % number for number in range(17_000)),
    "usage": b"Content-Usage: " + b"a=(" * 160_000,
    "spaces": b"Disallow" + b" " * 500_000,
    "percents": b"Disallow: /" + b"%6" * 200_000,
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_files_take_little_time(kind: str) -> None:
    body = (b"User-agent: *\n" + HOSTILE[kind])[:MAX_BYTES]
    started = time.process_time()
    rules = Rules.from_body(body, US)
    parsed = time.process_time() - started
    urls = [normalise(f"{SITE}/{'a' * 2_000}{number}") for number in range(20)]
    started = time.process_time()
    for url in urls:
        try:
            rules.check(url)
        except FetchError as error:
            assert error.status is Status.ROBOTS_DISALLOWED
    assert parsed < 5
    assert (time.process_time() - started) / len(urls) < 0.05


def test_a_site_with_too_many_wildcards_is_left_alone() -> None:
    lines = [f"Disallow: /*x{number}" for number in range(MAX_WILDCARDS)]
    assert allows(Rules.from_body("\n".join(["User-agent: *", *lines]).encode(), US), "/a")
    more = Rules.from_body("\n".join(["User-agent: *", *lines, "Allow: /*a"]).encode(), US)
    with pytest.raises(FetchError, match="wildcards") as raised:
        more.check(f"{SITE}/a")
    assert raised.value.status is Status.ROBOTS_DISALLOWED
    for_others = Rules.from_body("\n".join(["User-agent: otherbot", *lines, "Allow: /*a"]).encode(), US)
    assert allows(for_others, "/a"), "rules for others do not count"


def test_the_cache_stays_within_its_bytes() -> None:
    rules = "User-agent: *\n" + "".join(f"Disallow: /%d/{number}\n" for number in range(2_000))
    cache = RobotsCache(max_bytes=2 * 2**20)
    tracemalloc.start()
    for site in range(40):
        address = f"http://{site}.test/robots.txt"
        cache.put(address, Rules.from_body((rules % ((site,) * 2_000)).encode(), US))
        assert cache.get(address) is not None
        assert cache.bytes <= 2 * 2**20
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert 2**20 < held < 4 * 2**20, "what is counted is about what it takes"
    small = Rules.from_body(b"User-agent: *\nDisallow: /x", US)
    for site in range(3_000):
        cache.put(f"http://small{site}.test/robots.txt", small)
        assert cache.get("http://small0.test/robots.txt") is small, "what is used is kept"
    assert cache.get("http://39.test/robots.txt") is None


def test_only_the_rules_for_this_crawler_are_kept() -> None:
    others = b"".join(b"User-agent: a%d\nDisallow: /%d\n" % (number, number) for number in range(10_000))
    rules = Rules.from_body(others + b"User-agent: *\nDisallow: /private", US)
    assert rules.memory < 2_000
    assert not allows(rules, "/private")
