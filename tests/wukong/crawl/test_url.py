"""The normal form of URLs: all spellings of one URL have one, different URLs have different ones."""

import random
from urllib.parse import urlsplit

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from wukong.crawl.found import MAX_CAPTION, found_row
from wukong.crawl.status import FetchError, Status
from wukong.crawl.url import MAX_URL, bounded, identity, key_of, normalise

SPELLINGS = [
    "http://images.test/a/pic.jpg?x=1",
    "HTTP://images.test/a/pic.jpg?x=1",
    "http://IMAGES.Test/a/pic.jpg?x=1",
    "http://images.test./a/pic.jpg?x=1",
    "http://images.test:80/a/pic.jpg?x=1",
    "http://images.test:/a/pic.jpg?x=1",
    "http://me:secret@images.test/a/pic.jpg?x=1",
    "http://images.test/a/pic.jpg?x=1#top",
    "http://images.test/./a/pic.jpg?x=1",
    "http://images.test/b/../a/./pic.jpg?x=1",
    "http://images.test/../a/pic.jpg?x=1",
    "http://images.test/%61/%70ic.jpg?x=1",
    "http://images.test/a/pic%2Ejpg?%78=1",
    "http://images.test/b/%2e%2E/a/pic.jpg?x=1",
    " http://images.test/a/pic.jpg?x=1\n",
]
OTHERS = [
    ("http://images.test/a", "http://images.test/A"),
    ("http://images.test/a", "http://images.test/a/"),
    ("http://images.test/a", "https://images.test/a"),
    ("http://images.test/a", "http://images.test:81/a"),
    ("http://images.test:443/a", "http://images.test/a"),
    ("http://images.test/a%2Fb", "http://images.test/a/b"),
    ("http://images.test/a?b=%26", "http://images.test/a?b=&"),
    ("http://images.test//a", "http://images.test/a"),
    ("http://images.test/a%252e", "http://images.test/a%2e"),
]
PAIRS = [
    ("https://例え.テスト:443/猫.jpg", "https://xn--r8jz45g.xn--zckzah/%e7%8c%ab.jpg"),
    ("http://2130706433/x", "http://127.0.0.1/x"),
    ("http://0x7f.1/x", "http://127.0.0.1/x"),
    ("http://017700000001/x", "http://127.0.0.1:80/x"),
    ("http://[2001:DB8:0:0::1]/x", "http://[2001:db8::1]:80/x"),
    ("http://images.test/%C3%A4", "http://images.test/ä"),
    ("http://images.test/%c3%a4", "http://images.test/ä"),
    ("http://images.test", "http://images.test/"),
    ("http://images.test/a b", "http://images.test/a%20b"),
]


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_spellings_of_one_url(spelling: str) -> None:
    assert normalise(spelling) == SPELLINGS[0]
    assert key_of(spelling) == key_of(SPELLINGS[0])


@pytest.mark.parametrize(("one", "other"), PAIRS)
def test_more_spellings_of_one_url(one: str, other: str) -> None:
    assert normalise(one) == normalise(other)


@pytest.mark.parametrize(("one", "other"), OTHERS)
def test_other_urls_stay_apart(one: str, other: str) -> None:
    assert normalise(one) != normalise(other)
    assert key_of(one) != key_of(other)


def respelled(url: str, chance: random.Random) -> str:
    """Write a URL in another way that RFC 3986 calls equivalent."""
    parts = urlsplit(url)
    host = "".join(chance.choice([c.upper(), c.lower()]) for c in parts.hostname or "")
    port = parts.port or chance.choice([None, {"http": 80, "https": 443}[parts.scheme]])
    unreserved = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_~"

    def encode(text: str) -> str:
        return "".join(
            f"%{ord(c):02{chance.choice('xX')}}" if c in unreserved and chance.random() < 0.3 else c for c in text
        )

    path = ""
    for segment in parts.path.split("/")[1:]:
        path += chance.choice(["", "", "/.", "/x/..", "/%2e", "/y/%2E."]) + f"/{encode(segment)}"
    query = f"?{encode(parts.query)}" if parts.query else ""
    scheme = chance.choice([parts.scheme, parts.scheme.upper()])
    dot, user = chance.choice(["", "."]), chance.choice(["", "u@", "u:p@"])
    return f"{scheme}://{user}{host}{dot}{'' if port is None else f':{port}'}{path}{query}{chance.choice(['', '#f'])}"


URLS = st.builds(
    lambda scheme, host, port, segments, query: (
        f"{scheme}://{host}{port}/{'/'.join(segments)}{'?' + query if query else ''}"
    ),
    st.sampled_from(["http", "https"]),
    st.sampled_from(["images.test", "a.b.example.org", "h"]),
    st.sampled_from(["", ":8080"]),
    st.lists(st.text("abpq09_~!$&'()*+,;=:@-", min_size=1, max_size=6), min_size=1, max_size=4),
    st.text("ab0=&;/?", max_size=6),
)


@given(URLS, st.randoms(use_true_random=False))
@settings(max_examples=500, deadline=None)
def test_any_spelling_has_the_same_normal_form(url: str, chance: random.Random) -> None:
    assert normalise(respelled(url, chance)) == normalise(url) == url


@given(
    st.one_of(
        st.text(max_size=40).map("http://h.test/".__add__),
        st.text("ab./%25eE7?#:@[]", max_size=30).map("http://".__add__),
        st.text(max_size=40),
    )
)
@example("http://h.test/%%37%30")
@example("http://h.test/%2e%2e/..")
@settings(max_examples=1_000, deadline=None)
def test_a_normal_form_stays_as_it_is(url: str) -> None:
    try:
        once = normalise(url)
    except FetchError as error:
        assert error.status is Status.INVALID_URL
        return
    assert once.isascii() and once.isprintable()
    assert normalise(once) == once == identity(once)


def test_captions_of_one_picture_have_keys_of_their_own() -> None:
    assert key_of("http://images.test:80/a.jpg#caption-2") == key_of("http://images.test/%61.jpg#caption-2")
    assert key_of("http://images.test/a.jpg#caption-2") != key_of("http://images.test/a.jpg")
    assert key_of("file:///a/./b.jpg") != key_of("file:///a/b.jpg"), "a file's path is taken as it is"


def test_what_is_too_long_is_not_stored() -> None:
    long = [f"http://images.test/{'x' * 4_000_000}{end}" for end in "ab"]
    rows = [found_row(url, "词" * 50_000, "q", 0, url) for url in long]
    assert rows[0][0] != rows[1][0], "they stay two URLs"
    for key, url, caption, _, _, page in rows:
        assert len(url) < 500
        assert len(caption) == MAX_CAPTION + 1
        assert page is None
        assert key == key_of(url)
        with pytest.raises(FetchError, match=f"longer than {MAX_URL} characters") as raised:
            normalise(url)
        assert raised.value.status is Status.INVALID_URL
    assert bounded("http://images.test/" + "x" * 100) == "http://images.test/" + "x" * 100


@pytest.mark.parametrize(
    "host", ["*", "a,b", "*.images.test", "a,b.test", "a;b.test", "x" * 64 + ".test", "!.test", "a'b"]
)
def test_a_host_that_no_name_server_resolves_is_invalid(host: str) -> None:
    with pytest.raises(FetchError, match="not a host name") as raised:
        normalise(f"http://{host}/a.jpg")
    assert raised.value.status is Status.INVALID_URL


@pytest.mark.parametrize("host", ["a_b.test", "-a.test", "1-2.test", "x" * 63 + ".test", "xn--fiqs8s.test"])
def test_a_host_with_an_odd_name_is_asked_for(host: str) -> None:
    assert normalise(f"http://{host}/a.jpg") == f"http://{host}/a.jpg"
