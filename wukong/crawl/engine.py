"""The interface of an image search engine, and what engines share. The engines are in ``wukong/crawl/engines/``."""

import json
from dataclasses import dataclass
from typing import Any, Protocol

from wukong.errors import WukongError


class EngineRefusedError(WukongError):
    """The engine answered with a captcha or an anti-crawler page, so no more requests are sent to it."""


@dataclass(frozen=True)
class Result:
    """One image that an engine found: its URL, its caption, and the URL of the page that shows it."""

    url: str
    caption: str
    page_url: str | None = None


class Engine(Protocol):
    """How to build requests to a search engine and parse its answers; ``search`` sends the requests."""

    name: str

    def __init__(self, endpoint: str) -> None: ...

    def page_url(self, query: str, page: int) -> str:
        """Return the URL of one page of results; pages are numbered from 0."""
        ...

    def parse(self, body: bytes) -> list[Result]:
        """Parse one page of results; an empty list ends the query.

        Raises:
            EngineRefusedError: the answer is a captcha or an anti-crawler page.
            ValueError: the answer is not one of this engine.
        """
        ...


def clean(text: str) -> str:
    """Make external text valid UTF-8 on one line: without lone surrogates and control characters."""
    text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def parsed(text: str) -> Any:
    """Return what a JSON text of an engine holds; numbers are floats, because Python reads no integer of 5,000 digits.

    Raises:
        ValueError: it is no JSON.
    """
    return json.loads(text, strict=False, parse_int=float)
