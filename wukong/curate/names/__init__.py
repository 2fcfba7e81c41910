"""Person names in captions, which section 3.2 of the paper replaces by ``<人名>``.

The taggers (``tagger.py``) give every span of a caption a probability that it is a whole name. Weighted interval
scheduling then chooses the spans to mask: non-overlapping spans that maximise the sum of log odds; spans below the
threshold are not candidates, and neither is a character that a word of the dictionary ends with or holds (话梅 has no
name 梅). The taggers read a normalised caption, in which full-width and Traditional characters are
replaced one for one, so that positions in it are positions in the caption.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import log
from typing import Literal
from unicodedata import normalize

from wukong.curate.names import tagger, word_lists
from wukong.curate.names.tagger import Span
from wukong.curate.text.simplified import table

Care = Literal["precise", "balanced", "thorough"]

MASK = "<人名>"

THRESHOLDS: dict[Care, float] = {"precise": 2.0, "balanced": 0.5, "thorough": -1.0}
"""Log odds above which a span is masked. ``benchmarks/README.md`` lists precision and recall at each."""

_HAN = re.compile("[\u3400-\u9fff]")
# Characters of a window and of the overlap of two windows. A longer caption is read in overlapping windows; a name is
# taken from the window in whose inner part it begins.
_WINDOW, _OVERLAP = 128, 32


def mask(captions: Iterable[str], care: Care = "balanced") -> list[str]:
    """Replace every person name in each caption by ``<人名>``."""
    texts = list(captions)
    return [_replace(text, spans) for text, spans in zip(texts, find(texts, care), strict=True)]


def find(captions: Sequence[str], care: Care = "balanced") -> list[list[Span]]:
    """Find the person names in each caption.

    A caption that contains ``<人名>`` has been masked before. No name is found in it, so masking twice changes nothing.

    Args:
        captions: any strings.
        care: ``precise`` masks fewer words that are no names, ``thorough`` leaves fewer names unmasked.

    Returns:
        For each caption the spans [start, end) of its names, in order, in characters.
    """
    windows: list[tuple[int, int, str]] = []
    for number, caption in enumerate(captions):
        if MASK not in caption:
            windows += [(number, start, text) for start, text in _windows(normalized(caption)) if _HAN.search(text)]
    probabilities: list[dict[Span, float]] = [{} for _ in captions]
    for (number, first, text), spans in zip(windows, tagger.load().read([w for *_, w in windows]), strict=True):
        length = len(captions[number])
        for span, probability in spans.items():
            if _is_inner(span[0], text, first, length):
                start, end = _without_marks(text, span)
                name = first + start, first + end
                probabilities[number][name] = max(probabilities[number].get(name, 0.0), probability)
    threshold = THRESHOLDS[care]
    found = [select(spans, threshold) if spans else [] for spans in probabilities]
    for number, chosen in enumerate(found):
        if any(end - start == 1 for start, end in chosen):
            words = word_lists.load().ordinary(normalized(captions[number]))
            names = {span: p for span, p in probabilities[number].items() if not _is_in_word(span, words)}
            found[number] = select(names, threshold)
    return found


def suspects(captions: Sequence[str]) -> list[bool]:
    """Whether a name may be left in each masked caption, by the threshold ``thorough``, the lowest."""
    return [bool(spans) for spans in find([caption.replace(MASK, "。") for caption in captions], "thorough")]


def select(probabilities: Mapping[Span, float], threshold: float) -> list[Span]:
    """Choose the spans to mask.

    Args:
        probabilities: the probability of each span that it is a whole name, above 0 and below 1.
        threshold: log odds; spans at or below it are not candidates.

    Returns:
        Non-overlapping spans, in order, that maximise the sum of log odds above the threshold.
    """
    return best_intervals(list(probabilities), [log(p / (1 - p)) - threshold for p in probabilities.values()])


def best_intervals(spans: Sequence[Span], weights: Sequence[float]) -> list[Span]:
    """Weighted interval scheduling (Kleinberg and Tardos 2005, "Algorithm Design", section 6.1).

    Returns:
        The non-overlapping spans whose weights have the greatest sum, in order. None has a weight of 0 or less.
    """
    # Solutions, sorted by where they end: end, sum of weights, last span, index of the solution without the last span.
    solutions: list[tuple[int, float, Span, int]] = [(0, 0.0, (0, 0), 0)]
    for (start, end), weight in sorted(zip(spans, weights, strict=True), key=lambda item: item[0][1]):
        if weight <= 0:
            continue
        before = next(index for index in range(len(solutions) - 1, -1, -1) if solutions[index][0] <= start)
        if solutions[before][1] + weight > solutions[-1][1]:
            solutions.append((end, solutions[before][1] + weight, (start, end), before))
    chosen, index = [], len(solutions) - 1
    while index:
        _, _, span, index = solutions[index]
        chosen.append(span)
    return chosen[::-1]


def _without_marks(text: str, span: Span) -> Span:
    """Return a span without the marks at its ends, such as a full stop, which are no part of a name."""
    start, end = span
    while start < end - 1 and not text[end - 1].isalnum():
        end -= 1
    while start < end - 1 and not text[start].isalnum():
        start += 1
    return start, end


def _is_in_word(span: Span, words: Iterable[Span]) -> bool:
    """Whether a span is one character of an ordinary word."""
    start, end = span
    return end - start == 1 and any(first <= start and end <= last for first, last in words)


def _windows(text: str) -> Iterator[tuple[int, str]]:
    """The start and the text of each window."""
    for start in range(0, max(1, len(text) - _OVERLAP), _WINDOW - _OVERLAP):
        yield start, text[start : start + _WINDOW]


def _is_inner(start: int, window: str, first: int, length: int) -> bool:
    """Whether a position is in the inner part of its window: each position is in that of exactly one window.

    Args:
        start: the position in the window.
        window: its text.
        first: the position of the window in the caption.
        length: the length of the caption.
    """
    after_first = first == 0 or start >= _OVERLAP // 2
    before_last = first + len(window) == length or start < len(window) - _OVERLAP // 2
    return after_first and before_last


def _replace(text: str, spans: Sequence[Span]) -> str:
    pieces, end = [], 0
    for start, stop in spans:
        pieces += [text[end:start], MASK]
        end = stop
    return "".join([*pieces, text[end:]])


class _Normalized(dict[int, int]):
    """By code point, that of the half-width, Simplified form. Computed on first use."""

    def __missing__(self, code: int) -> int:
        form = "\ufffd" if 0xD800 <= code <= 0xDFFF else normalize("NFKC", chr(code))
        half_width = ord(form) if len(form) == 1 else code
        simplified = table().get(half_width, half_width)
        self[code] = simplified
        return simplified


_NORMALIZED = _Normalized()


def normalized(caption: str) -> str:
    """The caption with half-width and Simplified characters; as many characters as before."""
    return caption.translate(_NORMALIZED)
