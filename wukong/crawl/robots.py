"""What a site's robots.txt allows this crawler (RFC 9309), asked once per site and kept for a day."""

import codecs
import math
import re
import time
from dataclasses import dataclass
from urllib.parse import urlsplit

from protego import Protego

from wukong.crawl.status import FetchError, Status

MAX_BYTES = 500 * 1024
"""The part of a robots.txt that is read; RFC 9309 asks for at least 500 kibibytes."""

_KEPT_SECONDS = 24 * 3600.0
_FAILURE_KEPT_SECONDS = 300.0
_SAME_FOR_PICTURES = frozenset(
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
"""User-agent lines that are read as they are: each costs the parser as much as all rules below it."""

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
    """One site's rules.

    Attributes:
        parsed: what its robots.txt says; None where it has none.
        failure: why nothing may be fetched: the file could not be had, for a reason that may pass.
        expires: when the site must be asked again, on ``time.monotonic``'s clock.
    """

    parsed: Protego | None
    failure: tuple[Status, str, int | None] | None
    expires: float

    @classmethod
    def from_body(cls, body: bytes, product: str) -> "Rules":
        """Read a robots.txt, for a crawler with this product token.

        Bytes that are no UTF-8 spoil their own line only; what a byte order mark says to be UTF-16 or UTF-32 is read
        so. Of a file that is too large, the whole lines in its first 500 KiB count.
        """
        if len(body) > MAX_BYTES:
            body = body[: max(body.rfind(b"\n", 0, MAX_BYTES), body.rfind(b"\r", 0, MAX_BYTES)) + 1]
        text = _relevant(_text_of(body), product)
        return cls(Protego.parse(text), None, time.monotonic() + _KEPT_SECONDS)

    @classmethod
    def from_failure(cls, error: FetchError) -> "Rules":
        """Decide what the lack of an answer means (RFC 9309, 2.3.1).

        A client error, or more than five redirects, means that there are no rules; 429 is a server asking to be left
        alone. A server that fails or cannot be reached disallows everything for now, and so does all else: a redirect
        to what is no URL, an answer that cannot be decompressed or that ends too early.
        """
        code = error.http_status
        missing = error.status is Status.HTTP_ERROR and code is not None and 400 <= code < 500 and code != 429
        if missing or error.status is Status.REDIRECT_ERROR:
            return cls(None, None, time.monotonic() + _KEPT_SECONDS)
        if error.status in _SAME_FOR_PICTURES:  # the picture would end the same way, and this says why
            status, message = error.status, str(error)
        else:
            status, message = Status.ROBOTS_UNAVAILABLE, f"robots.txt: {error}"
        return cls(None, (status, message, code), time.monotonic() + _FAILURE_KEPT_SECONDS)

    def check(self, url: str, product: str) -> None:
        """Let pass what a crawler with this product token may fetch.

        Raises:
            FetchError: the rules disallow it, or they could not be had.
        """
        if self.failure is not None:
            status, message, code = self.failure
            raise FetchError(status, message, http_status=code)
        if self.parsed is not None and not self.parsed.can_fetch(url, product):
            raise FetchError(Status.ROBOTS_DISALLOWED, "robots.txt disallows it")

    def delay(self, product: str) -> float:
        """Seconds that the site asks to be left between requests (``Crawl-delay``), 0 where it does not."""
        asked = 0.0 if self.parsed is None else float(self.parsed.crawl_delay(product) or 0.0)
        return asked if math.isfinite(asked) and asked > 0 else 0.0


def _text_of(body: bytes) -> str:
    for mark, encoding in _ENCODINGS:
        if body.startswith(mark):
            return body.decode(encoding, errors="replace")
    return body.decode("utf-8", errors="replace")


def _relevant(text: str, product: str) -> str:
    """Take the names of other crawlers out of a file that lists very many, and leave their groups nameless."""
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
    """The robots.txt that governs a URL: the one of its scheme, host and port."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}/robots.txt"


def product_token(user_agent: str) -> str:
    """The name by which robots.txt calls a crawler: what its user agent says before the version."""
    return user_agent.partition("/")[0].partition(" ")[0]
