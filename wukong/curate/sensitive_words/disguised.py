"""Find words that were written otherwise so that no list has them (``filter.word_disguises``).

A caption is read in several ways, each a string of letters and characters without signs: with look-alike letters as the
letters of ASCII; without the digits of tones; with digits as the letters that they resemble; with the parts of a
character as that character. In each reading three kinds of patterns are looked for: the words, the words with some of
their characters in pinyin (Aho-Corasick), and the words with some of their characters replaced by others that look or
sound alike. In ordinary text all of these arise by chance. So a match must begin and end where words do (as jieba cuts
the caption without its signs), unless it has three Chinese characters or more.

The tables in ``disguises/`` say which letters and characters look alike; pypinyin says how a character is read.
"""

from __future__ import annotations

import itertools
import math
import re
import unicodedata
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

    from wukong.config.disguise import Disguise

_TABLES = Path(__file__).parent / "disguises"
_SIGNS = {"@": "a", "$": "s", "!": "i", "|": "l", "€": "e", "£": "l", "¥": "y"}
_DIGITS = {"0": "o", "1": "i", "2": "z", "3": "e", "4": "a", "5": "s", "6": "b", "7": "t", "8": "b", "9": "g"}
_NUMERALS = {ord(shown): letter for shown, letter in (_SIGNS | _DIGITS).items()}
# A digit may stand for several letters: they are taken for one.
_ONE_SHAPE = str.maketrans("lqg", "ibb")
_LETTER = re.compile("[a-z]")
_TONE = re.compile(r"(?<=[a-z])[1-5]")
_NO_TONE = "\0"
# Where one of these stands, two statements meet.
_PUNCTUATION = frozenset("，。、；：！？,;:?()（）[]{}<>《》「」『』【】“”‘’\"'/\\=…—\n")
_BETWEEN_SYLLABLES = frozenset(" -'·")
_ALL_READ = 5
"""Of a longer word either all characters are written in pinyin, or one: the number of mixtures doubles with each."""

_MOST_WAYS = 1024
_LONGEST_READ = 64
"""Longer words are not looked for in pinyin."""

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
    """A way to read a caption.

    Attributes:
        source: the caption, in which other characters stand in the same places.
        text: its letters, characters and digits, without signs.
        as_shapes: whether letters stand for all that digits may stand for as well (``_ONE_SHAPE``).
    """

    def __init__(self, source: str, *, as_shapes: bool = False) -> None:
        self.source = source
        self.text = "".join(filter(str.isalnum, source))
        self.as_shapes = as_shapes

    @cached_property
    def starts(self) -> Sequence[int]:
        """Where in ``source`` the characters of ``text`` begin."""
        return [place for place, character in enumerate(self.source) if character.isalnum()]

    @cached_property
    def ends(self) -> Sequence[int]:
        """Where in ``source`` the characters of ``text`` end."""
        return [start + 1 for start in self.starts]

    def gaps(self, first: int, last: int) -> dict[int, str]:
        """What stands between the characters ``first`` to ``last`` of ``text``, by the offset from ``first``."""
        texts = (self.source[self.ends[place] : self.starts[place + 1]] for place in range(first, last))
        return {number: gap for number, text in enumerate(texts, 1) if (gap := text.replace(_NO_TONE, ""))}


class _Joined(_Reading):
    """A reading in which some characters are taken for one: what it is, and from where to where in the other."""

    def __init__(self, reading: _Reading, wholes: Iterable[tuple[str, int, int]]) -> None:
        super().__init__(reading.source)
        parts, done = [], 0
        for whole, start, end in [*wholes, ("", len(reading.text), len(reading.text))]:
            parts += [(reading.text[place], reading.starts[place], reading.ends[place]) for place in range(done, start)]
            if whole:
                parts.append((whole, reading.starts[start], reading.ends[end - 1]))
            done = end
        self.text = "".join(text for text, _, _ in parts)
        self.starts = [start for _, start, _ in parts]
        self.ends = [end for _, _, end in parts]


class _Words:
    """Where the words of a caption begin and end, as jieba cuts it without its signs."""

    def __init__(self, reading: _Reading) -> None:
        self._reading = reading

    @cached_property
    def _edges(self) -> tuple[frozenset[int], frozenset[int]]:
        lengths = [len(word) for word in rjieba.cut(self._reading.text, False)]
        ends = list(itertools.accumulate(lengths))
        starts = [end - length for end, length in zip(ends, lengths, strict=True)]
        return (
            frozenset(self._reading.starts[start] for start in starts),
            frozenset(self._reading.ends[end - 1] for end in ends),
        )

    def goes_on(self, start: int, end: int) -> bool:
        """Whether no word begins after ``start`` and before ``end``."""
        starts, _ = self._edges
        return starts.isdisjoint(range(start + 1, end))

    def begin_and_end(self, source: str, start: int, end: int, *, surely: bool) -> bool:
        """Whether these characters of a reading are not parts of their neighbours.

        Args:
            source: the reading's.
            start: of the first character.
            end: of the last.
            surely: no Chinese word goes on at either end by chance, so only rows of letters and digits matter.
        """
        before, after = source[start - 1 : start], source[end : end + 1]
        begins = surely or start in self._edges[0] if has_han(source[start]) else not _is_latin(before)
        return begins and (surely or end in self._edges[1] if has_han(source[end - 1]) else not _is_latin(after))


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
        self._of_shapes = ahocorasick_rs.AhoCorasick([pattern.text.translate(_ONE_SHAPE) for pattern in patterns])
        self._alike = _alike(self._kinds)
        self._begins: dict[str, list[str]] = {}
        self._pairs = np.zeros(1 << _BITS, np.bool_)
        for word in words if self._alike else ():
            self._add_replaced(word)
        listed = set().union(*words)
        splits = {parts: whole for parts, whole in _splits().items() if whole in listed}
        self._splits = splits if "shapes" in self._kinds else {}
        self._wholes = list(self._splits.values())
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
        plain = _Reading(text.translate(self._first))
        words = _Words(plain)
        ends: dict[str, int] = {}
        for reading in self._readings(text, plain):
            automaton = self._of_shapes if reading.as_shapes else self._automaton
            for index, start, end in automaton.find_matches_as_indexes(reading.text, overlapping=True):
                if self._is_pattern(words, reading, self._patterns[index], start):
                    ends.setdefault(self._patterns[index].word, reading.ends[end - 1])
            if not reading.as_shapes:
                for word, start in self._replaced(words, reading):
                    ends.setdefault(word, reading.ends[start + len(word) - 1])
        return sorted(ends, key=lambda word: (ends[word], word))

    def _readings(self, text: str, plain: _Reading) -> Iterator[_Reading]:
        yield plain
        if "pinyin" in self._kinds and _TONE.search(plain.source):
            yield _Reading(_TONE.sub(_NO_TONE, plain.source))
        if "letters" in self._kinds and _LETTER.search(plain.source):
            for source in dict.fromkeys((plain.source, text.translate(self._second))):
                if (shapes := source.translate(_NUMERALS)) != text:
                    yield _Reading(shapes.translate(_ONE_SHAPE), as_shapes=True)
        if self._splits and (hits := self._parts.find_matches_as_indexes(plain.text)):
            yield _Joined(plain, ((self._wholes[index], start, end) for index, start, end in hits))

    def _is_pattern(self, words: _Words, reading: _Reading, pattern: _Pattern, first: int) -> bool:
        """Whether what matches a pattern is the word and no accident."""
        last = first + len(pattern.text) - 1
        start, end = reading.starts[first], reading.ends[last]
        gaps = reading.gaps(first, last)
        if gaps and (pattern.initials or not self._may_stand_between(gaps.values())):
            return False
        spaces = {place for place, gap in gaps.items() if _BETWEEN_SYLLABLES.issuperset(gap)}
        if len(spaces) < len(gaps) and "signs" not in self._kinds:
            return False
        # Spaces are between all characters, or where a character of the word ends.
        is_listed = pattern.text == pattern.word
        if spaces and len(gaps) < len(pattern.text) - 1 and (is_listed or not pattern.breaks.issuperset(spaces)):
            return False
        if is_listed and has_han(pattern.word) and end - start == len(pattern.word) and words.goes_on(start, end):
            return True
        # Nobody writes signs within a sentence by chance.
        surely = bool(gaps) and not spaces
        return words.begin_and_end(reading.source, start, end, surely=surely or _is_long(pattern.word))

    def _replaced(self, words: _Words, reading: _Reading) -> Iterator[tuple[str, int]]:
        """Words of which some characters are replaced, and where in the reading they begin."""
        for first, character in enumerate(reading.text):
            for word in self._begins.get(character, ()):
                if self._stands_for(reading.text[first : first + len(word)], word):
                    last, long = first + len(word) - 1, _is_long(word)
                    start, end, gaps = reading.starts[first], reading.ends[last], reading.gaps(first, last).values()
                    if gaps and ("signs" not in self._kinds or not self._may_stand_between(gaps)):
                        continue
                    # Two characters that are a word of their own are that word, and two words have a space between.
                    if not long and (words.goes_on(start, end) or any(map(str.isspace, gaps))):
                        continue
                    if words.begin_and_end(reading.source, start, end, surely=long):
                        yield word, first

    def _stands_for(self, text: str, word: str) -> bool:
        """Whether a text is a word of whose characters at most half are replaced by others that are alike."""
        if len(text) < len(word):
            return False
        replaced = [(mine, other) for mine, other in zip(word, text, strict=True) if mine != other]
        return 0 < len(replaced) <= len(word) // 2 and all(
            other in self._alike.get(mine, ()) for mine, other in replaced
        )

    def _may_stand_between(self, gaps: Iterable[str]) -> bool:
        return all(_PUNCTUATION.isdisjoint(gap) for gap in gaps)

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


def _is_long(word: str) -> bool:
    """Whether a word is so long that its characters do not meet by chance, even if one of them is replaced."""
    return sum(map(has_han, word)) > 2


def _is_latin(character: str) -> bool:
    return character.isalnum() and not has_han(character)


def _hashes(first: NDArray[np.uint32], second: NDArray[np.uint32]) -> NDArray[np.uint32]:
    return (first * np.uint32(0x9E3779B1) + second * np.uint32(0x85EBCA6B)) >> np.uint32(32 - _BITS)


def _one_replaced(first: Sequence[str], second: Sequence[str]) -> Iterator[tuple[str, str]]:
    return itertools.chain(((first[0], each) for each in second), ((each, second[0]) for each in first[1:]))


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


def _folds(kinds: frozenset[Disguise]) -> tuple[dict[int, str], dict[int, str]]:
    """What characters are read as that look the same: the first reading, and the second where there are two."""
    first: dict[int, str] = {}
    second: dict[int, str] = {}
    for shown, others in _lines("same.txt"):
        if ("letters" if shown.isascii() else "shapes") in kinds:
            for other in unicodedata.normalize("NFKC", others).lower():  # as captions are
                (second if ord(other) in first else first)[ord(other)] = shown
    if not kinds.isdisjoint({"letters", "pinyin"}):
        first = _latin_letters() | first
    if "shapes" in kinds:
        first = _variants() | first
    first = {code: shown for code, shown in first.items() if chr(code) != shown and chr(code).strip()}
    return first, first | second


@lru_cache(maxsize=1)
def _latin_letters() -> dict[int, str]:
    """Letters with marks, small capitals, and letters in circles and squares, by their names in Unicode."""
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

    common = set(common_characters())
    forms: dict[int, str] = {}
    for region in ("JP", "HK", "TW"):
        file = installed_file("opencc-python-reimplemented", f"opencc/dictionary/{region}Variants.txt")
        for line in file.read_text(encoding="utf-8").splitlines():
            standard, _, variants = line.partition("\t")
            simple = simplified.simplify(standard)
            forms |= {ord(each): simple for each in variants.split(" ") if len(each) == 1 and each not in common}
    return {form: simple for form, simple in forms.items() if chr(form) != simple}


@lru_cache(maxsize=1)
def common_characters() -> list[str]:
    """The 6,763 characters of GB 2312, of which the first 3,755 are those of its first level, the most common."""
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

    common = common_characters()[:3755]
    readings: dict[str, list[str]] = {}
    for character, reading in zip(common, pypinyin.lazy_pinyin(common, pypinyin.Style.TONE3), strict=True):
        readings.setdefault(reading, []).append(character)
    return {character: "".join(same).replace(character, "") for same in readings.values() for character in same}


def _in_pinyin(word: str) -> Iterator[_Pattern]:
    """A word with some of its characters in pinyin, or by the first letter of it."""
    import pypinyin

    if len(word) > _LONGEST_READ or (sum(map(has_han, word)) < 2 and len(word) < 2):
        return
    in_word = [syllable for run in pypinyin.pinyin(word) for syllable in run]
    if len(in_word) != len(word):  # letters and digits are one run
        in_word = [pypinyin.lazy_pinyin(character)[0] for character in word]
    read = [_syllables(character, reading) for character, reading in zip(word, in_word, strict=True)]
    places = [place for place, character in enumerate(word) if has_han(character)]
    for chosen in _mixtures(places):
        written = [read[place] if place in chosen else (character,) for place, character in enumerate(word)]
        for syllables in _ways(written):
            yield _pattern(word, syllables)
    first = {place: sorted({reading[0] for reading in read[place]}) for place in places}
    if len(word) > 2:
        for place in places:
            for letter in first[place]:
                yield _pattern(word, [letter if at == place else each for at, each in enumerate(word)], initials=True)
    if len(places) == len(word) > 3:
        for letters in _ways([first[place] for place in places]):
            yield _pattern(word, letters, initials=True)


def _ways(written: Sequence[Sequence[str]]) -> Iterable[tuple[str, ...]]:
    """All ways to write the characters of a word, of which each may be written in several; their number doubles with
    each. Where there are too many, the first and the last way of all, and those of one character that is not as in the
    first.
    """
    if math.prod(map(len, written)) <= _MOST_WAYS:
        return itertools.product(*written)
    first, last = (tuple(each[place] for each in written) for place in (0, -1))
    others = ((at, each) for at, ways in enumerate(written) for each in ways[1:])
    return [first, last, *((*first[:at], each, *first[at + 1 :]) for at, each in others)]


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
