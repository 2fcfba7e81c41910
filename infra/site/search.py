"""Find and rank the site's images for a word."""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import accumulate

from infra.corpus.sources import spread
from infra.site.noise import Listing


class Index:
    """Searches titles and keywords for a word.

    Titles equal to the word come first, then titles that contain it, then keywords. Within these groups the order is
    constant but arbitrary.
    """

    def __init__(self, listings: Sequence[Listing]) -> None:
        self._listings = sorted(listings, key=lambda listing: (spread(listing.path, "rank", 2**32), listing.path))
        self._titles = [listing.title.lower() for listing in self._listings]
        self._keywords = ["\n".join(("", *listing.keywords, "")).lower() for listing in self._listings]
        # All titles and keywords in one text, separated by a character that is in no word: a search is then one scan.
        documents = [f"{title}{words}\0" for title, words in zip(self._titles, self._keywords, strict=True)]
        self._text = "".join(documents)
        self._ends = list(accumulate(map(len, documents)))
        self.search = lru_cache(maxsize=256)(self._search)

    def _search(self, word: str) -> tuple[Listing, ...]:
        """Return all listings that match a word, best first."""
        word = word.strip().lower()
        if not word:
            return ()
        ranks: tuple[list[Listing], ...] = ([], [], [], [])
        for number in self._containing(word):
            if word in self._titles[number]:
                ranks[0 if word == self._titles[number] else 1].append(self._listings[number])
            else:
                ranks[2 if f"\n{word}\n" in self._keywords[number] else 3].append(self._listings[number])
        return tuple(listing for rank in ranks for listing in rank)

    def _containing(self, word: str) -> Iterator[int]:
        position = self._text.find(word)
        while position >= 0:
            number = bisect_right(self._ends, position)
            yield number
            position = self._text.find(word, self._ends[number])
