"""Person names, which section 3.2 replaces by ``<人名>``.

Taggers say how likely each string of a caption is a person's name; the set of strings that do not overlap with the
greatest sum of log odds above a least is masked. All happens on a form of the caption in which full-width and
Traditional characters are replaced one for one, so that places in it are places in the caption.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import log
from typing import Literal
from unicodedata import normalize

from wukong.curate.names import tagger
from wukong.curate.names.tagger import Span
from wukong.curate.text.simplified import table

Care = Literal["precise", "balanced", "thorough"]

MASK = "<人名>"

LEAST: dict[Care, float] = {"precise": 2.0, "balanced": 0.5, "thorough": -1.0}
"""Log odds of a name above which it is masked. What each comes to is in ``benchmarks/README.md``."""

_HAN = re.compile("[\u3400-\u9fff]")
# Longer captions are read in windows that overlap; a name is taken from the window in whose inner part it begins.
_WINDOW, _OVERLAP = 128, 32


def mask(captions: Iterable[str], care: Care = "balanced") -> list[str]:
    """Replace every person name in each caption by ``<人名>``."""
    texts = list(captions)
    return [_replace(text, spans) for text, spans in zip(texts, find(texts, care), strict=True)]


def find(captions: Sequence[str], care: Care = "balanced") -> list[list[Span]]:
    """Find the person names in each caption, as places of the first character and after the last, in order.

    A caption that holds ``<人名>`` was masked before, and none is found in it: masking twice changes nothing.

    Args:
        captions: any strings.
        care: ``precise`` masks fewer words that are no names, ``thorough`` leaves fewer names unmasked.
    """
    read: list[tuple[int, int, str]] = []
    for number, caption in enumerate(captions):
        if MASK not in caption:
            read += [(number, start, text) for start, text in _windows(plain(caption)) if _HAN.search(text)]
    likely: list[dict[Span, float]] = [{} for _ in captions]
    for (number, first, text), spans in zip(read, tagger.load().read([text for *_, text in read]), strict=True):
        length = len(captions[number])
        for (start, end), sure in spans.items():
            if _is_inner(start, text, first, length):
                likely[number][first + start, first + end] = sure
    return [chosen(spans, LEAST[care]) for spans in likely]


def suspects(captions: Sequence[str]) -> list[bool]:
    """Whether a masked caption may still hold a name: more is suspected than ``mask`` replaces."""
    return [bool(spans) for spans in find([caption.replace(MASK, "。") for caption in captions], "thorough")]


def chosen(likely: Mapping[Span, float], least: float) -> list[Span]:
    """The strings to mask, of those with a probability, by the least log odds; in order."""
    return best(list(likely), [log(sure / (1 - sure)) - least for sure in likely.values()])


def best(spans: Sequence[Span], scores: Sequence[float]) -> list[Span]:
    """The spans, none overlapping another, whose scores have the greatest sum; in order."""
    # By where the spans end: the best sum so far, the last span in it, and the number of the state before that.
    states: list[tuple[int, float, Span, int]] = [(0, 0.0, (0, 0), 0)]
    for (start, end), score in sorted(zip(spans, scores, strict=True), key=lambda item: item[0][1]):
        if score <= 0:
            continue
        before = next(number for number in range(len(states) - 1, -1, -1) if states[number][0] <= start)
        if states[before][1] + score > states[-1][1]:
            states.append((end, states[before][1] + score, (start, end), before))
    found, number = [], len(states) - 1
    while number:
        _, _, span, number = states[number]
        found.append(span)
    return found[::-1]


def _windows(text: str) -> Iterator[tuple[int, str]]:
    """Where each window begins, and its text."""
    for start in range(0, max(1, len(text) - _OVERLAP), _WINDOW - _OVERLAP):
        yield start, text[start : start + _WINDOW]


def _is_inner(start: int, window: str, first: int, length: int) -> bool:
    """Whether a place of a window is nearer to its middle than to the middle of a neighbour."""
    after_first = first == 0 or start >= _OVERLAP // 2
    before_last = first + len(window) == length or start < len(window) - _OVERLAP // 2
    return after_first and before_last


def _replace(text: str, spans: Sequence[Span]) -> str:
    pieces, end = [], 0
    for start, stop in spans:
        pieces += [text[end:start], MASK]
        end = stop
    return "".join([*pieces, text[end:]])


class _Plain(dict[int, int]):
    """Each character's half-width, Simplified form, worked out when first met."""

    def __missing__(self, code: int) -> int:
        form = "\ufffd" if 0xD800 <= code <= 0xDFFF else normalize("NFKC", chr(code))
        plain = ord(form) if len(form) == 1 else code
        plain = table().get(plain, plain)
        self[code] = plain
        return plain


_PLAIN = _Plain()


def plain(caption: str) -> str:
    """The caption with half-width and Simplified characters, one for one."""
    return caption.translate(_PLAIN)
