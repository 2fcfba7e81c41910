"""What a set looks like in numbers: table 2 of the paper, and the distributions its figure 3 and a card show.

Everything is counted per batch and added up, so a set of any size takes the memory of one batch.
"""

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from wukong import storage
from wukong.curate.text.characters import HAN
from wukong.curate.text.units import token_ids
from wukong.errors import DataError

Counts = npt.NDArray[np.int64]

PATH = "statistics.json"
"""Where a validate stage leaves the statistics of each split."""

PAPER = {"pairs": 101_483_885, "unique_tokens": 20_442, "mean": 22.0, "sd": 7.0, "median": 24.0}
"""Table 2: the released Wukong set."""

HISTOGRAMS = ("tokens", "used", "sides", "ratios", "lengths")
"""The counts of ``Statistics`` that are histograms."""

DISTRIBUTIONS = ("tokens", "sides", "ratios", "lengths")
"""Those of them that say what a set is like, whatever its words."""

_VOCABULARY = 21_128
_MAX_TOKENS = 512
_SIDE_STEP, _SIDES = 100, 21
_RATIO_STEP, _RATIOS = 0.1, 21
_LENGTHS = 33
_WORDS_KEPT = 20_000
_WORD = re.compile(f"[{HAN}]+")


def _zeros(size: int) -> Counts:
    return np.zeros(size, dtype=np.int64)


@dataclass
class Statistics:
    """Counts over a set of pairs; the last bin of each histogram holds what lies beyond.

    Attributes:
        pairs: rows.
        tokens: captions by their number of tokens.
        used: occurrences of each entry of the vocabulary.
        sides: pictures by shorter side, bins of 100 pixels.
        ratios: pictures by long side over short side, bins of 0.1 from 1.
        lengths: captions by the filter's length.
        words: occurrences of words of Chinese characters, as jieba cuts captions.
    """

    pairs: int = 0
    tokens: Counts = field(default_factory=lambda: _zeros(_MAX_TOKENS))
    used: Counts = field(default_factory=lambda: _zeros(_VOCABULARY))
    sides: Counts = field(default_factory=lambda: _zeros(_SIDES))
    ratios: Counts = field(default_factory=lambda: _zeros(_RATIOS))
    lengths: Counts = field(default_factory=lambda: _zeros(_LENGTHS))
    words: Counter[str] = field(default_factory=Counter)

    @property
    def unique_tokens(self) -> int:
        """Entries of the vocabulary that occur."""
        return int((self.used > 0).sum())

    @property
    def token_mean(self) -> float:
        """Mean tokens a caption."""
        return float(np.arange(_MAX_TOKENS) @ self.tokens / max(1, self.pairs))

    @property
    def token_sd(self) -> float:
        """Standard deviation of tokens a caption, over the whole set."""
        squares = float(np.arange(_MAX_TOKENS) ** 2 @ self.tokens / max(1, self.pairs))
        return math.sqrt(max(0.0, squares - self.token_mean**2))

    @property
    def token_median(self) -> float:
        """Median tokens a caption: the lower of the two middle ones where there are two."""
        return float(np.searchsorted(np.cumsum(self.tokens), max(1, self.pairs) / 2))

    def as_json(self) -> dict[str, Any]:
        """The counts as a JSON value; of the histograms only what is not 0."""
        bins = {name: {str(n): int(counts[n]) for n in np.flatnonzero(counts)} for name, counts in self._histograms()}
        return {"pairs": self.pairs, **bins, "words": dict(sorted(self.words.items()))}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Statistics":
        """Read back what ``as_json`` gave.

        Raises:
            DataError: it is something else.
        """
        found = cls()
        try:
            for name, counts in found._histograms():
                for place, count in value[name].items():
                    counts[int(place)] = count
            found.pairs, found.words = int(value["pairs"]), Counter(value["words"])
        except (KeyError, ValueError, TypeError, AttributeError, IndexError) as error:
            raise DataError(
                f"these are not the statistics of a set of pairs ({type(error).__name__}: {error})"
            ) from None
        return found

    def without(self, others: "Statistics") -> "Statistics":
        """The counts of this set once some of its pairs are left out.

        Args:
            others: counts of the pairs left out.
        """
        theirs = dict(others._histograms())
        bins = {name: counts - theirs[name] for name, counts in self._histograms()}
        return Statistics(self.pairs - others.pairs, words=self.words - others.words, **bins)

    def _histograms(self) -> list[tuple[str, Counts]]:
        return [(name, getattr(self, name)) for name in HISTOGRAMS]


def measure(pairs: pl.DataFrame) -> Statistics:
    """Count over one batch of pairs (rows of ``wukong.data.schema.PAIRS``)."""
    ids = token_ids(pairs["caption"])
    numbers = [len(entry) for entry in ids]
    flat = np.fromiter((number for entry in ids for number in entry), np.int64, sum(numbers))
    long = pairs.select(pl.max_horizontal("width", "height").fill_null(0)).to_series().to_numpy()
    short = pairs.select(pl.min_horizontal("width", "height").fill_null(0)).to_series().to_numpy()
    ratio = long / np.maximum(short, 1)
    return Statistics(
        pairs=len(pairs),
        tokens=_histogram(np.array(numbers, dtype=np.int64), _MAX_TOKENS),
        used=np.bincount(flat, minlength=_VOCABULARY),
        sides=_histogram(short // _SIDE_STEP, _SIDES),
        ratios=_histogram(((ratio - 1) / _RATIO_STEP + 1e-9).astype(np.int64), _RATIOS),
        lengths=_histogram(pairs["length"].to_numpy(), _LENGTHS),
        words=_words(pairs["caption"]),
    )


def by_split(pairs: pl.DataFrame) -> dict[str, Statistics]:
    """``measure`` for each split that has rows in a batch."""
    return {str(name): measure(rows) for (name,), rows in pairs.group_by("split", maintain_order=True)}


def read(uri: str) -> dict[str, Statistics]:
    """The statistics of each split, as a validate stage left them.

    Args:
        uri: of its ``statistics.json``.

    Raises:
        DataError: it is something else.
        StorageError: it cannot be read.
    """
    value = storage.read_json(uri)
    if not isinstance(value, dict):
        raise DataError(f"{uri}: these are not the statistics of the splits of a set")
    return {str(name): Statistics.from_json(entry) for name, entry in value.items()}


def drift(one: Statistics, other: Statistics) -> dict[str, float]:
    """How far two sets are apart, by each distribution of ``DISTRIBUTIONS``: Jensen-Shannon divergence in bits.

    0 for equal distributions, 1 for those that share no bin (J. Lin, Divergence measures based on the Shannon entropy,
    1991). The sizes of the sets do not count; an empty set is as far from any other as can be.
    """
    return {name: _divergence(getattr(one, name), getattr(other, name)) for name in DISTRIBUTIONS}


def _divergence(one: Counts, other: Counts) -> float:
    if not one.sum() or not other.sum():
        return float(one.sum() != other.sum())
    p, q = one / one.sum(), other / other.sum()
    middle = (p + q) / 2
    terms = [(share[share > 0] * np.log2(share[share > 0] / middle[share > 0])).sum() for share in (p, q)]
    return min(1.0, max(0.0, float(sum(terms)) / 2))


def merge(batches: Sequence[Statistics]) -> Statistics:
    """Add up the counts of batches; of the words, the most frequent are kept."""
    batches = [Statistics(), *batches]
    words: Counter[str] = Counter()
    for batch in batches:
        words.update(batch.words)
    return Statistics(
        pairs=sum(batch.pairs for batch in batches),
        words=Counter(dict(words.most_common(_WORDS_KEPT))),
        **{name: np.sum([getattr(batch, name) for batch in batches], axis=0) for name in HISTOGRAMS},
    )


def _histogram(values: npt.NDArray[np.integer], bins: int) -> Counts:
    return np.bincount(np.clip(values, 0, bins - 1), minlength=bins)


def _words(captions: pl.Series) -> Counter[str]:
    import rjieba

    counts = Counter(word for caption in captions for word in rjieba.cut(caption, False) if _WORD.fullmatch(word))
    return Counter(dict(counts.most_common(_WORDS_KEPT)))
