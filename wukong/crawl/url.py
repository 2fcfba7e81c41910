"""Normalise URLs: for requests, and to compare them in opt-out lists and releases."""

import re
from urllib.parse import quote, urlsplit, urlunsplit

import idna

from wukong.crawl.status import FetchError, Status

_MAX_URL = 8192
_MAX_HOST = 253
_URL_SAFE = "!#$%&'()*+,/:;=?@[]~-._"  # like browsers: reserved characters and % stay, others are percent-encoded


def normalise(url: str) -> str:
    """Return the URL in the form for a request: ASCII, percent-encoded, host in IDNA, no fragment, no credentials.

    Raises:
        FetchError: (``invalid_url``) it is not an absolute http or https URL, or it is too long.
    """
    url = url.strip()
    if len(url) > _MAX_URL:
        raise FetchError(Status.INVALID_URL, f"the URL is longer than {_MAX_URL} characters")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise FetchError(Status.INVALID_URL, f"not a URL: {error}") from error
    if parts.scheme not in {"http", "https"}:
        raise FetchError(Status.INVALID_URL, "only http and https are fetched")
    if not host:
        raise FetchError(Status.INVALID_URL, "the URL has no host")
    if not host.isascii():
        try:
            host = idna.encode(host, uts46=True).decode("ascii")
        except (UnicodeError, ValueError, IndexError) as error:  # IDNAError is a UnicodeError
            raise FetchError(Status.INVALID_URL, f"not a host name: {error}") from error
    if len(host) > _MAX_HOST or re.search(r"[\x00-\x20\x7f<>\"\\^`{|}%]", host):
        raise FetchError(Status.INVALID_URL, "not a host name")
    netloc = f"[{host}]" if ":" in host else host
    if port is not None:
        netloc += f":{port}"
    path = quote(parts.path or "/", safe=_URL_SAFE, errors="replace")
    query = quote(parts.query, safe=_URL_SAFE, errors="replace")
    result = urlunsplit((parts.scheme, netloc, path, query, ""))
    if len(result) > _MAX_URL:
        raise FetchError(Status.INVALID_URL, f"the URL is longer than {_MAX_URL} characters")
    return result
