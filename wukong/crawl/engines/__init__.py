"""Image search engines: one file each, behind one small interface."""

from dataclasses import dataclass
from typing import Protocol

from wukong.errors import WukongError


class EngineRefusedError(WukongError):
    """The engine answered with a captcha or an anti-spider page, so it is not asked any further."""


@dataclass(frozen=True)
class Result:
    """One picture that an engine found: its URL, its caption, and the page it stands on."""

    url: str
    caption: str
    page_url: str | None = None


class Engine(Protocol):
    """How to ask a search engine and how to read its answer; requests, paging and pace are ``search``'s work."""

    name: str

    def page_url(self, query: str, page: int) -> str:
        """The address of one page of results, counted from 0."""
        ...

    def parse(self, body: bytes) -> list[Result]:
        """Read one page; an empty list ends the query.

        Raises:
            EngineRefusedError: it is a captcha or an anti-spider answer.
            ValueError: it is not an answer of this engine.
        """
        ...


def clean(text: str) -> str:
    """Make a string from a foreign answer fit for UTF-8 and one line: no lone surrogates, no control characters."""
    text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())
