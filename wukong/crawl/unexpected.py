"""What nobody foresaw while one URL, answer or robots.txt was handled: it ends that one thing, and is told once."""

import logging

from wukong.crawl.status import FetchError, Status

logger = logging.getLogger(__name__)

_traced: set[str] = set()
"""Kinds whose traceback this process has logged: one says where the code is wrong, a thousand hide it."""


class UnexpectedInDecoderError(Exception):
    """The decoder's process met an exception that nobody foresaw.

    Attributes:
        kind: its type's name.
        trace: its traceback, as text.
    """

    def __init__(self, kind: str, trace: str) -> None:
        super().__init__(kind)
        self.kind = kind
        self.trace = trace


def unexpected(what: str, error: Exception) -> FetchError:
    """Log an exception that was not foreseen, and give the status that stands for it.

    Args:
        what: the URL, or the search, that was being handled.
        error: what was raised.
    """
    trace = ""
    if isinstance(error, UnexpectedInDecoderError):
        kind, trace = error.kind, f"\n{error.trace}"
    else:
        kind = type(error).__name__
    if kind in _traced:
        logger.error("%s: unexpected %s: %s", what, kind, error)
    else:
        _traced.add(kind)
        logger.error("%s: unexpected %s: %s%s", what, kind, error, trace, exc_info=None if trace else error)
    return FetchError(Status.INTERNAL_ERROR, f"unexpected {kind}")
