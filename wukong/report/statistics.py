"""Statistics of a set of pairs: the numbers of table 2 of the paper, histograms, and the words of its figure 3.

They are counted for each batch and added up, so a set of any size needs the memory of one batch.
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from wukong.curate.text.characters import HAN
from wukong.curate.text.word_pieces import token_ids
from wukong.errors import DataError
from wukong.store import storage
from wukong.store.manifest import Manifest

Counts = npt.NDArray[np.int64]

PATH = "statistics.json"
"""Where a validate stage stores the statistics of each split."""

PAPER = {"pairs": 101_483_885, "unique_tokens": 20_442, "mean": 22.0, "sd": 7.0, "median": 24.0}
"""Table 2: the released Wukong set."""

HISTOGRAMS = ("tokens", "used", "sides", "ratios", "lengths")
"""The counts of ``Statistics`` that are histograms."""

DISTRIBUTIONS = ("tokens", "sides", "ratios", "lengths")
"""The histograms that do not depend on which words occur; ``wukong.validate.drift`` compares them."""

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
    """Counts over a set of pairs. The last bin of each histogram also counts all larger values.

    Attributes:
        pairs: number of pairs.
        tokens: number of captions with 0, 1, ... tokens.
        used: number of occurrences of each entry of the vocabulary.
        sides: number of images by their shorter side, in bins of 100 pixels.
        ratios: number of images by long side / short side, in bins of 0.1 that begin at 1.
        lengths: number of captions by their length as the filter counts it.
        words: number of occurrences of each word of Chinese characters; jieba cuts captions into words.
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
        """Number of entries of the vocabulary that occur."""
        return int((self.used > 0).sum())

    @property
    def token_mean(self) -> float:
        """Mean number of tokens a caption."""
        return float(np.arange(_MAX_TOKENS) @ self.tokens / max(1, self.pairs))

    @property
    def token_sd(self) -> float:
        """Standard deviation of the number of tokens a caption, of the whole set."""
        squares = float(np.arange(_MAX_TOKENS) ** 2 @ self.tokens / max(1, self.pairs))
        return math.sqrt(max(0.0, squares - self.token_mean**2))

    @property
    def token_median(self) -> float:
        """Median number of tokens a caption; of two middle values, the lower one."""
        return float(np.searchsorted(np.cumsum(self.tokens), max(1, self.pairs) / 2))

    def as_json(self) -> dict[str, Any]:
        """Returns the counts as a JSON value, without the empty bins of the histograms; words in alphabetical order."""
        bins = {name: {str(n): int(counts[n]) for n in np.flatnonzero(counts)} for name, counts in self._histograms()}
        return {"pairs": self.pairs, **bins, "words": dict(sorted(self.words.items()))}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Statistics":
        """Read what ``as_json`` returned.

        Raises:
            DataError: the value is something else.
        """
        statistics = cls()
        try:
            for name, counts in statistics._histograms():
                for bin_number, count in value[name].items():
                    counts[int(bin_number)] = count
            statistics.pairs, statistics.words = int(value["pairs"]), Counter(dict(value["words"]))
        except (KeyError, ValueError, TypeError, AttributeError, IndexError) as error:
            raise DataError(
                f"these are not the statistics of a set of pairs ({type(error).__name__}: {error})"
            ) from None
        return statistics

    def add(self, others: "Statistics") -> None:
        """Add the counts of other pairs to these; all words are kept."""
        self.pairs += others.pairs
        self.words.update(others.words)
        for name, counts in self._histograms():
            np.add(counts, getattr(others, name), out=counts)

    def without(self, others: "Statistics") -> "Statistics":
        """Returns the counts of this set without some of its pairs.

        Args:
            others: counts of the pairs that are left out.
        """
        theirs = dict(others._histograms())
        bins = {name: counts - theirs[name] for name, counts in self._histograms()}
        return Statistics(self.pairs - others.pairs, words=self.words - others.words, **bins)

    def _histograms(self) -> list[tuple[str, Counts]]:
        return [(name, getattr(self, name)) for name in HISTOGRAMS]


def measure(pairs: pl.DataFrame) -> Statistics:
    """Count over one batch of pairs (rows of ``wukong.curate.pairs.PAIRS``)."""
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
    """Returns the counts of each split that has rows in a batch."""
    return {str(name): measure(rows) for (name,), rows in pairs.group_by("split", maintain_order=True)}


def read(validated: Manifest) -> dict[str, Statistics]:
    """Read the statistics of each split that a validate stage stored.

    Raises:
        DataError: the file holds something else.
        StorageError: it cannot be read, or was altered.
    """
    stored = storage.read_json(*validated.file(PATH))
    return {str(name): Statistics.from_json(entry) for name, entry in stored.items()}


def merge(batches: Iterable[Statistics]) -> Statistics:
    """Add up the counts of batches. Only the most frequent words are kept."""
    whole = Statistics()
    for batch in batches:
        whole.add(batch)
    whole.words = Counter(dict(whole.words.most_common(_WORDS_KEPT)))
    return whole


def _histogram(values: npt.NDArray[np.integer], bins: int) -> Counts:
    return np.bincount(np.clip(values, 0, bins - 1), minlength=bins)


def _words(captions: pl.Series) -> Counter[str]:
    import rjieba

    counts = Counter(word for caption in captions for word in rjieba.cut(caption, False) if _WORD.fullmatch(word))
    return Counter(dict(counts.most_common(_WORDS_KEPT)))
