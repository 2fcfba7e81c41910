"""Normalise URLs (RFC 3986, section 6): for requests, for keys of pairs, and to compare them in opt-out lists.

A URL has many spellings. ``normalise`` gives one of them, so that two spellings of one URL are one pair, one request
and one entry of an opt-out list.
"""

import hashlib
import ipaddress
import re
import socket
from urllib.parse import quote, urlsplit, urlunsplit

from wukong.crawl.status import FetchError, Status

MAX_URL = 8192
"""A URL with more characters is not requested, and only its beginning is stored."""

ROW = "#row "
"""In the URL of a row that cannot be used it is followed by the number of the row and the reason."""

MEASURED = "#measured "
"""Likewise of a picture that is left out because it or its caption is measured; the reason follows."""

_MAX_HOST = 253
_LABEL = "[A-Za-z0-9_-]{1,63}+"  # other characters, and longer ones, no name server resolves
_HOST = re.compile(rf"{_LABEL}(?:\.{_LABEL})*+")
_SHOWN = 200
_URL_SAFE = "!#$%&'()*+,/:;=?@[]~-._"  # like browsers: reserved characters and % stay, others are percent-encoded
_DEFAULT_PORTS = {"http": 80, "https": 443}
_UNRESERVED = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")
_PERCENT = re.compile("%(?:([0-9A-Fa-f]{2}))?")
_OTHER = "%[89A-F][0-9A-F]"  # of a character that is not ASCII
_NORMAL = re.compile(  # possessive throughout: what does not match is found out in linear time
    r"https?://(?=[^/]{1,253}/)(?:[a-z][a-z0-9-]{0,62}+\.)+[a-z]{1,63}+"
    rf"(?:/(?:[A-Za-z0-9_~!$&'()*+,;=:@-]|{_OTHER})(?:[A-Za-z0-9._~!$&'()*+,;=:@-]++|{_OTHER})*+)++"
    rf"(?:\?(?:[A-Za-z0-9._~!$&'()*+,;=:@/?-]++|{_OTHER})++)?+"
)
"""Most URLs are in normal form already. Those with another host, a port or another % are looked at closely."""

_CAPTION_NUMBER = re.compile(r"#(?:caption-)?\d+\Z")


def normalise(url: str) -> str:
    """Return the URL in normal form: ASCII, percent-encoded, no fragment, no credentials.

    Scheme and host are in lower case, the host in IDNA and without a dot at its end, an IP address in its usual form. A
    default port is left out. Dot segments are resolved. Percent-encoded characters that need no encoding are decoded.
    The normal form of a normal form is itself.

    Raises:
        FetchError: (``invalid_url``) it is not an absolute http or https URL, or it is too long; or it is the URL of a
            row that cannot be used.
    """
    if len(url) <= MAX_URL and _NORMAL.fullmatch(url):
        return url
    if len(url) > MAX_URL + len(url) - len(url.strip()):
        raise FetchError(Status.INVALID_URL, f"the URL is longer than {MAX_URL} characters")
    url = url.strip()
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise FetchError(Status.INVALID_URL, f"not a URL: {error}") from error
    if parts.scheme not in _DEFAULT_PORTS:
        _, is_row, problem = url.partition(ROW)
        raise FetchError(Status.INVALID_URL, f"row {problem}" if is_row else "only http and https are fetched")
    if not host:
        raise FetchError(Status.INVALID_URL, "the URL has no host")
    host = _host(host)
    netloc = f"[{host}]" if ":" in host else host
    if port is not None and port != _DEFAULT_PORTS[parts.scheme]:
        netloc += f":{port}"
    path = _without_dots(encoded(parts.path)) or "/"
    result = urlunsplit((parts.scheme, netloc, path, encoded(parts.query), ""))
    if len(result) > MAX_URL:
        raise FetchError(Status.INVALID_URL, f"the URL is longer than {MAX_URL} characters")
    return result


def identity(url: str) -> str:
    """Return what two spellings of a URL share: its normal form, or the URL itself if it is none of http or https.

    The number of a caption is kept, ``#2`` in a list of URLs or ``#caption-2`` of ``wukong.crawl.own_files``: each
    caption makes a pair.
    """
    if not url[:5].lower().startswith("http") and not url[:1].isspace():
        return url
    number = _CAPTION_NUMBER.search(url[-30:])
    try:
        return normalise(url) + (number[0] if number else "")
    except FetchError:
        return url


def bounded(url: str) -> str:
    """Return the URL as it is stored: itself, or if it is too long a short text that names it and is no valid URL."""
    if len(url) <= MAX_URL:
        return url
    digest = hashlib.sha256(url.encode("utf-8", "surrogatepass")).hexdigest()
    why = f"of a URL longer than {MAX_URL} characters: {url[:_SHOWN]}"
    return f"sha256:{digest}{ROW}{why}"


def encoded(text: str) -> str:
    """Return a path or query in normal form: percent-encoded as far as needed, with capital hex digits."""
    if "%" in text:
        text = _PERCENT.sub(_decoded, text)
    return quote(text, safe=_URL_SAFE, errors="replace")


def _decoded(match: re.Match[str]) -> str:
    if match[1] is None:
        return "%25"  # a % that encodes nothing
    character = chr(int(match[1], 16))
    return character if character in _UNRESERVED else match[0].upper()


def _without_dots(path: str) -> str:
    """Resolve ``.`` and ``..`` (RFC 3986, section 5.2.4)."""
    if "/." not in path:
        return path
    kept: list[str] = []
    segments = path.split("/")[1:]
    for segment in segments:
        if segment == "..":
            del kept[-1:]
        elif segment != ".":
            kept.append(segment)
    if segments[-1] in (".", ".."):
        kept.append("")
    return "/" + "/".join(kept)


def _host(host: str) -> str:
    """Return a host name, or an IP address in any spelling, in normal form."""
    if not host.isascii():
        import idna  # not everything that compares URLs of one form has it

        try:
            host = idna.encode(host, uts46=True).decode("ascii")
        except (UnicodeError, ValueError, IndexError) as error:  # IDNAError is a UnicodeError
            raise FetchError(Status.INVALID_URL, f"not a host name: {error}") from error
    host = host.removesuffix(".")
    if ":" in host:
        try:
            return str(ipaddress.IPv6Address(host))
        except ValueError as error:
            raise FetchError(Status.INVALID_URL, "not a host name") from error
    if len(host) > _MAX_HOST or not _HOST.fullmatch(host):
        raise FetchError(Status.INVALID_URL, "not a host name")
    if re.fullmatch("[0-9a-fx.]+", host):  # libcurl and browsers read 127.1, 0x7f000001 and 017700000001 as 127.0.0.1
        try:
            return socket.inet_ntoa(socket.inet_aton(host))
        except OSError:
            return host
    return host


def key_of(url: str) -> str:
    """The key of a pair: 20 hex digits of the SHA-256 of its URL, so that it does not depend on order or part.

    All spellings of one URL have one key (``identity``).
    """
    return hashlib.sha256(identity(url).encode("utf-8", "surrogatepass")).hexdigest()[:20]
