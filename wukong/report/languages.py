"""Texts of a page in both languages: a page is made once, often in a pod, and its reader chooses the language.

A text is written twice, and ``wukong/report/language.css`` hides one of the two by the language of the page's root
element. An attribute holds English, and Chinese beside it in a ``data-zh-`` attribute, which
``wukong/report/language.js`` puts in its place.
"""

import re
from collections.abc import Callable, Iterable, Mapping

from markupsafe import Markup, escape

from wukong.runtime import language

_BOTH = Markup('<span class="in-en" lang="en">{}</span><span class="in-zh" lang="zh-CN">{}</span>')
_CHINESE = re.compile("[\u4e00-\u9fff]")
_ENGLISH = re.compile(r"[A-Za-z]{2}\S* .*[A-Za-z]{2}")  # two words: one alone may be a name, which has no language

SWITCH = Markup(
    '<button type="button" class="language" data-language><span class="in-en" lang="zh-CN">中文</span>'
    '<span class="in-zh" lang="en">English</span></button>'
)
"""The button that exchanges the languages."""


class Bilingual(Markup):
    """HTML with a text in both languages. As a part of another such text it is written once in each language.

    Attributes:
        english: HTML of the English text alone.
        chinese: HTML of the Chinese text alone.
    """

    english: Markup
    chinese: Markup

    @classmethod
    def of(cls, english: Markup, chinese: Markup, html: Markup | None = None) -> "Bilingual":
        """Return a text in both languages.

        Args:
            english: HTML of the English text.
            chinese: HTML of the Chinese text.
            html: what stands for both where they are equal.
        """
        made = cls(_BOTH.format(english, chinese) if html is None else html)
        made.english, made.chinese = english, chinese
        return made


def both(message: str, **values: object) -> Bilingual:
    """Return a message of a template in both languages; templates know it as ``_``.

    Args:
        message: HTML, with a field for each value, outside of tags. A whole number has ``:,`` after its name.
        values: what stands in the fields. Text is escaped, and has its own language. What is in both languages already
            is in one of them in each.
    """
    english, chinese = _filled(Markup, message, values, _marked)
    return Bilingual.of(english, chinese)


def spoken(text: str) -> Bilingual:
    """Return a text that was made elsewhere in both languages, escaped; templates know it as the filter ``spoken``."""
    chinese = language.chinese(text)
    return Bilingual.of(escape(text), escape(chinese), _marked(text) if chinese == text else None)


def sentences(texts: Iterable[str]) -> Bilingual:
    """Return sentences that were made elsewhere as one text in both languages; templates know it as a filter."""
    each = [spoken(text) for text in texts]
    return Bilingual.of(Markup(" ").join(one.english for one in each), Markup("").join(one.chinese for one in each))


def attribute(name: str, message: str, **values: object) -> Markup:
    """Return an attribute of an HTML element in both languages.

    Args:
        name: of the attribute, for instance ``alt``.
        message: text, with a field for each value.
        values: what stands in the fields.
    """
    english, chinese = _filled(escape, message, values, escape)
    return Markup('{0}="{1}" data-zh-{0}="{2}"').format(name, english, chinese)


def title(message: str, **values: object) -> Markup:
    """Return the ``title`` element of a page in both languages; the arguments are those of ``attribute``."""
    english, chinese = _filled(escape, message, values, escape)
    return Markup('<title data-zh-text="{1}">{0}</title>').format(english, chinese)


def lang(text: str) -> Markup:
    """Return the attribute ``lang``, with a space before it, of an element that holds a text which is not translated.

    It is empty where a text has no language, as a number or a name has none.
    """
    spoken_in = "zh-CN" if _CHINESE.search(text) else "en" if _ENGLISH.search(text) else ""
    return Markup(' lang="{}"').format(spoken_in) if spoken_in else Markup()


def _marked(text: str) -> Markup:
    """Return a text that is not translated, with its language."""
    return Markup("<span{}>{}</span>").format(lang(text), text) if lang(text) else escape(text)


def _filled(
    html: Callable[[str], Markup], message: str, values: Mapping[str, object], text: Callable[[str], Markup]
) -> tuple[Markup, Markup]:
    """Return a message in English and in Chinese, with its values.

    Args:
        html: makes HTML of the message.
        message: the message.
        values: by the names of its fields.
        text: makes HTML of a value that is text.
    """

    def shown(value: object, spoken_in: str) -> object:
        if isinstance(value, Markup):
            return getattr(value, spoken_in, value)
        return text(value) if isinstance(value, str) else f"{value:,}" if isinstance(value, int) else value

    # A message that is not translated is English in both.
    formats = {"english": message, "chinese": language.chinese(message)}
    english, chinese = (
        html(each.replace(":,}", "}")).format(**{name: shown(value, spoken_in) for name, value in values.items()})
        for spoken_in, each in formats.items()
    )
    return english, chinese
