"""What owners say about the use of a picture: ``X-Robots-Tag``, and the preferences of the IETF's AIPREF drafts.

Preferences stand in the header ``Content-Usage`` and in rules of robots.txt. Implemented are
draft-ietf-aipref-attach-05 (where they stand) and draft-ietf-aipref-vocab-07 (what they mean), both of 19 August 2026.

A statement is a word: ``noai``, ``noimageai``, ``noindex``, ``unavailable_after=DATE``, ``train-ai=n``, ``train-ai=y``,
``search=n`` or ``search=y``. Nothing is decided here: the crawl stores the statements of a picture in the column
``usage``, and the rule ``usage`` (``wukong/curate/rules/usage.py``) decides.
"""

import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

Said = frozenset[str]
"""Statements."""

NOTHING: Said = frozenset()

CATEGORIES = ("train-ai", "search")
"""The categories of use in the vocabulary; other labels are ignored, as it demands."""

_NOAI = frozenset({"noai", "noimageai"})
_NOINDEX = frozenset({"noindex", "noimageindex", "none"})
_WITH_VALUE = frozenset({"unavailable_after", "max-snippet", "max-image-preview", "max-video-preview"})
_BETWEEN = re.compile("[,;|，；]")
_WORD = re.compile(r"[\w-]+")
_NAMED = re.compile(r"\s*([^\s:,]+)\s*:\s*(.*)", re.DOTALL)

# Dictionaries of RFC 9651. No alternative begins like another, so matching takes linear time.
_KEY = r"[a-z*][a-z0-9_.*-]*"
_BARE = (
    r'(?:-?[0-9]{1,15}(?:\.[0-9]{1,3})?|"(?:[ !#-\[\]-~]|\\["\\])*"|[A-Za-z*][A-Za-z0-9!#$%&\'*+.^_`|~:/-]*'
    r'|:[A-Za-z0-9+/=]*:|\?[01]|@-?[0-9]{1,15}|%"(?:[ !#-$&-~]|%[0-9a-f]{2})*")'
)
_PARAMETERS = rf"(?:; *{_KEY}(?:={_BARE})?)*"
_ITEM = _BARE + _PARAMETERS
_LIST = rf"\( *(?:{_ITEM}(?: +{_ITEM})*)? *\){_PARAMETERS}"
_MEMBER = re.compile(rf"({_KEY})(?:=(?:({_BARE}){_PARAMETERS}|{_LIST})|{_PARAMETERS})")
_COMMA = re.compile(r"[ \t]*,[ \t]*")


def said_in(headers: Mapping[str, str], product: str) -> Said:
    """Return the statements in the headers of one answer.

    Args:
        headers: lower-case names; the values of several ``x-robots-tag`` headers are separated by line feeds.
        product: the crawler's name.
    """
    if "x-robots-tag" not in headers and "content-usage" not in headers:
        return NOTHING
    tags = (_of_robots_tag(line, product) for line in headers.get("x-robots-tag", "").split("\n"))
    return combined([*tags, preferences(headers.get("content-usage", ""))])


def preferences(text: str) -> Said:
    """Return what a statement of preference says of the known categories of use; nothing if it cannot be parsed.

    Args:
        text: a dictionary of RFC 9651, for instance ``train-ai=n, search=y``.
    """
    text = text.strip(" ")
    values: dict[str, str | None] = {}
    position = 0
    while position < len(text):
        member = _MEMBER.match(text, position)
        if member is None:
            return NOTHING
        values[member[1]] = member[2]
        position = member.end()
        if position < len(text):
            comma = _COMMA.match(text, position)
            if comma is None or comma.end() == len(text):
                return NOTHING
            position = comma.end()
    return frozenset(f"{name}={values[name]}" for name in CATEGORIES if values.get(name) in ("y", "n"))


def combined(statements: Iterable[Said]) -> Said:
    """Return what several parties say together: where one forbids a use and another allows it, it is forbidden."""
    said: Said = NOTHING.union(*statements)
    return said - {f"{name}=y" for name in CATEGORIES if f"{name}=n" in said}


def forbids_training(said: Said) -> bool:
    """Return whether statements keep a picture from being downloaded for training (``politeness.respect_noai``)."""
    return not said.isdisjoint(_NOAI)


def as_text(said: Said) -> str | None:
    """Return statements as they are stored; None if there is none."""
    return ", ".join(sorted(said)) or None


def from_text(text: str | None) -> Said:
    """Return stored statements."""
    return frozenset(text.split(", ")) if text else NOTHING


def _of_robots_tag(line: str, product: str) -> Said:
    """Read one ``X-Robots-Tag`` header, which may begin with the name of a crawler.

    Directives stand between commas. In doubt a refusal counts: other marks and spaces end a directive too. ``noai`` and
    ``noimageai`` are taken from headers for any crawler: they name a use, and the name is mostly that of the crawler
    that the owner knows. A date that is past or cannot be read makes ``unavailable_after`` a ``noindex``.
    """
    said = set(_NOAI.intersection(_words(line)))
    for_us = True
    pieces = _BETWEEN.split(line)
    for number, piece in enumerate(pieces):
        directive, named = piece, _NAMED.match(piece)
        if named is not None and named[1].lower() not in _WITH_VALUE:
            for_us = named[1].lower() in ("*", product.lower())
            directive, named = named[2], _NAMED.match(named[2])
        if not for_us:
            continue
        if named is not None and named[1].lower() == "unavailable_after":
            said.add(_until(named[2], pieces[number + 1 :]))
        elif not _NOINDEX.isdisjoint(_words(directive)[2 if named else 0 :]):  # the second word is the value
            said.add("noindex")
    return frozenset(said)


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _until(date: str, rest: list[str]) -> str:
    """Return what ``unavailable_after`` says now; a date may have commas, after which it goes on with a digit."""
    while rest and rest[0].strip()[:1].isdigit():
        date += "," + rest[0]
        rest = rest[1:]
    for read in (datetime.fromisoformat, parsedate_to_datetime):
        try:
            when = read(date.strip())
            when = when if when.tzinfo else when.replace(tzinfo=UTC)
            return f"unavailable_after={when.astimezone(UTC):%Y-%m-%d}" if when > datetime.now(UTC) else "noindex"
        except (ValueError, TypeError, OverflowError, IndexError):
            continue
    return "noindex"
