"""What a set looks like in numbers: table 2 of the paper, and the distributions its figure 3 and a card show.

Everything is counted per batch and added up, so a set of any size takes the memory of one batch.
"""

import logging
import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import polars as pl

from wukong.curate.length import token_ids

Counts = npt.NDArray[np.int64]

PAPER = {"pairs": 101_483_885, "unique_tokens": 20_442, "mean": 22.0, "sd": 7.0, "median": 24.0}
"""Table 2: the released Wukong set."""

_VOCABULARY = 21_128
_MAX_TOKENS = 512
_SIDE_STEP, _SIDES = 100, 21
_RATIO_STEP, _RATIOS = 0.1, 21
_LENGTHS = 33
_WORDS_KEPT = 20_000
_WORD = re.compile(r"[\u4e00-\u9fff]+")


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


def merge(batches: Sequence[Statistics]) -> Statistics:
    """Add up the counts of batches; of the words, the most frequent are kept."""
    words: Counter[str] = Counter()
    for batch in batches:
        words.update(batch.words)
    return Statistics(
        pairs=sum(batch.pairs for batch in batches),
        words=Counter(dict(words.most_common(_WORDS_KEPT))),
        **{
            name: np.sum([getattr(batch, name) for batch in batches], axis=0)
            for name in ("tokens", "used", "sides", "ratios", "lengths")
        },
    )


def _histogram(values: npt.NDArray[np.integer], bins: int) -> Counts:
    return np.bincount(np.clip(values, 0, bins - 1), minlength=bins)


def _words(captions: pl.Series) -> Counter[str]:
    import jieba

    jieba.setLogLevel(logging.WARNING)
    counts = Counter(word for caption in captions for word in jieba.cut(caption, HMM=False) if _WORD.fullmatch(word))
    return Counter(dict(counts.most_common(_WORDS_KEPT)))
