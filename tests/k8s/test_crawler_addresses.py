"""The addresses that the crawler's network policy lets out to, and those that its code connects to, are the same."""

import ipaddress
import random

import pytest
from manifests import FOLDER, Elsewhere, _is, named, plain

from wukong.crawl.addresses import is_public

# https://www.iana.org/assignments/iana-ipv4-special-registry/ and .../iana-ipv6-special-registry/, November 2026:
# blocks that are not globally reachable, or whose reachability is "N/A" (tunnels). And multicast, of its own registry.
_V4 = """
0.0.0.0/8 0.0.0.0/32 10.0.0.0/8 100.64.0.0/10 127.0.0.0/8 169.254.0.0/16 172.16.0.0/12 192.0.0.0/24 192.0.0.0/29
192.0.0.8/32 192.0.0.170/32 192.0.0.171/32 192.0.2.0/24 192.88.99.0/24 192.168.0.0/16 198.18.0.0/15 198.51.100.0/24
203.0.113.0/24 240.0.0.0/4 255.255.255.255/32 224.0.0.0/4
"""
_V6 = """
::1/128 ::/128 64:ff9b:1::/48 100::/64 100:0:0:1::/64 2001::/32 2001:2::/48 2001:10::/28 2001:db8::/32 2002::/16
3fff::/20 5f00::/16 fc00::/7 fe80::/10 fec0::/10 ff00::/8
"""
SPECIAL = [*_V4.split(), *_V6.split()]
REACHABLE = (
    "1.1.1.1 8.8.8.8 100.128.0.1 172.32.0.1 192.0.1.1 198.20.0.1 223.255.255.254 2400::1 2606:4700::1111 2a00::1"
)
NAT64 = ipaddress.ip_network("64:ff9b::/96")
_ADDRESS = ipaddress.IPv4Address | ipaddress.IPv6Address


def ends(text: str) -> list[_ADDRESS]:
    block = ipaddress.ip_network(text)
    return [block[0], block[-1], block[random.Random(text).randrange(block.num_addresses)]]


def let_out(address: _ADDRESS) -> bool:
    policy = named(plain(), "NetworkPolicy")["crawler"]
    (rule,) = policy["spec"]["egress"]
    return any(_is(peer, Elsewhere(address=str(address))) for peer in rule["to"])


@pytest.mark.parametrize("block", SPECIAL)
def test_special_blocks_are_refused_by_both(block: str) -> None:
    for address in ends(block):
        assert not is_public(str(address)), address
        assert not let_out(address), address


@pytest.mark.parametrize("address", REACHABLE.split())
def test_others_are_reached_by_both(address: str) -> None:
    assert ipaddress.ip_address(address).is_global
    assert is_public(address)
    assert let_out(ipaddress.ip_address(address))


def test_the_policy_and_the_code_agree() -> None:
    """At the edges of every block, and anywhere; NAT64 to public addresses is the code's alone."""
    edges = [
        end + step
        for text in SPECIAL
        for end in (ipaddress.ip_network(text)[0], ipaddress.ip_network(text)[-1])
        for step in (-1, 0, 1)
        if 0 <= int(end) + step < 2**end.max_prefixlen
    ]
    draw = random.Random(7)
    edges += [ipaddress.IPv4Address(draw.getrandbits(32)) for _ in range(5000)]
    edges += [ipaddress.IPv6Address(draw.getrandbits(125) | 1 << 125) for _ in range(5000)]
    edges += [ipaddress.IPv6Address(draw.getrandbits(128)) for _ in range(5000)]
    edges += [ipaddress.IPv6Address(0x2001 << 112 | draw.getrandbits(112)) for _ in range(5000)]
    for address in edges:
        if address in NAT64:
            assert not let_out(address)
            continue
        assert is_public(str(address)) == let_out(address), address
        assert address.is_global or not is_public(str(address)), address


def test_the_operator_is_known_by_its_namespace_everywhere() -> None:
    """Whoever may make pods anywhere can give them the operator's label."""
    files = [FOLDER / "base" / "network.yaml", FOLDER / "components" / "serve" / "network.yaml"]
    text = "".join(file.read_text(encoding="utf-8") for file in files)
    assert text.count("kuberay-operator}") == 2
    assert text.count("kubernetes.io/metadata.name: kuberay-system") == 2
    assert "namespaceSelector: {}" not in text
