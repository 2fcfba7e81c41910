"""What a site's robots.txt allows this crawler (RFC 9309), asked once per site and kept for a day."""

import time
from dataclasses import dataclass
from urllib.parse import urlsplit

from protego import Protego

from wukong.crawl.status import FetchError, Status

MAX_BYTES = 500 * 1024
"""The part of a robots.txt that is read; RFC 9309 asks for at least 500 kibibytes."""

_KEPT_SECONDS = 24 * 3600.0
_FAILURE_KEPT_SECONDS = 300.0
_SAME_FOR_PICTURES = frozenset({Status.DNS_ERROR, Status.FORBIDDEN_ADDRESS, Status.TLS_ERROR, Status.OPTED_OUT})


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
    def from_body(cls, body: bytes) -> "Rules":
        """Read a robots.txt."""
        text = body[:MAX_BYTES].decode("utf-8-sig", errors="replace")
        return cls(Protego.parse(text), None, time.monotonic() + _KEPT_SECONDS)

    @classmethod
    def from_failure(cls, error: FetchError) -> "Rules":
        """Decide what the lack of an answer means (RFC 9309, 2.3.1).

        A client error, or a redirect that leads nowhere, means that there are no rules; 429 is a server asking to be
        left alone. A server that fails or cannot be reached disallows everything for now.
        """
        code = error.http_status
        missing = error.status is Status.HTTP_ERROR and code is not None and 400 <= code < 500 and code != 429
        if missing or error.status in {Status.REDIRECT_ERROR, Status.INVALID_URL}:
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
        return 0.0 if self.parsed is None else float(self.parsed.crawl_delay(product) or 0.0)


def address_of(url: str) -> str:
    """The robots.txt that governs a URL: the one of its scheme, host and port."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}/robots.txt"


def product_token(user_agent: str) -> str:
    """The name by which robots.txt calls a crawler: what its user agent says before the version."""
    return user_agent.partition("/")[0].partition(" ")[0]
