"""Sensitive words (section 3.2): Aho-Corasick over lists by category.

A list is a text file, one word a line, named after its category; ``#`` begins a comment. The lists in
``sensitive_words/`` are short and about content that no image-text set wants; what else is sensitive where a set is
released, the operator knows: ``filter.sensitive_words`` names a folder of lists that replaces them.

Matching is on normalised captions. A word is also found when something is inserted between its characters
(``色 情``, ``赌*博``), but not where it only arises between its neighbours: ``红色情侣`` and ``路口交通`` hold no
sensitive word. A match of two characters must lie inside a word as jieba cuts the caption, or begin and end where words
do; longer words do not arise by chance.
"""

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import ahocorasick_rs
import polars as pl

from wukong import storage
from wukong.curate.normalize import normalized
from wukong.errors import ConfigError

DEFAULT_LISTS = Path(__file__).parent / "sensitive_words"
_HAN = re.compile(r"[\u3400-\u9fff\U00020000-\U000323af]")


@dataclass(frozen=True)
class Match:
    """A word found in a caption: the word as listed, and its category."""

    word: str
    category: str


class SensitiveWords:
    """An automaton over all words of all categories.

    Args:
        lists: category to its words.

    Raises:
        ConfigError: no category holds a word.
    """

    def __init__(self, lists: Mapping[str, Iterable[str]]) -> None:
        self._category: dict[str, str] = {}
        for category in sorted(lists):
            for word in lists[category]:
                key = _compact(_normalize([word])[0])
                if key:
                    self._category.setdefault(key, category)
        if not self._category:
            raise ConfigError(
                "the lists of sensitive words are empty: put one word a line into a file for each category"
            )
        self._words = list(self._category)
        self._automaton = ahocorasick_rs.AhoCorasick(self._words)

    def __len__(self) -> int:
        return len(self._words)

    def categories(self, captions: pl.Series) -> pl.Series:
        """The category of the first sensitive word in each caption, null where there is none."""
        frame = pl.select(text=normalized(pl.lit(captions))).with_columns(
            compact=pl.col("text").str.replace_all(r"[^\p{L}\p{N}]+", "")
        )
        search = self._automaton.find_matches_as_indexes
        suspects = [place for place, compact in enumerate(frame["compact"]) if search(compact)]
        found: list[str | None] = [None] * len(captions)
        for place in suspects:
            matches = self._matches(frame["text"][place])
            found[place] = matches[0].category if matches else None
        return pl.Series(captions.name, found, dtype=pl.String)

    def find(self, caption: str) -> list[Match]:
        """Every sensitive word in a caption, overlapping ones included, in order of their end."""
        return self._matches(_normalize([caption.encode("utf-8", "replace").decode()])[0])

    def _matches(self, text: str) -> list[Match]:
        places = [place for place, character in enumerate(text) if _is_word(character)]
        compact = "".join(text[place] for place in places)
        hits = self._automaton.find_matches_as_indexes(compact, overlapping=True)
        if not hits:
            return []
        cuts = _cuts(text)
        matches = []
        for index, start, end in hits:
            word = self._words[index]
            if _stands(text, places[start], places[end - 1] + 1, word, cuts):
                matches.append(Match(word, self._category[word]))
        return matches


def load(uri: str | None = None) -> SensitiveWords:
    """Read the lists of a folder, ``CATEGORY.txt`` each; without a URI, those that come with Wukong.

    Raises:
        ConfigError: the folder holds no list, or a list is not UTF-8.
    """
    folder = uri or storage.from_path(DEFAULT_LISTS)
    files = storage.list_files(folder, ".txt")
    if not files:
        raise ConfigError(f"filter.sensitive_words: no list (CATEGORY.txt, one word a line) in {folder}")
    lists = {}
    for file in files:
        try:
            text = storage.read_bytes(file).decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise ConfigError(f"{file} is not UTF-8 ({error}): save the list of sensitive words as UTF-8") from error
        lists[Path(file).stem] = [line.split("#", 1)[0].strip() for line in text.splitlines()]
    return SensitiveWords(lists)


def _normalize(texts: Sequence[str]) -> list[str]:
    return pl.DataFrame({"c": texts}, schema={"c": pl.String}).select(normalized(pl.col("c")))["c"].to_list()


def _compact(text: str) -> str:
    return "".join(filter(_is_word, text))


def _is_word(character: str) -> bool:
    return character.isalnum()


def _cuts(text: str) -> set[int]:
    """Offsets at which jieba's words begin or end."""
    import jieba

    jieba.setLogLevel(logging.WARNING)
    cuts = {0}
    for word in jieba.cut(text, HMM=False):
        cuts.add(max(cuts) + len(word))
    return cuts


def _stands(text: str, start: int, end: int, word: str, cuts: set[int]) -> bool:
    """Whether ``text[start:end]`` is the word itself, rather than parts of its neighbours."""
    if len(word) > 2 and _HAN.search(word):
        return True
    if end - start == len(word):
        inside = not any(start < cut < end for cut in cuts)
        return (start in cuts and end in cuts) or (inside and bool(_HAN.search(word)))
    # Something is inserted: then every character must stand alone.
    touching = any(_is_word(text[place]) and _is_word(text[place + 1]) for place in range(start, end - 1))
    return not (touching or _touches(text, start - 1) or _touches(text, end))


def _touches(text: str, place: int) -> bool:
    return 0 <= place < len(text) and _is_word(text[place])
