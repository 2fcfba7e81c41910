"""What can become of one URL: the closed list that the ``status`` column takes its values from."""

from enum import StrEnum


class Status(StrEnum):
    """The outcome for one URL; everything but ``SUCCESS`` is a reason why there is no picture."""

    SUCCESS = "success"

    # The picture is not wanted: trying again gives the same answer.
    TOO_SMALL = "too_small"
    BAD_RATIO = "bad_ratio"
    TOO_MANY_PIXELS = "too_many_pixels"
    TOO_LARGE = "too_large"
    NOT_IMAGE = "not_image"
    CORRUPT = "corrupt"
    TOO_COSTLY = "too_costly"

    # The address may not be asked, or its owner does not want it.
    INVALID_URL = "invalid_url"
    FORBIDDEN_ADDRESS = "forbidden_address"
    ROBOTS_DISALLOWED = "robots_disallowed"
    NOAI = "noai"
    OPTED_OUT = "opted_out"

    # The server or the network failed: these are what a later run may try again.
    ROBOTS_UNAVAILABLE = "robots_unavailable"
    HOST_TOO_SLOW = "host_too_slow"
    HTTP_ERROR = "http_error"
    REDIRECT_ERROR = "redirect_error"
    TIMEOUT = "timeout"
    DNS_ERROR = "dns_error"
    TLS_ERROR = "tls_error"
    CONNECTION_ERROR = "connection_error"
    INCOMPLETE = "incomplete"

    # A picture of one's own is not where the list says.
    MISSING_FILE = "missing_file"
    # Our own code failed, in a way that nobody foresaw: the log names the URL and the exception.
    INTERNAL_ERROR = "internal_error"

    @property
    def may_be_retried(self) -> bool:
        """Whether a later run could end otherwise, because the server, the network or our own code failed."""
        return self in _RETRIED_LATER


_PASSING = frozenset({"robots_unavailable", "host_too_slow", "timeout", "dns_error", "connection_error", "incomplete"})
_PASSING_CODES = frozenset({408, 425, 429, *range(500, 600)})


def is_transient(status: str, http_status: int | None) -> bool:
    """Tell whether a URL failed for a reason that passes with time.

    A page that is gone, a certificate that has expired or a redirect in a circle is how the web is; a name that does
    not resolve, a server that is busy or does not answer is what an outage looks like.
    """
    return status in _PASSING or (status == "http_error" and http_status in _PASSING_CODES)


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
    """A URL gave no usable answer; ``status`` says why, ``http_status`` is the server's code where there was one.

    The message is written beside the URL, so it must be the same in every run: no ports, no times, no local addresses.
    """

    def __init__(
        self, status: Status, message: str, *, http_status: int | None = None, retry_after: float | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.http_status = http_status
        self.retry_after = retry_after
