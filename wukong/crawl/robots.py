"""What a site's robots.txt allows this crawler (RFC 9309), asked once per site and kept for a day."""

import time
from dataclasses import dataclass
from urllib.parse import urlsplit

from protego import Protego

MAX_BYTES = 500 * 1024
"""The part of a robots.txt that is read; RFC 9309 asks for at least 500 kibibytes."""

_KEPT_SECONDS = 24 * 3600.0


@dataclass(frozen=True)
class Rules:
    """One site's rules: parsed, or the same answer for every URL.

    Attributes:
        parsed: the rules, None where one answer holds for the whole site.
        allow_all: that answer.
        expires: when they must be asked for again, on ``time.monotonic``'s clock.
    """

    parsed: Protego | None
    allow_all: bool
    expires: float

    @classmethod
    def from_answer(cls, http_status: int, body: bytes) -> "Rules | None":
        """Read the answer to a request for robots.txt; None where the server failed, so that nothing may be fetched.

        A success is parsed. A client error means that there are no rules, except 429, which is a server asking to be
        left alone. A server error means that everything is disallowed for now.
        """
        expires = time.monotonic() + _KEPT_SECONDS
        if 200 <= http_status < 300:
            text = body[:MAX_BYTES].decode("utf-8-sig", errors="replace")
            return cls(Protego.parse(text), allow_all=True, expires=expires)
        if 300 <= http_status < 500 and http_status != 429:
            return cls(None, allow_all=True, expires=expires)
        return None

    def allows(self, url: str, user_agent: str) -> bool:
        """Tell whether a crawler of this product token may fetch the URL."""
        return self.allow_all if self.parsed is None else bool(self.parsed.can_fetch(url, user_agent))

    def delay(self, user_agent: str) -> float:
        """Seconds that the site asks to be left between requests (``Crawl-delay``), 0 where it does not."""
        return 0.0 if self.parsed is None else float(self.parsed.crawl_delay(user_agent) or 0.0)


def address_of(url: str) -> str:
    """The robots.txt that governs a URL: the one of its scheme, host and port."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}/robots.txt"


def product_token(user_agent: str) -> str:
    """The name by which robots.txt calls a crawler: what its user agent says before the version."""
    return user_agent.partition("/")[0].partition(" ")[0]
