"""Find words that were written otherwise so that no list has them (``filter.word_disguises``).

A caption is read in several ways, each a string of letters and characters without signs: with look-alike letters as the
letters of ASCII; without the digits of tones; with digits as the letters that they resemble; with the parts of a
character as that character. In each reading three kinds of patterns are looked for: the words, the words with some of
their characters in pinyin (Aho-Corasick), and the words with some of their characters replaced by others that look or
sound alike. In ordinary text all of these arise by chance. So a match must begin and end where words do (as jieba cuts
the caption), and a character that is replaced must be no part of a longer word.

The tables in ``disguises/`` say which letters and characters look alike; pypinyin says how a character is read.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import ahocorasick_rs
import numpy as np
import polars as pl
import rjieba

from wukong.curate.text import simplified
from wukong.curate.text.characters import has_han

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from wukong.curate.rules.sensitive import Disguise

_TABLES = Path(__file__).parent / "disguises"
_SIGNS = {"@": "a", "$": "s", "!": "i", "|": "l", "€": "e", "£": "l", "¥": "y"}
_DIGITS = {"0": "o", "1": "i", "2": "z", "3": "e", "4": "a", "5": "s", "6": "b", "7": "t", "8": "b", "9": "g"}
_NUMERALS = {ord(shown): letter for shown, letter in (_SIGNS | _DIGITS).items()}
_NUMERALS_AGAIN = _NUMERALS | {ord("1"): "l", ord("6"): "g", ord("9"): "q"}
_LETTER = re.compile("[a-z]")
_TONE = re.compile(r"(?<=[a-z])[1-5]")
# Where one of these stands, two statements meet.
_PUNCTUATION = frozenset("，。、；：！？,;:?()（）[]{}<>《》「」『』【】“”‘’\"'/\\=…—\n")
_BETWEEN_SYLLABLES = frozenset(" -'·")
_ALL_READ = 5
"""Of a longer word either all characters are written in pinyin, or one: the number of mixtures doubles with each."""

_BITS = 22


@dataclass(frozen=True)
class _Pattern:
    """A word, perhaps with some of its characters in pinyin.

    Attributes:
        word: as listed.
        text: what is looked for.
        breaks: offsets in ``text`` at which one character of the word ends and the next begins.
        initials: whether a character is written by its first letter alone.
    """

    word: str
    text: str
    breaks: frozenset[int]
    initials: bool = False


class _Reading:
    """A caption without signs, and where its characters stand in the caption."""

    def __init__(self, parts: Iterable[tuple[str, int, int]]) -> None:
        kept = [(text, start, end) for text, start, end in parts if text.isalnum()]
        self.text = "".join(text for text, _, _ in kept)
        self.starts = [start for _, start, _ in kept]
        self.ends = [end for _, _, end in kept]


class _Caption:
    """A caption, its readings, and where its words begin and end."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.plain = _Reading((character, place, place + 1) for place, character in enumerate(text))

    @cached_property
    def _edges(self) -> tuple[frozenset[int], frozenset[int]]:
        lengths = [len(word) for word in rjieba.cut(self.plain.text, False)]
        ends = list(itertools.accumulate(lengths))
        starts = [end - length for end, length in zip(ends, lengths, strict=True)]
        return (
            frozenset(self.plain.starts[start] for start in starts),
            frozenset(self.plain.ends[end - 1] for end in ends),
        )

    def is_token(self, start: int, end: int) -> bool:
        """Whether words begin at ``start`` and end at ``end``, and none ends between."""
        starts, ends = self._edges
        return start in starts and end in ends and not any(place in ends for place in range(start + 1, end))

    def is_inside_token(self, start: int, end: int) -> bool:
        """Whether no word begins or ends within these characters, except at their edges."""
        starts, _ = self._edges
        return not any(place in starts for place in range(start + 1, end))

    def stands_alone(self, start: int, end: int) -> bool:
        """Whether no word goes on beyond these characters."""
        starts, ends = self._edges
        before, after = self.text[start - 1 : start], self.text[end : end + 1]
        begins = start in starts if has_han(self.text[start]) else not _is_latin(before)
        return begins and (end in ends if has_han(self.text[end - 1]) else not _is_latin(after))

    def gaps(self, reading: _Reading, first: int, last: int) -> dict[int, str]:
        """What stands between the characters ``first`` to ``last`` of a reading, by the offset from ``first``."""
        between = range(first, last)
        texts = (self.text[reading.ends[place] : reading.starts[place + 1]] for place in between)
        return {number: gap for number, gap in enumerate(texts, 1) if gap}


class Disguises:
    """Some words, to be found in disguise.

    Args:
        words: without signs, as ``SensitiveWords`` compares them.
        kinds: the disguises that are looked through.
    """

    def __init__(self, words: Sequence[str], kinds: Collection[Disguise]) -> None:
        self._kinds = frozenset(kinds)
        self._words = words
        self._first, self._second = _folds(self._kinds)
        latin = "a-z" if self._kinds & {"letters", "pinyin"} else ""
        shown = latin + re.escape("".join(map(chr, self._second)))
        self._letters = f"[{shown}]" if shown else ""
        patterns = [_Pattern(word, word, frozenset(range(1, len(word)))) for word in words]
        if "pinyin" in self._kinds:
            patterns += itertools.chain.from_iterable(map(_in_pinyin, words))
        self._patterns = patterns
        self._automaton = ahocorasick_rs.AhoCorasick([pattern.text for pattern in patterns])
        self._alike = _alike(self._kinds)
        self._begins: dict[str, list[str]] = {}
        self._pairs = np.zeros(1 << _BITS, np.bool_)
        for word in words if self._alike else ():
            self._add_replaced(word)
        listed = set().union(*words)
        splits = {parts: whole for parts, whole in _splits().items() if whole in listed}
        self._splits = splits if "shapes" in self._kinds else {}
        self._parts = ahocorasick_rs.AhoCorasick(list(self._splits), matchkind=ahocorasick_rs.MatchKind.LeftmostLongest)

    def suspects(self, captions: pl.Series, compact: pl.Series) -> pl.Series:
        """Which captions ``find`` must look at; in the others it finds no word that is not there as listed.

        Args:
            captions: in normal form and Simplified characters.
            compact: the same without signs.
        """
        suspected = pl.Series(np.zeros(len(captions), np.bool_))
        if self._letters:
            suspected |= captions.str.contains(self._letters)
        if self._splits:
            suspected |= compact.str.contains_any(list(self._splits))
        if self._begins:
            suspected |= self._hold_pairs(compact)
        return suspected

    def find(self, text: str) -> list[str]:
        """The words in a caption in normal form and Simplified characters, in order of their end, as listed."""
        caption = _Caption(text.translate(self._first))
        ends: dict[str, int] = {}
        for reading in self._readings(text, caption):
            for index, start, end in self._automaton.find_matches_as_indexes(reading.text, overlapping=True):
                if self._is_pattern(caption, reading, self._patterns[index], start):
                    ends.setdefault(self._patterns[index].word, reading.ends[end - 1])
            for word, start in self._replaced(caption, reading):
                ends.setdefault(word, reading.ends[start + len(word) - 1])
        return sorted(ends, key=lambda word: (ends[word], word))

    def _readings(self, text: str, caption: _Caption) -> Iterator[_Reading]:
        yield caption.plain
        if "pinyin" in self._kinds and _TONE.search(caption.text):
            tones = {match.start() for match in _TONE.finditer(caption.text)}
            yield _Reading(
                (each, place, place + (2 if place + 1 in tones else 1))
                for place, each in enumerate(caption.text)
                if place not in tones
            )
        if "letters" in self._kinds and _LETTER.search(caption.text):
            first, second = caption.text.translate(_NUMERALS), text.translate(self._second).translate(_NUMERALS_AGAIN)
            readings = {first, second}
            for other in readings - {caption.text}:
                yield _Reading((each, place, place + 1) for place, each in enumerate(other))
        if self._splits and (hits := self._parts.find_matches_as_indexes(caption.plain.text)):
            yield _joined(
                caption.plain, [(list(self._splits.values())[index], start, end) for index, start, end in hits]
            )

    def _is_pattern(self, caption: _Caption, reading: _Reading, pattern: _Pattern, first: int) -> bool:
        """Whether what matches a pattern is the word and no accident."""
        last = first + len(pattern.text) - 1
        start, end = reading.starts[first], reading.ends[last]
        gaps = caption.gaps(reading, first, last)
        if any(not _PUNCTUATION.isdisjoint(gap) for gap in gaps.values()) or (gaps and pattern.initials):
            return False
        signs = {place for place, gap in gaps.items() if not _BETWEEN_SYLLABLES.issuperset(gap)}
        if gaps and len(gaps) < len(pattern.text) - 1:
            spaces = gaps.keys() - signs
            if not pattern.breaks.issuperset(spaces) or (spaces and pattern.text == pattern.word):
                return False
        if signs and "signs" not in self._kinds:
            return False
        if pattern.text == pattern.word and has_han(pattern.word):
            whole = not gaps and end - start == len(pattern.word) and caption.is_inside_token(start, end)
            return whole or caption.stands_alone(start, end)
        return caption.stands_alone(start, end)

    def _replaced(self, caption: _Caption, reading: _Reading) -> Iterator[tuple[str, int]]:
        """Words of which some characters are replaced, and where in the reading they begin."""
        text = reading.text
        for first, character in enumerate(text):
            for word in self._begins.get(character, ()):
                there = text[first : first + len(word)]
                if len(there) < len(word) or there == word:
                    continue
                other = [place for place, (a, b) in enumerate(zip(word, there, strict=True)) if a != b]
                if len(other) > len(word) // 2 or any(
                    there[place] not in self._alike.get(word[place], ()) for place in other
                ):
                    continue
                last = first + len(word) - 1
                gaps = caption.gaps(reading, first, last)
                if gaps and ("signs" not in self._kinds or any(not _PUNCTUATION.isdisjoint(g) for g in gaps.values())):
                    continue
                places = [first + place for place in other]
                if caption.stands_alone(reading.starts[first], reading.ends[last]) and all(
                    caption.is_token(reading.starts[place], reading.ends[place]) for place in places
                ):
                    yield word, first

    def _add_replaced(self, word: str) -> None:
        han = [character for character in word if has_han(character)]
        if len(han) < 2:
            return
        first, second = ([character, *self._alike.get(character, ())] for character in word[:2])
        for character in first:
            self._begins.setdefault(character, []).append(word)
        # Of a word of two or three characters one is replaced.
        pairs = itertools.product(first, second) if len(word) > 3 else _one_replaced(first, second)
        codes = np.array([(ord(a), ord(b)) for a, b in pairs], np.uint32)
        self._pairs[_hashes(codes[:, 0], codes[:, 1])] = True

    def _hold_pairs(self, compact: pl.Series) -> pl.Series:
        """Whether a caption may hold the first two characters of a word, one of them perhaps replaced."""
        codes = np.frombuffer("\n".join(compact).encode("utf-32-le"), np.uint32)
        places = np.flatnonzero(self._pairs[_hashes(codes[:-1], codes[1:])])
        ends = np.cumsum(compact.str.len_chars().to_numpy().astype(np.int64) + 1)
        held = np.zeros(len(compact), np.bool_)
        held[np.searchsorted(ends, places, side="right")] = True
        return pl.Series(held)


def _is_latin(character: str) -> bool:
    return character.isalnum() and not has_han(character)


def _hashes(first: NDArray[np.uint32], second: NDArray[np.uint32]) -> NDArray[np.uint32]:
    return (first * np.uint32(0x9E3779B1) + second * np.uint32(0x85EBCA6B)) >> np.uint32(32 - _BITS)


def _one_replaced(first: Sequence[str], second: Sequence[str]) -> Iterator[tuple[str, str]]:
    return itertools.chain(((first[0], each) for each in second), ((each, second[0]) for each in first[1:]))


def _joined(reading: _Reading, wholes: Iterable[tuple[str, int, int]]) -> _Reading:
    """A reading in which some characters are one: what it is, and from where to where."""
    parts, done = [], 0
    for whole, start, end in [*wholes, ("", len(reading.text), len(reading.text))]:
        parts += [(reading.text[place], reading.starts[place], reading.ends[place]) for place in range(done, start)]
        if whole:
            parts.append((whole, reading.starts[start], reading.ends[end - 1]))
        done = end
    return _Reading(parts)


def _lines(name: str) -> Iterator[list[str]]:
    for line in (_TABLES / name).read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            yield line.split(" ")


@lru_cache(maxsize=1)
def _splits() -> dict[str, str]:
    """The characters that are written as their parts, by those."""
    forms: dict[str, str] = {}
    wholes = {}
    for head, *others in _lines("splits.txt"):
        if head == "=":
            forms |= dict.fromkeys(others[0], others[0])
            continue
        for split in (head, *others):
            for written in itertools.product(*(forms.get(part, part) for part in split[1:])):
                wholes["".join(written)] = split[0]
    return wholes


def _folds(kinds: Collection[Disguise]) -> tuple[dict[int, str], dict[int, str]]:
    """What characters are read as that look the same: the first reading, and the second where there are two."""
    first: dict[int, str] = {}
    second: dict[int, str] = {}
    for shown, others in _lines("same.txt"):
        if ("letters" if shown.isascii() else "shapes") in kinds:
            for other in others:
                (second if ord(other) in first else first)[ord(other)] = shown
    if "letters" in kinds:
        first = _latin_letters() | first
    if "shapes" in kinds:
        first = _variants() | first
    return first, first | second


@lru_cache(maxsize=1)
def _latin_letters() -> dict[int, str]:
    """Letters with marks, small capitals, and letters in circles and squares, by their names in Unicode."""
    import unicodedata

    name = re.compile(
        r"(?:LATIN (?:SMALL|CAPITAL) LETTER |LATIN LETTER SMALL CAPITAL |NEGATIVE CIRCLED LATIN CAPITAL LETTER "
        r"|NEGATIVE SQUARED LATIN CAPITAL LETTER |REGIONAL INDICATOR SYMBOL LETTER )([A-Z])(?: WITH .*)?"
    )
    found = ((code, name.fullmatch(unicodedata.name(chr(code), ""))) for code in range(0x80, 0x1F200))
    return {code: match[1].lower() for code, match in found if match}


@lru_cache(maxsize=1)
def _variants() -> dict[int, str]:
    """Forms of Traditional characters in Japan, Hong Kong and Taiwan, as Simplified characters."""
    from wukong.runtime.installed import installed_file

    common = set(_common())
    forms: dict[int, str] = {}
    for region in ("JP", "HK", "TW"):
        file = installed_file("opencc-python-reimplemented", f"opencc/dictionary/{region}Variants.txt")
        for line in file.read_text(encoding="utf-8").splitlines():
            standard, _, variants = line.partition("\t")
            simple = simplified.simplify(standard)
            forms |= {ord(each): simple for each in variants.split(" ") if len(each) == 1 and each not in common}
    return {form: simple for form, simple in forms.items() if chr(form) != simple}


@lru_cache(maxsize=1)
def _common() -> list[str]:
    """The characters of GB 2312."""
    cells = (bytes([row, cell]) for row in range(0xB0, 0xF8) for cell in range(0xA1, 0xFF))
    return [character for cell in cells if (character := cell.decode("gb2312", "ignore"))]


def _alike(kinds: Collection[Disguise]) -> Mapping[str, frozenset[str]]:
    """The characters that may stand for a character."""
    tables: list[Mapping[str, Iterable[str]]] = []
    if "shapes" in kinds:
        tables.append(dict(_lines("alike.txt")))
    if "homophones" in kinds:
        tables.append(_homophones())
    keys = {key for table in tables for key in table}
    return {key: frozenset(itertools.chain.from_iterable(table.get(key, ()) for table in tables)) for key in keys}


@lru_cache(maxsize=1)
def _homophones() -> dict[str, str]:
    """The common characters that are read as a common character, in the same tone."""
    import pypinyin

    common = _common()[:3755]
    readings: dict[str, list[str]] = {}
    for character, reading in zip(common, pypinyin.lazy_pinyin(common, pypinyin.Style.TONE3), strict=True):
        readings.setdefault(reading, []).append(character)
    return {character: "".join(same).replace(character, "") for same in readings.values() for character in same}


def _in_pinyin(word: str) -> Iterator[_Pattern]:
    """A word with some of its characters in pinyin, or by the first letter of it."""
    import pypinyin

    if sum(map(has_han, word)) < 2 and len(word) < 2:
        return
    in_word = [syllable for run in pypinyin.pinyin(word) for syllable in run]
    if len(in_word) != len(word):  # letters and digits are one run
        in_word = [pypinyin.lazy_pinyin(character)[0] for character in word]
    read = [_syllables(character, reading) for character, reading in zip(word, in_word, strict=True)]
    places = [place for place, character in enumerate(word) if has_han(character)]
    for chosen in _mixtures(places):
        written = [read[place] if place in chosen else (character,) for place, character in enumerate(word)]
        for syllables in itertools.product(*written):
            yield _pattern(word, syllables)
    first = {place: sorted({reading[0] for reading in read[place]}) for place in places}
    if len(word) > 2:
        for place in places:
            for letter in first[place]:
                yield _pattern(word, [letter if at == place else each for at, each in enumerate(word)], initials=True)
    if len(places) == len(word) > 3:
        for letters in itertools.product(*(first[place] for place in places)):
            yield _pattern(word, letters, initials=True)


def _pattern(word: str, written: Sequence[str], *, initials: bool = False) -> _Pattern:
    ends = itertools.accumulate(map(len, written[:-1]))
    return _Pattern(word, "".join(written), frozenset(ends), initials)


def _mixtures(places: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Which characters of a word are written in pinyin."""
    sizes = range(1, len(places) + 1) if len(places) <= _ALL_READ else (1, len(places))
    return itertools.chain.from_iterable(itertools.combinations(places, size) for size in sizes)


def _syllables(character: str, in_word: str) -> tuple[str, ...]:
    """The pinyin of a character without tones: as it is read in a word and by itself, ü as u and as v."""
    import pypinyin
    from pypinyin.contrib.tone_convert import to_normal

    read = {to_normal(in_word), *pypinyin.lazy_pinyin(character)} if has_han(character) else {character}
    return tuple(sorted({each.replace("ü", vowel).replace("v", vowel) for each in read for vowel in "uv"}))
