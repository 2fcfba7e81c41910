"""The opt-out list: domains, URLs and images whose owners asked to be left out."""

import io
import re
from dataclasses import dataclass
from urllib.parse import urlsplit

import polars as pl

from wukong.crawl.status import FetchError
from wukong.crawl.url import normalise
from wukong.errors import ConfigError
from wukong.store import storage, text_files

LISTED = "the opt-out list names this URL or its domain"
DIGEST_LISTED = "the opt-out list names this picture's digest"
"""Why a URL is left out, as it is stored."""

_DIGEST = re.compile(r"[0-9a-f]{64}", re.IGNORECASE)


@dataclass(frozen=True)
class OptOut:
    """An opt-out list.

    Attributes:
        domains: host names in IDNA form. Each covers the host itself and all hosts below it.
        urls: normalised URLs, as the crawler requests them. Each covers the same address under http and under https.
        digests: SHA-256 of an image's bytes as downloaded, in hex, lower case.
    """

    domains: frozenset[str] = frozenset()
    urls: frozenset[str] = frozenset()
    digests: frozenset[str] = frozenset()

    @classmethod
    def load(cls, uri: str) -> "OptOut":
        """Read a list from a text file; see ``parse``."""
        return cls.parse(storage.read_bytes(uri), uri)

    @classmethod
    def parse(cls, data: bytes, uri: str) -> "OptOut":
        """Read a list: one entry a line, ``#`` starts a comment.

        An entry with ``://`` is a URL, one of 64 hex digits is a digest, every other one is a domain.

        Args:
            data: the bytes of the text file.
            uri: the file's URI, for messages.

        Raises:
            ConfigError: a line is neither a domain, a URL nor a digest.
        """
        domains, urls, digests = set(), set(), set()
        text = text_files.utf8(io.BytesIO(data), uri).read().decode("utf-8", "replace")
        for number, line in enumerate(text.splitlines(), start=1):
            entry = line.strip() if "://" in line else line.partition("#")[0].strip()
            if not entry or entry.startswith("#"):
                continue
            if _DIGEST.fullmatch(entry):
                digests.add(entry.lower())
                continue
            try:
                address = normalise(entry if "://" in entry else f"http://{entry.rstrip('.')}/")
            except FetchError as error:
                raise ConfigError(
                    f"{uri} line {number}: {entry!r} is neither a domain, a URL nor a SHA-256 digest in hex ({error})"
                ) from error
            if "://" in entry:
                urls.add(address)
            else:
                domains.add(urlsplit(address).hostname or "")
        return cls(frozenset(domains), frozenset(urls), frozenset(digests))

    def covers(self, url: str) -> bool:
        """Tell whether the list has a normalised URL, its host, or a domain that its host belongs to."""
        scheme, _, rest = url.partition("://")
        if url in self.urls or f"{'http' if scheme == 'https' else 'https'}://{rest}" in self.urls:
            return True
        if not self.domains:
            return False
        labels = (urlsplit(url).hostname or "").split(".")
        return any(".".join(labels[start:]) in self.domains for start in range(len(labels)))

    def covers_any_spelling(self, url: str) -> bool:
        """Tell whether the list covers a URL as it was found; never what is no URL of http or https."""
        return self.covers(_normalised(url))

    def covers_pairs(self, pairs: pl.DataFrame) -> pl.Series:
        """Tell which pairs the list covers, by URL, by domain, or by the digest of the image.

        Args:
            pairs: rows with ``url``, and ``sha256`` if digests of images are to be compared too.

        Returns:
            One Boolean a row.
        """
        covered = pl.Series([False] * len(pairs), dtype=pl.Boolean)
        if self.digests and "sha256" in pairs.columns:
            covered |= pairs["sha256"].is_in(list(self.digests)).fill_null(value=False)
        if not (self.domains or self.urls):
            return covered
        # Normalising is much slower than comparing. So it is done once for each host, and then only for the URLs of
        # hosts that the list names.
        url = pairs["url"].str.replace_all(r"[\t\r\n]", "")
        host = url.str.extract(r"^[^/?#]*//(?:[^/?#]*@)?(\[[^\]]*\]|[^/?#:\[\]]*)").fill_null("")
        normalised = {name: urlsplit(_normalised(f"http://{name}/")).hostname for name in host.unique()}
        of_urls = {urlsplit(address).hostname for address in self.urls}
        suspect = [
            name
            for name, known in normalised.items()
            if not known or known in of_urls or self.covers(f"http://{known}/")
        ]
        hits = [row for row in host.is_in(suspect).arg_true() if self.covers_any_spelling(url[row])]
        return covered.scatter(hits, values=True) if hits else covered


def _normalised(url: str) -> str:
    """Returns the URL as the crawler requests it, or an empty string if it is not a URL."""
    try:
        return normalise(url)
    except FetchError:
        return ""
