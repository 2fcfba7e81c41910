"""The rules of a site's robots.txt (RFC 9309). It is fetched once for each site and cached for a day."""

import codecs
import math
import re
import time
from dataclasses import dataclass
from urllib.parse import urlsplit

from protego import Protego

from wukong.crawl.status import FetchError, Status

MAX_BYTES = 500 * 1024
"""Only this many bytes of a robots.txt are read; RFC 9309 requires at least 500 kibibytes."""

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
_MAX_AGENTS = 100
"""Up to this many user-agent lines are parsed unchanged: each line costs the parser as much as all rules below it."""

_AGENT = re.compile(r"\s*user[- ]?agent\s*(?::|\s)\s*([^#]*)", re.IGNORECASE)
_ENCODINGS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


@dataclass(frozen=True)
class Rules:
    """The rules of one site.

    Attributes:
        parsed: the parsed robots.txt; None if the site has none.
        failure: status, message and HTTP code if the robots.txt could not be fetched; then no URL may be fetched.
        expires: time at which robots.txt must be fetched again, on the clock of ``time.monotonic``.
    """

    parsed: Protego | None
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
        text = _without_other_agents(_decode(body), product)
        return cls(Protego.parse(text), None, time.monotonic() + _CACHED_SECONDS)

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
            return cls(None, None, time.monotonic() + _CACHED_SECONDS)
        if error.status in _FAILURES_OF_THE_SITE:  # an image of the site would fail with the same status
            status, message = error.status, str(error)
        else:
            status, message = Status.ROBOTS_UNAVAILABLE, f"robots.txt: {error}"
        return cls(None, (status, message, code), time.monotonic() + _FAILURE_CACHED_SECONDS)

    def check(self, url: str, product: str) -> None:
        """Check that a crawler with this product token may fetch a URL.

        Raises:
            FetchError: the rules disallow it, or robots.txt could not be fetched.
        """
        if self.failure is not None:
            status, message, code = self.failure
            raise FetchError(status, message, http_status=code)
        if self.parsed is not None and not self.parsed.can_fetch(url, product):
            raise FetchError(Status.ROBOTS_DISALLOWED, "robots.txt disallows it")

    def delay(self, product: str) -> float:
        """Return the seconds between requests that the site asks for (``Crawl-delay``); 0 if it does not."""
        seconds = 0.0 if self.parsed is None else float(self.parsed.crawl_delay(product) or 0.0)
        return seconds if math.isfinite(seconds) and seconds > 0 else 0.0


def _decode(body: bytes) -> str:
    for mark, encoding in _ENCODINGS:
        if body.startswith(mark):
            return body.decode(encoding, errors="replace")
    return body.decode("utf-8", errors="replace")


def _without_other_agents(text: str, product: str) -> str:
    """If a file lists very many crawlers, replace the names of all others by one, so that parsing is fast."""
    lines = text.splitlines()
    agents = [match if (match := _AGENT.match(line)) else None for line in lines]
    if sum(agent is not None for agent in agents) <= _MAX_AGENTS:
        return text
    kept, nameless = [], False
    for line, agent in zip(lines, agents, strict=True):
        name = None if agent is None else agent[1].strip().lower().replace("*", "")
        if name is None or name == "" or product.lower().startswith(name):
            nameless = False
            kept.append(line)
        elif not nameless:
            nameless = True
            kept.append("User-agent: -")
    return "\n".join(kept)


def address_of(url: str) -> str:
    """Return the URL of the robots.txt for a URL: with the same scheme, host and port."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}/robots.txt"


def product_token(user_agent: str) -> str:
    """Return a crawler's name for robots.txt: the part of its user agent before the version."""
    return user_agent.partition("/")[0].partition(" ")[0]
