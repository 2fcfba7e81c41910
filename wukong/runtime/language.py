"""Texts for people, in their language: English, or Chinese from the catalogue in ``wukong/locale``.

The code writes English, and so do logs, JSON and records: they cross processes, images and versions. A text becomes
Chinese at the place where a person reads it, on the terminal or on a page. There the catalogue finds the message whose
words the text has, and puts what stands between them into the translation. ``tools.messages`` collects the messages.
"""

import os
import re
import string
import struct
from functools import cache
from importlib import resources
from importlib.resources.abc import Traversable
from typing import Literal

Language = Literal["en", "zh"]

_VARIABLES = ("LANGUAGE", "LC_ALL", "LC_MESSAGES", "LANG")
_NUMBER = r"[-+]?[\d,.]+|nan|-?inf"
_SEPARATORS = ("\n", "; ", ": ", ", ")  # between messages that were joined, the strongest first


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

    Of several messages whose words the text has, the one with most words counts. A text that is no message is divided
    at line ends, semicolons, colons and commas, and those parts that are messages are translated.
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

    def translate(self, text: str) -> str:
        """Return the translation of a text, with its white space at both ends."""
        words = text.strip()
        before, _, after = text.partition(words) if words else (text, "", "")
        return f"{before}{self._words(words)}{after}"

    def _words(self, words: str) -> str:
        if (whole := self._whole.get(" ".join(words.split()))) is not None:
            return whole
        for template in self._templates:
            if (values := template.values(words)) is not None:
                return template.filled({name: self._value(value) for name, value in values.items()})
        for separator in _SEPARATORS:
            if separator in words:
                return separator.join(self._value(part) for part in words.split(separator))
        return words

    def _value(self, text: str) -> str:
        # One word may be a name or a key, which stay as they are.
        return self.translate(text) if " " in text.strip() else text


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

    def filled(self, values: dict[str, str]) -> str:
        """Return the translation with these values."""
        return self._translation.format(**values)


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
