"""The word lists, and the features that the tagger reads from them.

The words are those of the dictionary that jieba ships, with their part of speech, and of the lists in ``lists/``.
``docs/names-datasheet.md`` says where the lists come from. All words are in half-width and Simplified characters, and
so must be the texts.
"""

from collections.abc import Iterable
from functools import lru_cache
from hashlib import sha256
from math import log
from pathlib import Path
from typing import NamedTuple
from unicodedata import normalize

import ahocorasick_rs
import numpy as np
import numpy.typing as npt

from wukong.runtime.installed import installed_file

KINDS = ("person", "dictionary name", "brand", "place", "word", "rare word", "surname", "japanese surname")
"""Kinds of words. ``person`` is from ``people.txt``, ``dictionary name`` is what jieba's dictionary tags as a name."""

PLACES = ("first", "inner", "last")
"""Positions of a character in a word. The character of a word of one character is its first and its last."""

MARKS = tuple(f"{place} of a {kind}" for kind in KINDS for place in PLACES)
"""The binary features of a character, in the order of ``marks``."""

NAME_LISTS = ("people.txt", "brands.txt", "japanese.txt")
"""The lists with one word a line; ``surnames.txt`` has a line of single and a line of double surnames."""

_LISTS = Path(__file__).parent / "lists"
# Longest word of the dictionary that is used, in characters.
_LONGEST = 12
# Log probability in text below which a word of the dictionary is a rare word.
_RARE = -14.0

_ORDINARY, _NAMES = (
    sum(1 << KINDS.index(kind) for kind in kinds)
    for kinds in (("word", "rare word"), ("person", "dictionary name", "surname", "japanese surname"))
)

Positions = npt.NDArray[np.int64]
Bits = npt.NDArray[np.uint8]


class Occurrences(NamedTuple):
    """Words in a text: their kinds as bits, and their spans [start, end)."""

    kinds: Bits
    start: Positions
    end: Positions


class NameWords:
    """The words of all lists in one automaton.

    Args:
        kinds: the kinds of each word, as indices into ``KINDS``.
    """

    def __init__(self, kinds: dict[str, set[int]]) -> None:
        words = sorted(kinds)
        self._kinds = np.array([sum(1 << kind for kind in kinds[word]) for word in words], np.uint8)
        self._automaton = ahocorasick_rs.AhoCorasick(words)

    def find(self, text: str) -> Occurrences:
        """Every occurrence of a word in a text, overlapping ones too."""
        matches = self._automaton.find_matches_as_indexes(text, overlapping=True)
        which, start, end = np.array(matches, np.int64).reshape(-1, 3).T
        return Occurrences(self._kinds[which], start, end)

    def ordinary(self, text: str) -> list[tuple[int, int]]:
        """The spans of the words of two characters or more that are no name."""
        kinds, start, end = self.find(text)
        is_ordinary = (kinds & _ORDINARY > 0) & (kinds & _NAMES == 0) & (end - start > 1)
        return list(zip(start[is_ordinary].tolist(), end[is_ordinary].tolist(), strict=True))


def marks(found: Occurrences, length: int) -> npt.NDArray[np.float32]:
    """The features of each character of a text: 1 where a feature holds and 0 elsewhere, [length, MARKS].

    Args:
        found: the words in the text.
        length: the length of the text, in characters.
    """
    bits = np.zeros((length, len(PLACES)), np.uint8)
    kinds, start, end = found
    np.bitwise_or.at(bits[:, 0], start, kinds)
    np.bitwise_or.at(bits[:, 2], end - 1, kinds)
    while len(start):
        inner = start < end - 2
        kinds, start, end = kinds[inner], start[inner] + 1, end[inner]
        np.bitwise_or.at(bits[:, 1], start, kinds)
    every = np.unpackbits(bits[:, None], axis=1, count=len(KINDS), bitorder="little")
    return every.reshape(length, len(MARKS)).astype(np.float32)


def read_list(name: str) -> list[str]:
    """The lines of a file in ``lists/``, without comments and empty lines."""
    lines = (_LISTS / name).read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def surnames() -> tuple[list[str], list[str]]:
    """The Chinese surnames of one character, and those of two."""
    single, double = read_list("surnames.txt")
    return list(single), double.split()


def dictionary() -> list[tuple[str, int, str]]:
    """The entries of jieba's dictionary: word, frequency, part of speech."""
    lines = installed_file("jieba", "jieba/dict.txt").read_text(encoding="utf-8").splitlines()
    entries = (line.split(" ") for line in lines)
    return [(word, int(frequency), flag) for word, frequency, flag in entries]


def digest(name: str) -> str:
    """The line of ``lists/removed.txt`` for a name: SHA-256 of its NFC form in UTF-8, in hexadecimal."""
    return sha256(normalize("NFC", name).encode()).hexdigest()


def removed(names: Iterable[str]) -> list[str]:
    """Those of some names that a person asked to be taken out (``lists/removed.txt``).

    The file holds digests, so that it does not list the names that were to go.
    """
    digests = set(read_list("removed.txt"))
    return [name for name in names if digest(name) in digests]


@lru_cache(maxsize=1)
def load() -> NameWords:
    """The words of the installed jieba's dictionary and of the lists."""
    kinds: dict[str, set[int]] = {}

    def add(words: Iterable[str], kind: str) -> None:
        for word in words:
            kinds.setdefault(word, set()).add(KINDS.index(kind))

    add(read_list("people.txt"), "person")
    add(read_list("brands.txt"), "brand")
    single, double = surnames()
    add([*single, *double], "surname")
    add(read_list("japanese.txt"), "japanese surname")
    entries = dictionary()
    total = sum(frequency for _, frequency, _ in entries)
    for word, frequency, flag in entries:
        if not 1 < len(word) <= _LONGEST:
            continue
        if flag.startswith("nr"):
            add([word], "dictionary name")
        elif flag in ("ns", "nt"):
            add([word], "place")
        else:
            add([word], "word" if log(max(frequency, 1) / total) > _RARE else "rare word")
    return NameWords(kinds)
