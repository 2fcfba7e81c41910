"""Sensitive words (section 3.2): find words of several lists in captions by Aho-Corasick.

A list is a text file, one word a line, named after its category; ``#`` begins a comment. The lists in
``lists/`` are short and about content that no image-text set wants. The operator knows what else is sensitive where a
set is released: ``filter.sensitive_words`` names a folder of lists that replace these, or with ``filter.default_words``
are added to them.

Words are searched in the normal form of a caption, in Simplified characters. A word is also found when something is
inserted between its characters (``色 情``, ``赌*博``). It is not found where its characters only meet by chance at the
border of two other words: ``红色情侣`` and ``路口交通`` hold no sensitive word. So a match of two characters must lie
inside one word as jieba cuts the caption, or begin and end where words do. Longer words do not arise by chance.

Words that are written otherwise on purpose, in pinyin or with characters that look alike, are found where
``filter.word_disguises`` asks for it (``disguised.py``).
"""

from __future__ import annotations

import hashlib
import io
import itertools
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import ahocorasick_rs
import polars as pl

from wukong.curate.text.characters import has_han
from wukong.curate.text.normalize import normal_forms
from wukong.curate.text.simplified import simplify, traditional
from wukong.errors import ConfigError
from wukong.store import storage, text_files

if TYPE_CHECKING:
    from wukong.config.disguise import Disguise

DEFAULT_LISTS = Path(__file__).parent / "lists"
_SHORT = 2_000


@dataclass(frozen=True)
class Match:
    """A word found in a caption: the word as listed, and its category."""

    word: str
    category: str


class SensitiveWords:
    """An automaton over all words of all categories.

    Args:
        lists: category to its words.
        disguises: how else the words may be written.

    Raises:
        ConfigError: no category holds a word.
    """

    def __init__(self, lists: Mapping[str, Iterable[str]], disguises: Collection[Disguise] = ()) -> None:
        self._category: dict[str, str] = {}
        for category in sorted(lists):
            for folded in _folded(pl.Series(lists[category], dtype=pl.String)):
                if key := _compact(folded):
                    self._category.setdefault(key, category)
        if not self._category:
            raise ConfigError(
                "the lists of sensitive words are empty: put one word a line into a file for each category"
            )
        self._words = list(self._category)
        self._automaton = ahocorasick_rs.AhoCorasick(self._words)
        self._disguises = None
        if disguises:
            from wukong.curate.sensitive_words.disguised import Disguises

            self._disguises = Disguises(self._words, disguises)

    def __len__(self) -> int:
        return len(self._words)

    def categories_of_normal(self, captions: pl.Series) -> pl.Series:
        """The category of the first sensitive word in each caption in normal form, null where there is none."""
        texts = _simplified(captions)
        compact = texts.str.replace_all(r"[^\p{L}\p{N}]+", "")
        # Short lists fit into a regular expression, which is faster.
        short = sum(map(len, self._words)) < _SHORT
        found_any = compact.str.contains("|".join(self._words)) if short else compact.str.contains_any(self._words)
        if self._disguises:
            found_any |= self._disguises.suspects(texts, compact)
        suspects = found_any.arg_true()
        matches = [self._matches(text) for text in texts.gather(suspects)]
        categories = pl.Series([first[0].category if first else None for first in matches], dtype=pl.String)
        return (
            pl.Series(captions.name, [None], dtype=pl.String)
            .new_from_index(0, len(captions))
            .scatter(suspects, categories)
        )

    def find(self, caption: str) -> list[Match]:
        """Every sensitive word in a caption, overlapping ones included, in order of their end; then disguised ones."""
        return self.find_each([caption])[0]

    def find_each(self, captions: Iterable[str]) -> list[list[Match]]:
        """What ``find`` returns for each of some captions; much faster than one by one."""
        texts = pl.Series([caption.encode("utf-8", "replace").decode() for caption in captions], dtype=pl.String)
        return [self._matches(text) for text in _folded(texts)]

    def _matches(self, text: str) -> list[Match]:
        words = self._listed(text)
        if self._disguises:
            words += [each for each in self._disguises.find(text) if each not in words]
        return [Match(word, self._category[word]) for word in words]

    def _listed(self, text: str) -> list[str]:
        """The words that are in a text as listed."""
        places = [place for place, character in enumerate(text) if _is_word(character)]
        compact = "".join(text[place] for place in places)
        hits = self._automaton.find_matches_as_indexes(compact, overlapping=True)
        if not hits:
            return []
        # Cutting a caption into words takes longer than all else, and is not needed for longer Chinese words.
        cuts = set() if all(_is_unambiguous(self._words[index]) for index, _, _ in hits) else _cuts(text)
        found = ((self._words[index], places[start], places[end - 1] + 1) for index, start, end in hits)
        return [word for word, start, end in found if _is_the_word(text, start, end, word, cuts)]


def load(
    uri: str | None = None,
    *,
    with_default: bool = False,
    categories: Collection[str] | None = None,
    disguises: Collection[Disguise] = (),
) -> SensitiveWords:
    """Read the lists of a folder, ``CATEGORY.txt`` each; without a URI, those that come with Wukong.

    Args:
        uri: the URI of the folder.
        with_default: take the lists that come with Wukong too; those of one category become one.
        categories: the lists whose words are looked for; all of them if absent.
        disguises: how else the words may be written.

    Raises:
        ConfigError: the folder holds no list, a list is not UTF-8, or there is no list of a category.
    """
    default = storage.from_path(DEFAULT_LISTS)
    files = _files(uri or default)
    if with_default and uri:
        files += _files(default)
    known = {Path(file).stem for file in files}
    if unknown := set(categories or ()) - known:
        raise ConfigError(
            f"filter.word_categories: there is no list {min(unknown)!r}; there are {', '.join(sorted(known))}"
        )
    lists: dict[str, list[str]] = {}
    for file in files:
        if categories is not None and Path(file).stem not in categories:
            continue
        try:
            text = text_files.utf8(io.BytesIO(storage.read_bytes(file)), file).read().decode()
        except UnicodeDecodeError as error:
            raise ConfigError(f"{file} is not UTF-8 ({error}): save the list of sensitive words as UTF-8") from error
        words = lists.setdefault(Path(file).stem, [])
        words += [line.split("#", 1)[0].strip() for line in text.splitlines()]
    return SensitiveWords(lists, disguises)


def digest(uri: str) -> str:
    """SHA-256 of the lists in a folder, their names included.

    Raises:
        ConfigError: the folder holds no list.
    """
    found = hashlib.sha256()
    for file in _files(uri):
        content = hashlib.sha256(storage.read_bytes(file)).hexdigest()
        found.update(f"{Path(file).name} {content}\n".encode())
    return found.hexdigest()


def _files(folder: str) -> list[str]:
    files = storage.list_files(folder, ".txt")
    if not files:
        raise ConfigError(f"filter.sensitive_words: no list (CATEGORY.txt, one word a line) in {folder}")
    return files


def _folded(captions: pl.Series) -> pl.Series:
    """Captions in normal form and Simplified characters, in which words are searched."""
    return _simplified(normal_forms(captions))


def _simplified(normal: pl.Series) -> pl.Series:
    places = traditional(normal)
    return normal.clone().scatter(places, [simplify(text) for text in normal.gather(places)])


def _compact(text: str) -> str:
    return "".join(filter(_is_word, text))


def _is_word(character: str) -> bool:
    return character.isalnum()


def _cuts(text: str) -> set[int]:
    """Offsets at which jieba's words begin or end."""
    import rjieba

    return set(itertools.accumulate((len(word) for word in rjieba.cut(text, False)), initial=0))


def _is_the_word(text: str, start: int, end: int, word: str, cuts: set[int]) -> bool:
    """Whether ``text[start:end]`` is the word itself and not parts of its neighbours."""
    if _is_unambiguous(word):
        return True
    if end - start == len(word):
        inside = not any(start < cut < end for cut in cuts)
        return (start in cuts and end in cuts) or (inside and has_han(word))
    # Something is inserted between the characters: then each of them must stand alone.
    touching = any(_is_word(text[index]) and _is_word(text[index + 1]) for index in range(start, end - 1))
    return not (touching or _touches(text, start - 1) or _touches(text, end))


def _is_unambiguous(word: str) -> bool:
    return len(word) > 2 and has_han(word)


def _touches(text: str, place: int) -> bool:
    return 0 <= place < len(text) and _is_word(text[place])
