"""Find and rank the site's pictures for a word."""

from collections.abc import Sequence
from functools import lru_cache

from infra.corpus.sources import spread
from infra.site.noise import Listing


class Index:
    """Searches titles and keywords for a word.

    Whole titles come first, then titles that hold the word, then keywords; within these the order is fixed but says
    nothing.
    """

    def __init__(self, listings: Sequence[Listing]) -> None:
        ordered = sorted(listings, key=lambda listing: (spread(listing.path, "rank", 2**32), listing.path))
        self._documents = [
            (listing, listing.title.lower(), "\n".join(("", *listing.keywords, "")).lower()) for listing in ordered
        ]
        self.search = lru_cache(maxsize=256)(self._search)

    def _search(self, word: str) -> tuple[Listing, ...]:
        """All listings found by a word, best first."""
        word = word.strip().lower()
        if not word:
            return ()
        ranks: tuple[list[Listing], ...] = ([], [], [], [])
        for listing, title, keywords in self._documents:
            if word in title:
                ranks[0 if word == title else 1].append(listing)
            elif word in keywords:
                ranks[2 if f"\n{word}\n" in keywords else 3].append(listing)
        return tuple(listing for rank in ranks for listing in rank)
