"""The check of addresses, compared with the IANA special-purpose registries."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wukong.crawl.addresses import ConnectTo, is_public, is_public_name
from wukong.errors import ConfigError

PUBLIC = ["8.8.8.8", "1.1.1.1", "220.181.38.148", "2606:4700:4700::1111", "2400:da00::6666", "::ffff:8.8.8.8"]

# Addresses from each block of the IANA IPv4 and IPv6 special-purpose registries that is not globally reachable.
NOT_PUBLIC = [
    "0.0.0.0",
    "0.1.2.3",
    "10.0.0.1",
    "100.64.0.1",
    "100.127.255.254",
    "127.0.0.1",
    "127.255.255.254",
    "169.254.169.254",
    "172.16.0.1",
    "172.31.255.255",
    "192.0.0.8",
    "192.0.2.1",
    "192.88.99.1",
    "192.168.1.1",
    "198.18.0.1",
    "198.51.100.7",
    "203.0.113.9",
    "224.0.0.1",
    "239.255.255.250",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::127.0.0.1",
    "::ffff:10.0.0.1",
    "::ffff:127.0.0.1",
    "::ffff:169.254.169.254",
    "64:ff9b::10.0.0.1",
    "64:ff9b::127.0.0.1",
    "64:ff9b:1::1",
    "100::1",
    "2001::1",
    "2001:db8::1",
    "3fff::1",
    "5f00::1",
    "2002:7f00:1::",
    "2002:a00:1::",
    "fc00::1",
    "fd12:3456::1",
    "fe80::1",
    "fe80::1%eth0",
    "fec0::1",
    "ff02::1",
]


@pytest.mark.parametrize("address", PUBLIC)
def test_public(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize("address", NOT_PUBLIC)
def test_not_public(address: str) -> None:
    assert not is_public(address)


@given(st.ip_addresses(v=4))
def test_an_embedded_address_decides_whether_an_address_is_public(address) -> None:
    mapped = is_public(f"::ffff:{address}")
    nat64 = is_public(f"64:ff9b::{address}")
    assert mapped == nat64 == is_public(str(address))


def test_only_the_configured_host_may_connect_to_its_target() -> None:
    connect_to = ConnectTo.parse("images.test=127.0.0.1:8080, v6.test=[::1]:81")
    assert connect_to.allows("images.test", "127.0.0.1", 8080)
    assert not connect_to.allows("images.test", "127.0.0.1", 22)
    assert not connect_to.allows("images.test", "8.8.8.8", 8080), "its address was chosen, no other will do"
    assert not connect_to.allows("127.0.0.1", "127.0.0.1", 8080)
    assert not connect_to.allows("evil.test", "127.0.0.1", 8080)
    assert connect_to.allows("v6.test", "::1", 81)
    assert connect_to.allows("baidu.com", "220.181.38.148", 443)


@pytest.mark.parametrize(
    ("endpoint", "opened"),
    [
        ("http://images.test/search/acjson", True),
        ("https://IMAGES.test:8443/search", True),
        ("s3://wukong/urls.csv", True),
        ("file:///images.test", True),
        ("https://image.baidu.com/search/acjson", False),
        ("http://images.test.evil.test/", False),
        ("http://searx.test/?of=images.test", False),
    ],
)
def test_only_a_crawl_of_a_chosen_host_reaches_chosen_addresses(endpoint: str, opened: bool) -> None:
    connect_to = ConnectTo.parse("images.test=127.0.0.1:8080").of_crawl(endpoint)
    assert connect_to.allows("images.test", "127.0.0.1", 8080) is opened
    assert bool(connect_to.targets) is opened


@pytest.mark.parametrize(
    ("host", "public"),
    [
        ("image.baidu.com", True),
        ("IMAGE.BAIDU.COM.", True),
        ("220.181.38.148", True),
        ("例子.中国", True),
        ("127.0.0.1", False),
        ("::1", False),
        ("10.1.2.3", False),
        ("searxng", False),
        ("localhost", False),
        ("corpus.wukong.test", False),
        ("searx.search.svc", False),
        ("searx.search.svc.cluster.local", False),
        ("testing.example.com", True),
    ],
)
def test_a_public_name_is_told_from_ones_own(host: str, public: bool) -> None:
    assert is_public_name(host) is public


@pytest.mark.parametrize(
    "text", ["images.test", "images.test=localhost:80", "=127.0.0.1:80", "a=127.0.0.1:0", "a=1.2.3.4"]
)
def test_malformed_mappings_are_explained(text: str) -> None:
    with pytest.raises(ConfigError, match="host=address:port"):
        ConnectTo.parse(text)
