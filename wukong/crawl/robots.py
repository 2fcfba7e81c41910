"""The rules of a site's robots.txt (RFC 9309). It is fetched once for each site and cached for a day.

The file is parsed once, in linear time, and only the rules for this crawler are kept. Rules without a wildcard are
looked up in a table, so that their number does not matter. A site with more wildcards than anybody needs is left alone.
"""

import bisect
import io
import math
import re
import time
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar
from urllib.parse import quote, urlsplit

from wukong.crawl import usage
from wukong.crawl.status import FetchError, Status
from wukong.store import text_files

MAX_BYTES = 500 * 1024
"""Only this many bytes of a robots.txt are read; RFC 9309 requires at least 500 kibibytes."""

MAX_WILDCARDS = 1_000
MAX_WILDCARD_BYTES = 64 * 1024
"""A site whose rules for this crawler have more ``*``, or more bytes of rules with one, gets no requests: each such
rule is compared with each URL."""

_TOO_MANY_WILDCARDS = f"robots.txt has over {MAX_WILDCARDS} wildcards, or {MAX_WILDCARD_BYTES} bytes of rules with one"
_CACHED_SECONDS = 24 * 3600.0
_FAILURE_CACHED_SECONDS = 300.0
_FAILURES_OF_THE_SITE = frozenset(
    {
        Status.DNS_ERROR,
        Status.FORBIDDEN_ADDRESS,
        Status.TLS_ERROR,
        Status.OPTED_OUT,
        Status.HOST_TOO_SLOW,
        Status.INTERNAL_ERROR,
    }
)
_BYTES_A_RULE = 200
_BYTES_A_SITE = 1_000
"""Estimates of the memory that a rule takes besides its text, and a site without rules."""

_SLOW_WILDCARDS = 50
"""With more wildcards than this, rules are compared outside the event loop, and the time is charged to the host."""

_LINE = re.compile(
    r"\s*(user[- ]?agent|dis{1,2}all?[ao]w|diasllow|allow|crawl[- ]delay|content-usage)(?:\s*:|\s)\s*([^#]*)",
    re.IGNORECASE,
)
_PLAIN = re.compile(r"[A-Za-z0-9_.~/=-]*")
_ESCAPE = re.compile(rb"%(?:([0-9A-Fa-f]{2}))?")

V = TypeVar("V")


class Paths(Generic[V]):
    """Values by patterns of paths; of several patterns that match a path the longest counts.

    Args:
        rules: pairs of a pattern, as it stands in robots.txt, and a value. ``*`` stands for any characters, ``$`` at
            the end for the end of the path.
    """

    def __init__(self, rules: Iterable[tuple[str, V]]) -> None:
        self.memory = 0
        self.wildcards = 0
        self.wildcard_bytes = 0
        self._tables: tuple[dict[str, list[V]], dict[str, list[V]]] = {}, {}  # of beginnings, and of whole paths
        wild: dict[tuple[str, bool], list[V]] = {}
        for pattern, value in rules:
            for text, whole in _comparable_patterns(pattern):
                known: dict[Any, list[V]] = wild if "*" in text else self._tables[whole]
                values = known.setdefault((text, whole) if "*" in text else text, [])
                if value not in values:
                    values.append(value)
        for text, _ in wild:
            self.wildcards += text.count("*")
            self.wildcard_bytes += len(text)
        self._lengths = sorted({len(text) for text in self._tables[False]})
        self._wild = sorted(
            ((len(text) + whole, tuple(text.split("*")), whole, values) for (text, whole), values in wild.items()),
            key=lambda entry: -entry[0],
        )
        texts = [*self._tables[False], *self._tables[True], *(text for text, _ in wild)]
        self.memory = sum(map(len, texts)) + _BYTES_A_RULE * (len(texts) + self.wildcards)

    def of(self, path: str) -> list[V]:
        """Return the value of the longest pattern that matches a path from ``path_of``; of equally long ones, all."""
        length, values = -1, list[V]()
        for number in range(bisect.bisect_right(self._lengths, len(path)) - 1, -1, -1):
            matched = self._tables[False].get(path[: self._lengths[number]])
            if matched is not None:
                length, values = self._lengths[number], matched
                break
        if (matched := self._tables[True].get(path)) is not None:  # `$` counts, so it is longer than any beginning
            length, values = len(path) + 1, matched
        for long, parts, whole, of_pattern in self._wild:
            if long < length:
                break
            if _matches(path, parts, whole):
                values = [*values, *of_pattern] if long == length else of_pattern
                length = long
        return values


@dataclass(frozen=True)
class Rules:
    """The rules of one site for this crawler.

    Attributes:
        access: whether paths may be fetched; None if the site has no rules.
        use: what the site says about the use of what is fetched; None likewise.
        delay: seconds between requests that the site asks for (``Crawl-delay``); 0 if it does not.
        failure: status, message and HTTP code if nothing may be fetched, mostly because the robots.txt could not be.
        expires: time at which robots.txt must be fetched again, on the clock of ``time.monotonic``.
    """

    access: Paths[bool] | None
    use: Paths[usage.Said] | None
    delay: float
    failure: tuple[Status, str, int | None] | None
    expires: float

    @classmethod
    def from_body(cls, body: bytes, product: str) -> "Rules":
        """Parse a robots.txt for a crawler with this product token.

        Bytes that are not UTF-8 make only their own line invalid. A file with a byte order mark of UTF-16 or UTF-32 is
        decoded as such. Of a file that is too large, the complete lines in its first 500 KiB are used.
        """
        if len(body) > MAX_BYTES:
            body = body[: max(body.rfind(b"\n", 0, MAX_BYTES), body.rfind(b"\r", 0, MAX_BYTES)) + 1]
        text = text_files.utf8(io.BytesIO(body), "robots.txt").read()
        access, preferences, delay = _rules_for(product, text.decode("utf-8", "replace"))
        both = Paths(access), Paths(preferences)
        failure = None
        if (
            sum(paths.wildcards for paths in both) > MAX_WILDCARDS
            or sum(paths.wildcard_bytes for paths in both) > MAX_WILDCARD_BYTES
        ):
            failure, both = (Status.ROBOTS_DISALLOWED, _TOO_MANY_WILDCARDS, None), (Paths([]), Paths([]))
        return cls(both[0], both[1], delay, failure, time.monotonic() + _CACHED_SECONDS)

    @classmethod
    def from_failure(cls, error: FetchError) -> "Rules":
        """Derive the rules from an error (RFC 9309, 2.3.1).

        A client error except 429, or more than five redirects, means that there are no rules. Every other error means
        that nothing may be fetched for now: 429, a server that fails or cannot be reached, a redirect to an invalid
        URL, an answer that cannot be decompressed or ends too early.
        """
        code = error.http_status
        missing = error.status is Status.HTTP_ERROR and code is not None and 400 <= code < 500 and code != 429
        if missing or error.status is Status.REDIRECT_ERROR:
            return cls(None, None, 0.0, None, time.monotonic() + _CACHED_SECONDS)
        if error.status in _FAILURES_OF_THE_SITE:  # an image of the site would fail with the same status
            status, message = error.status, str(error)
        else:
            status, message = Status.ROBOTS_UNAVAILABLE, f"robots.txt: {error}"
        return cls(None, None, 0.0, (status, message, code), time.monotonic() + _FAILURE_CACHED_SECONDS)

    @property
    def memory(self) -> int:
        """About how many bytes they take."""
        return _BYTES_A_SITE + sum(paths.memory for paths in (self.access, self.use) if paths is not None)

    @property
    def is_slow(self) -> bool:
        """Whether ``check`` takes so long that it does not belong into an event loop."""
        return sum(paths.wildcards for paths in (self.access, self.use) if paths is not None) > _SLOW_WILDCARDS

    def check(self, url: str) -> usage.Said:
        """Check that a URL, in normal form, may be fetched; return what the site says about the use of what is there.

        Raises:
            FetchError: the rules disallow it, or robots.txt could not be fetched.
        """
        if self.failure is not None:
            status, message, code = self.failure
            raise FetchError(status, message, http_status=code)
        if self.access is None or self.use is None:
            return usage.NOTHING
        path = path_of(url)
        allowed = self.access.of(path)
        if allowed and not any(allowed):  # of an Allow and a Disallow of one length the Allow counts
            raise FetchError(Status.ROBOTS_DISALLOWED, "robots.txt disallows it")
        return usage.combined(self.use.of(path))


class RobotsCache:
    """The rules of sites, by the address of their robots.txt; those that were used least recently are forgotten.

    Args:
        max_bytes: about how much memory they may take.
    """

    def __init__(self, max_bytes: int = 64 * 2**20) -> None:
        self._max_bytes = max_bytes
        self._rules: OrderedDict[str, Rules] = OrderedDict()
        self.bytes = 0

    def get(self, site: str) -> Rules | None:
        """Return the rules of a site unless they are unknown or out of date."""
        rules = self._rules.get(site)
        if rules is None or rules.expires < time.monotonic():
            return None
        self._rules.move_to_end(site)
        return rules

    def put(self, site: str, rules: Rules) -> None:
        """Remember the rules of a site."""
        self._forget(site)
        self._rules[site] = rules
        self.bytes += rules.memory
        while self.bytes > self._max_bytes and len(self._rules) > 1:
            self._forget(next(iter(self._rules)))

    def forget_failures(self) -> None:
        """Forget the sites that nothing may be fetched from, so that their robots.txt is asked for again."""
        for site in [site for site, rules in self._rules.items() if rules.failure is not None]:
            self._forget(site)

    def _forget(self, site: str) -> None:
        rules = self._rules.pop(site, None)
        if rules is not None:
            self.bytes -= rules.memory


def address_of(url: str) -> str:
    """Return the URL of the robots.txt for a URL: with the same scheme, host and port."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}/robots.txt"


def product_token(user_agent: str) -> str:
    """Return a crawler's name for robots.txt: the part of its user agent before the version."""
    return user_agent.partition("/")[0].partition(" ")[0]


def path_of(url: str) -> str:
    """Return the path and the query of a URL as patterns are compared with them."""
    parts = urlsplit(url)
    return _comparable(f"{parts.path or '/'}?{parts.query}" if parts.query else parts.path or "/", "")


def _rules_for(product: str, text: str) -> tuple[list[tuple[str, bool]], list[tuple[str, usage.Said]], float]:
    """Return the rules of the groups with the longest name that is the crawler's: for access, for use, and the delay.

    Groups of one name are one group. Of names that are not the crawler's nothing is kept.
    """
    product = product.lower()
    groups: dict[str, tuple[list[tuple[str, bool]], list[tuple[str, usage.Said]], list[float]]] = {}
    names: set[str] = set()
    said: dict[str, usage.Said] = {}
    has_rules = False
    for line in text.splitlines():
        match = _LINE.match(line)
        if match is None:
            continue
        field, value = match[1].lower(), match[2].strip()
        if field.startswith("user"):
            if has_rules:
                names, has_rules = set(), False
            name = _name(value, product)
            if name:
                names.add(name)
                groups.setdefault(name, ([], [], []))
            continue
        has_rules = True
        for name in names if value else ():
            access, preferences, delays = groups[name]
            if field.startswith("crawl"):
                delays.append(_seconds(value))
            elif field == "content-usage":
                path, _, statement = value.replace("\t", " ").partition(" ") if value[0] == "/" else ("", "", value)
                if statement not in said:
                    said[statement] = usage.preferences(statement)
                preferences.append((path, said[statement]))
            else:
                access.append((value, field == "allow"))
                if field == "allow" and value.endswith("/index.html"):  # a site's start page is what / shows
                    access.append((value.removesuffix("index.html") + "$", True))
    best = max(groups, key=lambda name: 0 if name == "*" else len(name), default=None)
    if best is None:
        return [], [], 0.0
    access, preferences, delays = groups[best]
    return access, preferences, next((delay for delay in reversed(delays) if delay >= 0), 0.0)


def _name(value: str, product: str) -> str:
    """Return the name in a user-agent line if it is the crawler's or ``*``, else an empty text.

    The crawler's are those that its product token holds from the beginning of one of its words on.
    """
    name = value.lower()
    if name == "*":
        return name
    name = name.replace("*", "").partition("/")[0].strip()
    at = product.find(name) if name else -1
    while at > 0 and (product[at - 1].isalnum() or product[at - 1] in "-_"):
        at = product.find(name, at + 1)
    return name if at >= 0 else ""


def _seconds(value: str) -> float:
    """Return a delay, or -1 if it is none."""
    try:
        seconds = float(value)
    except ValueError:
        return -1.0
    return seconds if math.isfinite(seconds) and seconds >= 0 else -1.0


def _comparable_patterns(pattern: str) -> list[tuple[str, bool]]:
    """Return a pattern in the form in which it is compared, and whether it must match the whole path.

    A ``$`` at the end may also be meant as the character, so such a pattern stands for both.
    """
    if not pattern.endswith("$"):
        return [(_comparable(pattern, "*"), False)]
    return [(_comparable(pattern[:-1], "*"), True), (_comparable(pattern[:-1] + "%24", "*"), False)]


def _comparable(text: str, special: str) -> str:
    """Percent-encode a path in one way; runs of ``*`` become one.

    Args:
        text: the path or pattern.
        special: characters that have a meaning where they are not percent-encoded.
    """
    if _PLAIN.fullmatch(text):
        return text
    kept = {b"2F", b"25", *(b"%02X" % ord(character) for character in special)}

    def decoded(match: re.Match[bytes]) -> bytes:
        if match[1] is None:
            return b"%25"
        code = match[1].upper()
        return b"%" + code if code in kept else bytes([int(code, 16)])

    raw = _ESCAPE.sub(decoded, text.encode("utf-8", "replace"))
    if special:
        raw = re.sub(rb"\*+", b"*", raw)
    return quote(raw, safe="/%=" + special)


def _matches(path: str, parts: tuple[str, ...], whole: bool) -> bool:
    """Return whether the texts between wildcards occur in a path one after the other, the first at its beginning."""
    if not path.startswith(parts[0]):
        return False
    position = len(parts[0])
    for part in parts[1:-1]:
        position = path.find(part, position)
        if position < 0:
            return False
        position += len(part)
    last = parts[-1]
    if whole:
        return len(path) - len(last) >= position and path.endswith(last)
    return path.find(last, position) >= 0
