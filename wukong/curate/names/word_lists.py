"""What word lists know of a caption's characters: whose name, which brand, place or word each is part of.

The words are those of the dictionary that jieba ships, with their kinds, and of the lists beside this module. All are
Simplified and half-width, and so must the texts be.
"""

from collections.abc import Iterable
from functools import lru_cache
from math import log
from pathlib import Path
from typing import NamedTuple

import ahocorasick_rs
import numpy as np
import numpy.typing as npt

from wukong.installed import installed_file

KINDS = ("person", "dictionary name", "brand", "place", "word", "rare word", "surname", "japanese surname")
"""What a listed string may be: a well-known person, what the dictionary calls a name, ..."""

PLACES = ("first", "inner", "last")
"""Where in the string a character stands; the only one of a surname is its first and its last."""

MARKS = tuple(f"{place} of a {kind}" for kind in KINDS for place in PLACES)

_LISTS = Path(__file__).parent / "lists"
_LONGEST = 12
# Log probability in text above which a word of the dictionary is no rare one.
_RARE = -14.0

Places = npt.NDArray[np.int64]
Bits = npt.NDArray[np.uint8]


class Found(NamedTuple):
    """Listed strings in a text: their kinds as bits, the places of the first character and after the last."""

    kinds: Bits
    start: Places
    end: Places


class NameWords:
    """The lists, ready to be looked for.

    Args:
        kinds: by string, its kinds, as numbers in ``KINDS``.
    """

    def __init__(self, kinds: dict[str, set[int]]) -> None:
        strings = sorted(kinds)
        self._kinds = np.array([sum(1 << kind for kind in kinds[string]) for string in strings], np.uint8)
        self._finder = ahocorasick_rs.AhoCorasick(strings)

    def find(self, text: str) -> Found:
        """Every listed string in a text, overlapping ones too."""
        found = self._finder.find_matches_as_indexes(text, overlapping=True)
        which, start, end = np.array(found, np.int64).reshape(-1, 3).T
        return Found(self._kinds[which], start, end)


def marks(found: Found, length: int) -> npt.NDArray[np.float32]:
    """For each character of a text of some length 1 where a mark holds and 0 elsewhere, [length, MARKS]."""
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
    """The lines of one of the lists, without its comments."""
    lines = (_LISTS / name).read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def dictionary() -> list[tuple[str, int, str]]:
    """The entries of jieba's dictionary: word, frequency, part of speech."""
    lines = installed_file("jieba", "jieba/dict.txt").read_text(encoding="utf-8").splitlines()
    entries = (line.split(" ") for line in lines)
    return [(word, int(frequency), flag) for word, frequency, flag in entries]


@lru_cache(maxsize=1)
def load() -> NameWords:
    """The dictionary of the installed jieba and the committed lists."""
    kinds: dict[str, set[int]] = {}

    def add(strings: Iterable[str], kind: str) -> None:
        for string in strings:
            kinds.setdefault(string, set()).add(KINDS.index(kind))

    add(read_list("people.txt"), "person")
    add(read_list("brands.txt"), "brand")
    single, double = read_list("surnames.txt")
    add([*single, *double.split()], "surname")
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
