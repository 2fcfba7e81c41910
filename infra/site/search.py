"""Find and rank the site's pictures for a word."""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import accumulate

from infra.corpus.sources import spread
from infra.site.noise import Listing


class Index:
    """Searches titles and keywords for a word.

    Whole titles come first, then titles that hold the word, then keywords; within these the order is fixed but says
    nothing.
    """

    def __init__(self, listings: Sequence[Listing]) -> None:
        self._listings = sorted(listings, key=lambda listing: (spread(listing.path, "rank", 2**32), listing.path))
        self._titles = [listing.title.lower() for listing in self._listings]
        self._keywords = ["\n".join(("", *listing.keywords, "")).lower() for listing in self._listings]
        # One text, so that a search is one scan: title, keywords, and a character no word holds.
        documents = [f"{title}{words}\0" for title, words in zip(self._titles, self._keywords, strict=True)]
        self._text = "".join(documents)
        self._ends = list(accumulate(map(len, documents)))
        self.search = lru_cache(maxsize=256)(self._search)

    def _search(self, word: str) -> tuple[Listing, ...]:
        """All listings found by a word, best first."""
        word = word.strip().lower()
        if not word:
            return ()
        ranks: tuple[list[Listing], ...] = ([], [], [], [])
        for number in self._holding(word):
            if word in self._titles[number]:
                ranks[0 if word == self._titles[number] else 1].append(self._listings[number])
            else:
                ranks[2 if f"\n{word}\n" in self._keywords[number] else 3].append(self._listings[number])
        return tuple(listing for rank in ranks for listing in rank)

    def _holding(self, word: str) -> Iterator[int]:
        position = self._text.find(word)
        while position >= 0:
            number = bisect_right(self._ends, position)
            yield number
            position = self._text.find(word, self._ends[number])
