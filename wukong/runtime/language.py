"""Texts for people in their language, by gettext: English, or Chinese from the catalogue in ``wukong/locale``.

``_`` marks a text for the catalogue. It stays English in logs, JSON, records and errors, which cross processes, images
and versions, and becomes Chinese where a person reads it: on the terminal (``translated``), or on a page, which has
both languages (``wukong.report.languages``).
"""

import gettext
import os
import re
from collections.abc import Iterable, Mapping
from functools import cache
from importlib import resources
from importlib.resources.abc import Traversable
from numbers import Number
from typing import Any, Literal

Language = Literal["en", "zh"]

_VARIABLES = ("LANGUAGE", "LC_ALL", "LC_MESSAGES", "LANG")
_END = "\ud800"
"""Stands at both ends of a translated value, and in no text."""
_GAP = re.compile(f"(?<=[\u3000-\u9fff\uff00-\uffef])(?:{_END} | {_END})(?=[\u3000-\u9fff\uff00-\uffef])")
_STOPS = {"; ": "；", ": ": "：", " ": ""}
"""What stands between sentences, and what stands there in Chinese."""


class Text(str):
    """An English text, which knows what it is in Chinese.

    Attributes:
        message: what the catalogue has, where the text is it with its fields filled in.
        fields: what stands in the fields, by name; texts among them are Chinese in Chinese.
    """

    message: str = ""
    fields: Mapping[str, object] = {}

    def format(self, **fields: object) -> "Text":  # type: ignore[override]  # fields have names, for translators
        """Return the text with its fields filled in."""
        made = Text(super().format(**fields))
        # What is kept can be copied and sent to another process, which an error may not be.
        kept = {name: each if isinstance(each, str | Number) else str(each) for name, each in fields.items()}
        made.message, made.fields = self.message or str(self), kept
        return made

    @property
    def chinese(self) -> str:
        """The text in Chinese; in English where the catalogue lacks it."""
        text = _catalogue().gettext(self.message or str(self))
        if not self.fields:
            return text
        marked = {
            n: f"{_END}{each.chinese}{_END}" if isinstance(each, Text) else each for n, each in self.fields.items()
        }
        # The space that sets a name off is not for a translated value.
        return _GAP.sub("", text.format(**marked)).replace(_END, "")


class _Joined(Text):
    """Texts with something between them, whose Chinese is known."""

    parts: tuple[str, ...] = ()
    between: str = ""

    @property
    def chinese(self) -> str:
        return self.between.join(each.chinese if isinstance(each, Text) else each for each in self.parts)


def _(message: str) -> str:
    """Mark a text for the catalogue; ``_("{count:,} rows").format(count=count)`` has fields."""
    return Text(message)


def ngettext(singular: str, plural: str, count: int) -> str:
    """Mark a text that says a number in two ways in English."""
    made = Text(singular if count == 1 else plural)
    made.message = singular
    return made


def joined(texts: Iterable[str], separator: str) -> str:
    """Return texts as one, with a separator between them."""
    parts = tuple(texts)
    made = _Joined(separator.join(parts))
    made.parts, made.between = parts, _STOPS.get(separator, separator)
    return made


def chosen() -> Language:
    """Return the language of this process's user: Chinese if the locale in the environment is Chinese, else English."""
    locale = next((os.environ[name] for name in _VARIABLES if os.environ.get(name)), "")
    return "zh" if locale.startswith("zh") else "en"


def translated(text: str) -> str:
    """Return a text in the language of this process's user; see ``chinese``."""
    return chinese(text) if chosen() == "zh" else text


def chinese(text: str) -> str:
    """Return a marked text in Chinese, or a text without fields that the catalogue has; itself if neither."""
    return text.chinese if isinstance(text, Text) else text and Text(text).chinese


def chinese_of(value: Any) -> dict[str, str]:
    """Return the Chinese of all texts with fields in a value, by the English: for a file, whose texts are English."""
    if isinstance(value, Text):
        return {str(value): value.chinese} if value.fields or isinstance(value, _Joined) else {}
    below = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    return {english: text for each in below for english, text in chinese_of(each).items()}


def restored(value: Any, known: Mapping[str, str]) -> Any:
    """Return a value of a file with its texts as they were, whose Chinese ``chinese_of`` returned."""
    if isinstance(value, Mapping):
        return {key: restored(each, known) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [restored(each, known) for each in value]
    if not isinstance(value, str) or value not in known:
        return value
    made = _Joined(value)
    made.parts = (known[value],)
    return made


def places() -> Traversable:
    """Return the folder of the catalogues, as gettext has it: ``LANGUAGE/LC_MESSAGES/messages.mo``."""
    return resources.files("wukong") / "locale"


@cache
def _catalogue() -> gettext.NullTranslations:
    with (places() / "zh" / "LC_MESSAGES" / "messages.mo").open("rb") as compiled:
        return gettext.GNUTranslations(compiled)
