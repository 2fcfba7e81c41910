"""Domains, URLs and pictures whose owners asked to be left out."""

import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from wukong import storage
from wukong.crawl.status import FetchError
from wukong.crawl.url import normalise
from wukong.errors import ConfigError

_DIGEST = re.compile(r"[0-9a-f]{64}", re.IGNORECASE)


@dataclass(frozen=True)
class OptOut:
    """An opt-out list.

    Attributes:
        domains: host names in IDNA; each stands for itself and everything below it.
        urls: in the form that goes on the wire.
        digests: SHA-256 of a picture's bytes as downloaded, in hex.
    """

    domains: frozenset[str] = frozenset()
    urls: frozenset[str] = frozenset()
    digests: frozenset[str] = frozenset()

    @classmethod
    def load(cls, uri: str) -> "OptOut":
        """Read a list: one entry a line, ``#`` starts a comment; what an entry is shows in its form.

        Raises:
            ConfigError: a line is neither a domain, a URL nor a digest.
        """
        domains, urls, digests = set(), set(), set()
        text = storage.read_bytes(uri).decode("utf-8-sig", errors="replace")
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
        """Tell whether a URL, as it goes on the wire, or its host or a parent domain of it is listed."""
        if url in self.urls:
            return True
        if not self.domains:
            return False
        labels = (urlsplit(url).hostname or "").rstrip(".").split(".")
        return any(".".join(labels[start:]) in self.domains for start in range(len(labels)))
