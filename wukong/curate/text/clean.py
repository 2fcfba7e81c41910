"""Correct captions before any rule reads them: remove markup, convert to Simplified. Off by default, as in the paper.

This changes the captions that a model will read. ``normalize`` makes the form in which captions are only compared.
"""

import html
from functools import lru_cache
from typing import Any

import polars as pl

from wukong.config.filter import Filter
from wukong.curate.text.simplified import traditional

_ENTITY = r"&(?:[a-zA-Z][a-zA-Z0-9]{1,31}|#[0-9]{1,7}|#[xX][0-9a-fA-F]{1,6});"
_TAG = r"(?s)<!--.*?-->|</?[a-zA-Z][^<>]*>"
# Pictographs with their modifiers (variation selectors, joiners, skin tones, tags), flags, keycaps. Not © ® ™.
_EMOJI = (
    r"(?:[\p{Extended_Pictographic}--[©®™]][\u{FE0F}\u{200D}\u{1F3FB}-\u{1F3FF}\u{E0020}-\u{E007F}]*)+"
    r"|[\u{1F1E6}-\u{1F1FF}]+|[0-9#*]\u{FE0F}?\u{20E3}"
)


def cleaned(captions: pl.Series, settings: Filter) -> pl.Series:
    """Remove HTML and emoji (``clean_markup``) and convert to Simplified Chinese (``simplify``), as the settings ask.

    Never raises on any caption; a caption of nothing but markup becomes empty.
    """
    if settings.clean_markup:
        captions = without_markup(captions)
    return in_simplified(captions) if settings.simplify else captions


def without_markup(captions: pl.Series) -> pl.Series:
    """Replace HTML entities by their characters, and remove tags and emoji; no double spaces remain in their place."""
    marked = captions.str.contains(rf"[<&]|{_EMOJI}").arg_true()
    # Twice, because page titles are often escaped twice (&amp;lt;). Tags are removed later: they may be escaped too.
    resolved = captions.gather(marked)
    for _ in range(2):
        entities = resolved.str.contains(_ENTITY).arg_true()
        resolved = resolved.clone().scatter(entities, [_resolved(text) for text in resolved.gather(entities)])
    plain = resolved.str.replace_all(_TAG, " ").str.replace_all(_EMOJI, " ")
    plain = plain.str.replace_all(r"\s+", " ").str.strip_chars()
    return captions.clone().scatter(marked, plain)


def in_simplified(captions: pl.Series) -> pl.Series:
    """Convert captions to Simplified characters with OpenCC's ``t2s``: by phrase, then by character."""
    places, convert = traditional(captions), _opencc().convert
    return captions.clone().scatter(places, [convert(text) for text in captions.gather(places)])


def _resolved(text: str) -> str:
    # A reference to a surrogate or to nothing becomes a replacement character, as in a browser.
    return html.unescape(text).encode("utf-8", "replace").decode()


@lru_cache(maxsize=1)
def _opencc() -> Any:
    from opencc import OpenCC

    return OpenCC("t2s")
