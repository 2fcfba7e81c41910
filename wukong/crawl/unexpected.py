"""Unexpected exceptions for one URL, one search answer or one robots.txt: they are logged and become its status."""

import logging

from wukong.crawl.status import FetchError, Status

logger = logging.getLogger(__name__)

_traced: set[str] = set()
"""Exception types whose traceback this process has logged; each traceback is logged once."""


class UnexpectedInDecoderError(Exception):
    """An unexpected exception in the decoder's child process.

    Attributes:
        kind: name of the exception's type.
        trace: the traceback as text.
    """

    def __init__(self, kind: str, trace: str) -> None:
        super().__init__(kind)
        self.kind = kind
        self.trace = trace


def unexpected(what: str, error: Exception) -> FetchError:
    """Log an unexpected exception, and return the ``FetchError`` with status ``internal_error`` for it.

    Args:
        what: the URL or the search that was processed.
        error: the exception.
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
