"""What a dictionary knows of names and words: how frequent a word is, and how much a string looks like a name.

Everything here comes from the dictionary that jieba ships (words, frequencies, parts of speech) and from the lists
beside this module. Words are Simplified and half-width.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from math import log
from pathlib import Path
from typing import NamedTuple

import ahocorasick_rs

_LISTS = Path(__file__).parent / "name_lists"
HAN = "\u4e00-\u9fff"
UNKNOWN = -18.0
"""Log probability of a word or character that the dictionary does not hold."""

_LONGEST_WORD = 6
_LONGEST_FOREIGN = 8
# Log ratio of what is not in the dictionary; and of the least usual character in a transliterated name.
_LEAST = -6.0
_LEAST_INNER = 0.0
# What is added to each character's count in names, and the least share in text: rare ones say little (何炅).
_ADDED, _LEAST_SHARE = 0.5, 1e-8
# A surname of two characters begins few words by chance.
_DOUBLE = 6.0


Ratios = Mapping[str, float]


class Segmented(NamedTuple):
    """A text as words.

    Attributes:
        upto: best log probability, as words, of the text up to each place.
        onward: the same of the text from each place on.
        alone: log probability of the text up to each place as characters.
        longer: the words of two and more characters, as places and log probability.
    """

    upto: list[float]
    onward: list[float]
    alone: list[float]
    longer: list[tuple[int, int, float]]

    def without(self, start: int, end: int) -> float:
        """How badly the string between two places goes with the words around it.

        Log odds, at most 0, of its characters and its neighbours as words against the whole text as words.
        """
        return self.upto[start] + self.alone[end] - self.alone[start] + self.onward[end] - self.upto[-1]


@dataclass(frozen=True)
class NameWords:
    """The tables.

    Attributes:
        words: log probability of every word that is not known as a person's name, and of every character.
        characters: log probability of every character.
        lexicon: names of the dictionary, with how sure LAC is of them in neutral contexts, 0 to 1.
        people: well-known people.
        places: places and organisations of the dictionary.
        surnames: Chinese surnames, of one and two characters.
        japanese: Japanese surnames.
        surname: by how much likelier each character is as a surname than in text, as log ratios.
        given: the same for the only, first and second character of a given name.
        foreign: the same for the first, an inner and the last character of a transliterated name.
        begun: finds places where a Chinese surname stands before a Chinese character.
        japanese_begun: finds Japanese surnames.
        strange: finds runs of characters that occur in transliterated names.
        finder: finds the words of two and more characters; ``likely`` holds their log probabilities by its numbers.
    """

    words: Mapping[str, float]
    characters: Mapping[str, float]
    lexicon: Mapping[str, float]
    people: frozenset[str]
    places: frozenset[str]
    surnames: frozenset[str]
    japanese: frozenset[str]
    surname: Ratios
    given: tuple[Ratios, Ratios, Ratios]
    foreign: tuple[Ratios, Ratios, Ratios]
    begun: re.Pattern[str]
    japanese_begun: re.Pattern[str]
    strange: re.Pattern[str]
    finder: ahocorasick_rs.AhoCorasick
    likely: tuple[float, ...]

    def chinese(self, name: str) -> float | None:
        """Log ratio of a Chinese full name (surname, one or two characters) against text; None where it is none."""
        if 2 < len(name) <= 4 and name[:2] in self.surnames:
            head, rest = _DOUBLE, name[2:]
        elif 1 < len(name) <= 3 and name[0] in self.surnames:
            head, rest = self.surname.get(name[0], _LEAST), name[1:]
        else:
            return None
        only, first, second = self.given
        if len(rest) == 1:
            return head + only.get(rest, _LEAST)
        return head + first.get(rest[0], _LEAST) + second.get(rest[1], _LEAST)

    def chinese_in(self, text: str, least: float) -> Iterator[tuple[int, int, float]]:
        """Strings whose log ratio as Chinese full names is above the least, with it."""
        only, first, second = self.given
        for match in self.begun.finditer(text):
            start, place = match.span()
            head = _DOUBLE if place - start > 1 else self.surname.get(text[start], _LEAST)
            one = text[place]
            ratio = head + only.get(one, _LEAST)
            if ratio > least:
                yield start, place + 1, ratio
            if place + 1 < len(text):
                ratio = head + first.get(one, _LEAST) + second.get(text[place + 1], _LEAST)
                if ratio > least:
                    yield start, place + 2, ratio

    def transliterated(self, name: str) -> float:
        """Log ratio of a transliterated name of two and more characters against text."""
        first, inner, last = self.foreign
        middle = sum(inner.get(character, _LEAST) for character in name[1:-1])
        return first.get(name[0], _LEAST) + middle + last.get(name[-1], _LEAST)

    def foreign_in(self, text: str, least: float) -> Iterator[tuple[int, int, float]]:
        """Strings of two to eight characters whose log ratio as transliterated names is above the least, with it."""
        begins, inner, ends = self.foreign
        for run in self.strange.finditer(text):
            first, last = run.span()
            ratios = [inner[character] for character in run[0]]
            closing = [ends.get(character, _LEAST) for character in run[0]]
            for low in range(last - first - 1):
                total = begins.get(text[first + low], _LEAST)
                for high in range(low + 1, min(last - first, low + _LONGEST_FOREIGN)):
                    if total + closing[high] > least:
                        yield first + low, first + high + 1, total + closing[high]
                    total += ratios[high]

    def from_japanese(self, name: str) -> bool:
        """Whether a name begins with a Japanese surname and goes on with one to three characters."""
        return any(name[:size] in self.japanese and 1 <= len(name) - size <= 3 for size in (2, 3))

    def segment(self, text: str) -> Segmented:
        """The text as words of the dictionary."""
        singles = [self.characters.get(character, UNKNOWN) for character in text]
        matches = self.finder.find_matches_as_indexes(text, overlapping=True)
        found = [(start, end, self.likely[number]) for number, start, end in matches]
        alone = [0.0, *accumulate(singles)]
        upto, onward = [0.0], [0.0] * (len(text) + 1)
        # Matches come by where they end; going back they are wanted by where they begin.
        number, count = 0, len(found)
        best = 0.0
        for place, single in enumerate(singles, 1):
            best += single
            while number < count and found[number][1] == place:
                start, _, value = found[number]
                value += upto[start]
                best = max(best, value)
                number += 1
            upto.append(best)
        number, back = 0, sorted(found, reverse=True)
        best = 0.0
        for place in range(len(text) - 1, -1, -1):
            best += singles[place]
            while number < count and back[number][0] == place:
                _, end, value = back[number]
                value += onward[end]
                best = max(best, value)
                number += 1
            onward[place] = best
        return Segmented(upto, onward, alone, found)


def read_list(name: str) -> list[str]:
    """The lines of one of the lists, without its comments."""
    lines = (_LISTS / name).read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def dictionary() -> list[tuple[str, int, str]]:
    """The entries of jieba's dictionary: word, frequency, part of speech."""
    import jieba

    lines = (Path(jieba.__file__).parent / "dict.txt").read_text(encoding="utf-8").splitlines()
    entries = (line.split(" ") for line in lines)
    return [(word, int(frequency), flag) for word, frequency, flag in entries]


@lru_cache(maxsize=1)
def load() -> NameWords:
    """The tables of the installed jieba and of the committed lists."""
    lexicon = {name: float(sure) for name, sure in (line.split("\t") for line in read_list("lexicon.txt"))}
    people = frozenset(read_list("people.txt"))
    single, double, japanese = read_list("surnames.txt")
    surnames = frozenset([*single, *double.split()])
    entries = dictionary()
    text: Counter[str] = Counter()
    for word, frequency, _ in entries:
        for character in word:
            text[character] += frequency
    everything = text.total()
    shares = {c: count / everything for c, count in text.items() if re.match(f"[{HAN}]", c)}
    characters = {character: log(count / everything) for character, count in text.items() if count}
    named = re.compile(r"(.{2,})(?:故居|旧居|纪念馆|纪念堂|墓|祠|像|传|陵)")

    def is_word(word: str, flag: str) -> bool:
        # What the dictionary calls a name and LAC does not is a word: 安静, 高清. In 鲁迅故居 there is a name.
        if flag.startswith("nr") and (word in lexicon or word in people):
            return False
        match = named.fullmatch(word)
        return match is None or not (match[1] in lexicon or match[1] in people)

    total = sum(frequency for _, frequency, _ in entries)
    words = {
        word: log(max(frequency, 1) / total)
        for word, frequency, flag in entries
        if len(word) <= _LONGEST_WORD and is_word(word, flag)
    }
    chinese = [word for word in lexicon if word[0] in surnames and 2 <= len(word) <= 3]
    strange = [word for word in lexicon if len(word) > 2 and word[0] not in surnames and word[:2] not in surnames]

    def ratios(parts: Iterable[str]) -> Ratios:
        counts = Counter(parts)
        size = counts.total() + _ADDED * len(shares)
        return {c: log((counts[c] + _ADDED) / size / max(share, _LEAST_SHARE)) for c, share in shares.items()}

    longer = [word for word in words if len(word) > 1]
    inner = Counter(character for word in strange for character in word[1:-1])
    foreign = (ratios(word[0] for word in strange), ratios(inner.elements()), ratios(word[-1] for word in strange))
    usual = "".join(character for character in inner if foreign[1][character] > _LEAST_INNER)
    return NameWords(
        words=characters | words,
        characters=characters,
        lexicon=lexicon,
        people=people,
        places=frozenset(word for word, _, flag in entries if flag in ("ns", "nt") and word not in lexicon),
        surnames=surnames,
        japanese=frozenset(japanese.split()),
        surname=ratios(word[0] for word in chinese),
        given=(
            ratios(word[1] for word in chinese if len(word) == 2),
            ratios(word[1] for word in chinese if len(word) == 3),
            ratios(word[2] for word in chinese if len(word) == 3),
        ),
        foreign=foreign,
        begun=re.compile(rf"(?:{double.replace(' ', '|')}|[{single}])(?=[{HAN}])"),
        japanese_begun=re.compile(japanese.replace(" ", "|")),
        strange=re.compile(f"[{usual}]{{2,}}"),
        finder=ahocorasick_rs.AhoCorasick(longer),
        likely=tuple(words[word] for word in longer),
    )
