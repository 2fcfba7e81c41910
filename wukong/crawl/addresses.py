"""The addresses that the crawler may connect to: public ones, and those that the operator configures for a host.

A URL found on the web is not trusted. It may lead to a service inside the operator's network: directly, by a redirect,
or by a host name that resolves to one address when it is checked and to another when it is used. So the address of each
socket is checked just before it connects, never the host name.
"""

import ipaddress
import os
import socket
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from wukong.errors import ConfigError
from wukong.runtime.environment import CONNECT_TO

_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_REFUSED = tuple(
    # Blocks of IANA's special-purpose registries that some supported Python versions consider global.
    ipaddress.ip_network(block)
    for block in (
        "192.0.0.0/24",
        "192.88.99.0/24",
        "64:ff9b:1::/48",
        "100::/32",
        "2001::/23",
        "2002::/16",
        "3fff::/20",
        "5f00::/16",
        "fec0::/10",
    )
)

_PRIVATE_DOMAINS = {"test", "example", "invalid", "localhost", "local", "internal", "svc", "arpa"}


def is_public(address: str) -> bool:
    """Return whether an IP address, given as text, is public.

    These are not public: private, loopback, link-local, CGNAT, multicast, reserved and unspecified addresses; IPv6
    addresses that embed such an IPv4 address (mapped, NAT64); all addresses of Teredo, of 6to4, and of local NAT64. The
    crawler's policy in ``k8s/base/network.yaml`` lets out to the same addresses.
    """
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address) and (embedded := _embedded(ip)) is not None:
        return is_public(str(embedded))
    if any(ip.version == block.version and ip in block for block in _REFUSED):
        return False
    return ip.is_global and not ip.is_multicast and not ip.is_reserved


def is_public_name(host: str) -> bool:
    """Return whether a host's name, or an IP address, is one of the public internet.

    These are not: names without a dot, and those below a domain that is reserved for tests and examples (RFC 2606), for
    one's own network (RFC 6762, ICANN's ``internal``), or for the services of a Kubernetes cluster.
    """
    try:
        return is_public(host)
    except ValueError:
        labels = host.rstrip(".").lower().split(".")
        return len(labels) > 1 and labels[-1] not in _PRIVATE_DOMAINS


def looked_up(hosts: Iterable[str], seconds: float) -> dict[str, list[str]]:
    """Ask the system for the addresses of hosts, of all at once.

    Args:
        hosts: their names.
        seconds: how long to wait for the answers.

    Returns:
        The IP addresses of each host that was answered in time; none for a name that does not exist.
    """
    found: dict[str, list[str]] = {}

    def ask(host: str) -> None:
        try:
            answers = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError):
            answers = []
        found[host] = sorted({str(address[0]) for *_, address in answers})

    # Threads of their own: nothing ends a question to DNS, and a pool would wait for it at the end of the process.
    asking = [threading.Thread(target=ask, args=[host], daemon=True) for host in hosts]
    for thread in asking:
        thread.start()
    for thread in asking:
        thread.join(seconds / len(asking))
    return dict(found)


def _embedded(ip: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    if ip.ipv4_mapped is not None:
        return ip.ipv4_mapped
    if ip in _NAT64:
        return ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
    return None


@dataclass(frozen=True)
class ConnectTo:
    """Hosts with an address that the operator chose, like curl's ``--connect-to``.

    Attributes:
        targets: host name (lower case) -> (IP address, port). Only these hosts may have an address that is not public.
    """

    targets: Mapping[str, tuple[str, int]]

    @classmethod
    def parse(cls, text: str) -> "ConnectTo":
        """Parse ``host=address:port`` entries separated by commas; an IPv6 address is in brackets.

        Raises:
            ConfigError: an entry is malformed.
        """
        targets = {}
        for entry in filter(None, (piece.strip() for piece in text.split(","))):
            host, _, target = entry.partition("=")
            address, _, port = target.rpartition(":")
            try:
                ip = ipaddress.ip_address(address.removeprefix("[").removesuffix("]"))
                number = int(port)
            except ValueError:
                number = 0
            if not host or not 0 < number < 65536:
                raise ConfigError(
                    f"{CONNECT_TO}: {entry!r} is not host=address:port, for instance images.test=127.0.0.1:8080"
                )
            targets[host.lower()] = (str(ip), number)
        return cls(targets)

    @classmethod
    def from_environment(cls) -> "ConnectTo":
        """Parse the environment variable ``WUKONG_CONNECT_TO``; no hosts if it is not set."""
        return cls.parse(os.environ.get(CONNECT_TO, ""))

    def of_crawl(self, endpoint: str) -> "ConnectTo":
        """Return the hosts that a crawl may reach at their chosen address.

        These are all of them if the crawl searches one of them, as the demo does, or reads a list that the operator
        names. Any other search engine's results come from strangers, who must not reach what was opened for another
        crawl: then there are none.

        Args:
            endpoint: ``crawl.endpoint``: a search engine's URL, or the URI of a list.
        """
        parts = urlsplit(endpoint)
        return ConnectTo({}) if parts.scheme in {"http", "https"} and parts.hostname not in self.targets else self

    def may_follow(self, url: str, location: str) -> bool:
        """Return whether a redirect may be followed: a host with a chosen address is entered from another one alone."""
        return urlsplit(location).hostname not in self.targets or urlsplit(url).hostname in self.targets

    def allows(self, host: str, address: str, port: int) -> bool:
        """Return whether a request to ``host`` may connect to this address."""
        target = self.targets.get(host)
        if target is not None:
            return (address, port) == target
        return is_public(address)
