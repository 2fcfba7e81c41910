"""Texts for people, in their language: English, or Chinese from the catalogue in ``wukong/locale``.

The code writes English, and so do logs, JSON and records: they cross processes, images and versions. A text becomes
Chinese at the place where a person reads it, on the terminal or on a page. There the catalogue finds the message whose
words the text has, and puts what stands between them into the translation. ``tools.messages`` collects the messages.
"""

import os
import re
import string
import struct
from collections.abc import Iterator, Mapping, Sequence
from functools import cache, lru_cache
from importlib import resources
from importlib.resources.abc import Traversable
from itertools import pairwise
from operator import itemgetter
from typing import Literal

Language = Literal["en", "zh"]
_Reading = tuple[int, str]
"""How many characters of a text are those of messages, and its translation."""

_VARIABLES = ("LANGUAGE", "LC_ALL", "LC_MESSAGES", "LANG")
_NUMBER = r"[-+]?[\d,.]+(?:e[-+]\d+)?|nan|-?inf"
_STOPS, _COMMA = {"\n": "\n", ". ": "。", "; ": "；", ": ": "："}, {", ": "，"}
"""What stands between messages that were joined, and what stands there in Chinese."""
_MOST = 20
"""Separators up to which a text is also divided at the first one alone, because messages have some inside too."""
_KNOWN = 4_096
"""Texts that a catalogue remembers."""
_LISTED = re.compile(r"\S*[^\s,](?:,?(?:,| and| or) \S*[^\s,])+")
_GAP = re.compile("(?<=[\u3000-\u9fff\uff00-\uffef])(?:\0 | \0)(?=[\u3000-\u9fff\uff00-\uffef])")
_BETWEEN = {" and ": " 和 ", " or ": " 或 "}


def chosen() -> Language:
    """Return the language of this process's user: Chinese if the locale in the environment is Chinese, else English."""
    locale = next((os.environ[name] for name in _VARIABLES if os.environ.get(name)), "")
    return "zh" if locale.startswith("zh") else "en"


def message(text: str) -> str:
    """Return a text as it is; ``tools.messages`` takes it into the catalogue, wherever it is shown."""
    return text


def translated(text: str) -> str:
    """Return a text in the language of this process's user; one that the catalogue lacks stays English."""
    return chinese(text) if chosen() == "zh" else text


def chinese(text: str) -> str:
    """Return a text in Chinese.

    A text may be a message whose fields hold messages, or several messages that were joined by line ends, full stops,
    semicolons, colons or commas. Of all such readings the one counts in which most of the text is words of messages.
    """
    return _catalogue().translate(text)


def chinese_format(message: str) -> str:
    """Return the Chinese format string of a message, whose fields are those of the message; itself if there is none."""
    return _catalogue().messages.get(" ".join(message.split()), message)


def places() -> Traversable:
    """Return the folder of the catalogues, as gettext has it: ``LANGUAGE/LC_MESSAGES/messages.mo``."""
    return resources.files("wukong") / "locale"


@cache
def _catalogue() -> "Catalogue":
    return Catalogue(entries((places() / "zh" / "LC_MESSAGES" / "messages.mo").read_bytes()))


def entries(compiled: bytes) -> dict[str, str]:
    """Return the translations of a compiled catalogue by message (GNU gettext manual, "The Format of GNU MO Files")."""
    _, _, count, originals, translations = struct.unpack_from("<5I", compiled)

    def text(table: int, number: int) -> str:
        length, offset = struct.unpack_from("<2I", compiled, table + 8 * number)
        return compiled[offset : offset + length].decode()

    return {text(originals, number): text(translations, number) for number in range(count)}


class Catalogue:
    """Translations by message. A message is a format string, whose fields stand for what differs from text to text.

    Attributes:
        messages: the translations, with fields in both; the white space of a message is one space.
    """

    def __init__(self, translations: dict[str, str]) -> None:
        self.messages = {" ".join(each.split()): text for each, text in translations.items() if each and text}
        self._whole = {each.format(): text.format() for each, text in self.messages.items() if not fields(each)}
        templates = (_Template(*pair) for pair in self.messages.items() if _is_template(pair[0]))
        self._templates = sorted(templates, key=lambda template: -template.weight)
        self._read = lru_cache(_KNOWN)(self._read_anew)

    def translate(self, text: str) -> str:
        """Return the translation of a text, with its white space at both ends."""
        return self._read(text)[1]

    def _read_anew(self, text: str) -> _Reading:
        words = text.strip()
        before, _, after = text.partition(words) if words else (text, "", "")
        known, chinese = max(self._readings(words), key=itemgetter(0))
        return known, f"{before}{chinese}{after}"

    def _readings(self, words: str) -> Iterator[_Reading]:
        """Iterate over all readings, of which the first counts if several are equal."""
        if (whole := self._whole.get(" ".join(words.split()))) is not None:
            yield len(words), whole
            return
        yield 0, words
        yield from self._divided(words, _STOPS)
        for template in self._templates:
            if (values := template.values(words)) is not None:
                inside = {name: self._value(value) for name, value in values.items()}
                known = template.weight + sum(each for each, _ in inside.values())
                yield known, template.filled(inside)
        yield from self._divided(words, _COMMA)  # last, because a value may be a list

    def _divided(self, words: str, separators: Mapping[str, str]) -> Iterator[_Reading]:
        for separator, theirs in separators.items():
            if count := words.count(separator):
                for most in {count, 1} if count <= _MOST else {count}:
                    yield _joined([self._value(part) for part in words.split(separator, most)], separator, theirs)

    def _value(self, text: str) -> _Reading:
        # One word may be a name or a key, which stay as they are, and so do several in a list that is no message.
        if text not in self._whole and _LISTED.fullmatch(text):
            return 0, re.sub(r",?( and | or )", lambda between: _BETWEEN[between[1]], text)
        return self._read(text) if " " in text.strip() else (0, text)


def _joined(parts: Sequence[_Reading], separator: str, theirs: str) -> _Reading:
    """Join readings; between two that are English the separator stays."""
    text = parts[0][1]
    for (before, _), (after, chinese) in pairwise(parts):
        text += (theirs if before or after else separator) + chinese
    return sum(known for known, _ in parts), text


class _Template:
    """A message with fields, and its translation."""

    def __init__(self, message: str, translation: str) -> None:
        literals = [literal for literal, *_ in string.Formatter().parse(message)]
        self.weight = sum(map(len, literals))
        self._anchor = max(" ".join(literals).split(), key=len)
        self._pattern = _pattern(message)
        self._translation = translation

    def values(self, text: str) -> dict[str, str] | None:
        """Return what stands for each field in a text; None if the text is another message."""
        match = re.fullmatch(self._pattern, text, re.DOTALL) if self._anchor in text else None
        return match and match.groupdict()

    def filled(self, values: dict[str, _Reading]) -> str:
        """Return the translation with these values; the space that sets a name off is not for a translated value."""
        marked = {name: f"\0{chinese}\0" if known else chinese for name, (known, chinese) in values.items()}
        return _GAP.sub("", self._translation.format(**marked)).replace("\0", "")


def fields(message: str) -> set[str]:
    """Return the names of a message's fields."""
    return {name for _, name, *_ in string.Formatter().parse(message) if name is not None}


def _is_template(message: str) -> bool:
    return bool(fields(message)) and all(map(str.isidentifier, fields(message)))


def _pattern(message: str) -> str:
    """Return the regular expression of a message, whose white space may be any; a field that comes again is equal."""
    pattern, seen = "", set[str]()
    for literal, name, spec, _ in string.Formatter().parse(message):
        pattern += r"\s+".join(map(re.escape, literal.split(" ")))
        if name is not None:
            pattern += f"(?P={name})" if name in seen else f"(?P<{name}>{_NUMBER if spec else '.*?'})"
            seen.add(name)
    return pattern
