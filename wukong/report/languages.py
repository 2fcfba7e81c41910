"""Texts of a page in both languages: a page is made once, often in a pod, and its reader chooses the language.

A text is written twice, and ``language.css`` hides one of the two by the language of the page's root element. An
attribute holds English, and Chinese beside it in a ``data-zh-`` attribute, which ``language.js`` puts in its place.
"""

from markupsafe import Markup, escape

from wukong.runtime import language

_BOTH = Markup('<span class="in-en" lang="en">{}</span><span class="in-zh" lang="zh-CN">{}</span>')

SWITCH = Markup(
    '<button type="button" class="language" data-language><span class="in-en" lang="zh-CN">中文</span>'
    '<span class="in-zh" lang="en">English</span></button>'
)
"""The button that exchanges the languages."""


def both(message: str, **values: object) -> Markup:
    """Return a message of a template in both languages; templates know it as ``_``.

    Args:
        message: HTML, with a field for each value.
        values: what stands in the fields. Text is escaped; what is in both languages already stays so.
    """
    english, chinese = Markup(message), Markup(language.chinese_format(message))  # noqa: S704, texts of this project
    return _BOTH.format(english.format(**values), chinese.format(**values))


def spoken(text: str) -> Markup:
    """Return a text that was made elsewhere in both languages, escaped; templates know it as the filter ``spoken``."""
    chinese = language.chinese(text)
    return escape(text) if chinese == text else _BOTH.format(text, chinese)


def attribute(name: str, message: str, **values: object) -> Markup:
    """Return an attribute of an HTML element in both languages.

    Args:
        name: of the attribute, for instance ``alt``.
        message: text, with a field for each value.
        values: what stands in the fields.
    """
    english, chinese = message.format(**values), language.chinese_format(message).format(**values)
    return Markup('{0}="{1}" data-zh-{0}="{2}"').format(name, english, chinese)


def title(message: str, **values: object) -> Markup:
    """Return the ``title`` element of a page in both languages; the arguments are those of ``attribute``."""
    english, chinese = message.format(**values), language.chinese_format(message).format(**values)
    return Markup('<title data-zh-text="{1}">{0}</title>').format(english, chinese)
