"""The possible results of one URL: the values of the ``status`` column."""

from enum import StrEnum


class Status(StrEnum):
    """The result of one URL. Each value except ``SUCCESS`` is a reason why there is no image."""

    SUCCESS = "success"

    # The image breaks a rule. A retry gives the same result.
    TOO_SMALL = "too_small"
    BAD_RATIO = "bad_ratio"
    TOO_MANY_PIXELS = "too_many_pixels"
    TOO_LARGE = "too_large"
    NOT_IMAGE = "not_image"
    CORRUPT = "corrupt"
    TOO_COSTLY = "too_costly"

    # The URL must not be requested, or its owner does not allow it.
    INVALID_URL = "invalid_url"
    FORBIDDEN_ADDRESS = "forbidden_address"
    ROBOTS_DISALLOWED = "robots_disallowed"
    NOAI = "noai"
    OPTED_OUT = "opted_out"

    # The picture or its caption is in a part of its set that is measured (wukong.crawl.set_pairs).
    MEASURED = "measured"

    # The caption is longer than any that is kept.
    CAPTION_TOO_LONG = "caption_too_long"

    # The server or the network failed. A later run may retry.
    ROBOTS_UNAVAILABLE = "robots_unavailable"
    HOST_TOO_SLOW = "host_too_slow"
    HTTP_ERROR = "http_error"
    REDIRECT_ERROR = "redirect_error"
    TIMEOUT = "timeout"
    DNS_ERROR = "dns_error"
    TLS_ERROR = "tls_error"
    CONNECTION_ERROR = "connection_error"
    INCOMPLETE = "incomplete"

    # A file in the user's own list does not exist.
    MISSING_FILE = "missing_file"
    # Wukong's own code failed with an unexpected exception. The log names the URL and the exception.
    INTERNAL_ERROR = "internal_error"

    @property
    def may_be_retried(self) -> bool:
        """Whether a later run may have another result, because the server, the network or Wukong's own code failed."""
        return self in _RETRIED_LATER


_TRANSIENT = frozenset(
    {"robots_unavailable", "host_too_slow", "timeout", "dns_error", "connection_error", "incomplete"}
)
_TRANSIENT_CODES = frozenset({408, 425, 429, *range(500, 600)})


def is_transient(status: str, http_status: int | None) -> bool:
    """Return whether a URL failed for a temporary reason, as in an outage.

    Temporary reasons are: a host name that does not resolve, a server that is busy or does not answer. Missing pages,
    expired certificates and redirect loops are normal on the web and not temporary.
    """
    return status in _TRANSIENT or (status == "http_error" and http_status in _TRANSIENT_CODES)


_RETRIED_LATER = frozenset(
    {
        Status.ROBOTS_UNAVAILABLE,
        Status.HOST_TOO_SLOW,
        Status.HTTP_ERROR,
        Status.REDIRECT_ERROR,
        Status.TIMEOUT,
        Status.DNS_ERROR,
        Status.TLS_ERROR,
        Status.CONNECTION_ERROR,
        Status.INCOMPLETE,
        Status.MISSING_FILE,
        Status.INTERNAL_ERROR,
    }
)


class FetchError(Exception):
    """A URL has no usable answer.

    The message is stored with the URL, so it must be the same in every run: no ports, no times, no local addresses.

    Attributes:
        status: the reason.
        http_status: the server's HTTP code, or None.
        retry_after: seconds that the server asks to wait, or None.
    """

    def __init__(
        self, status: Status, message: str, *, http_status: int | None = None, retry_after: float | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.http_status = http_status
        self.retry_after = retry_after
