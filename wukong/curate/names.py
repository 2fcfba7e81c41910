"""Person names, which section 3.2 replaces by ``<人名>``.

Every string that may be a name is described by its characters, its neighbours, a dictionary, and what LAC makes of the
caption. A linear score over the description, fitted on labelled captions, says how likely it is a name, and the set of
strings that do not overlap with the greatest sum of scores is masked: a semi-Markov conditional random field (Sarawagi
and Cohen, 2004) over few candidates. LAC is slow, so it reads only captions in which the same kind of score without it,
the gate, sees a name. All happens on a form of the caption in which full-width and Traditional characters are replaced
one for one, so that places in it are places in the caption.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal
from unicodedata import normalize

from wukong.curate import lac, name_spans, name_words
from wukong.curate.name_spans import Candidates, Span
from wukong.curate.simplified import table

Care = Literal["precise", "balanced", "thorough"]

MASK = "<人名>"
_WEIGHTS = Path(__file__).parent / "name_lists" / "weights.json"


@dataclass(frozen=True)
class Weights:
    """What ``benchmarks/curate/names/fit.py`` fitted.

    Attributes:
        gate: of ``name_spans.FEATURES``, for the score without LAC.
        opens: least score of a candidate for its caption to be read by LAC, by care.
        score: of ``name_spans.FEATURES`` and ``LAC_FEATURES``.
        least: score above which a candidate is worth masking, by care.
    """

    gate: tuple[float, ...]
    opens: dict[str, float]
    score: tuple[float, ...]
    least: dict[str, float]


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
    words, weights = name_words.load(), load_weights()
    texts = [plain(caption) for caption in captions]
    passed: list[tuple[int, Candidates]] = []
    for place, text in enumerate(texts):
        if MASK in text:
            continue
        candidates = name_spans.propose(text, words)
        if any(_dot(weights.gate, features) > weights.opens[care] for features in candidates.features):
            passed.append((place, candidates))
    result: list[list[Span]] = [[] for _ in captions]
    readings = lac.load().read([texts[place] for place, _ in passed])
    for (place, proposed), reading in zip(passed, readings, strict=True):
        candidates = name_spans.add_read(proposed, reading, words)
        scores = [
            _dot(weights.score, features + name_spans.read_features(span, reading)) - weights.least[care]
            for span, features in zip(candidates.spans, candidates.features, strict=True)
        ]
        result[place] = best(candidates.spans, scores)
    return result


def suspects(captions: Sequence[str]) -> list[bool]:
    """Whether a masked caption may still hold a name: more is suspected than ``mask`` replaces."""
    return [bool(spans) for spans in find([caption.replace(MASK, "。") for caption in captions], "thorough")]


def best(spans: Sequence[Span], scores: Sequence[float]) -> list[Span]:
    """The spans, none overlapping another, whose scores have the greatest sum; in order."""
    # By where the spans end: the best sum so far, and the spans that give it.
    chosen: list[tuple[int, float, tuple[Span, ...]]] = [(0, 0.0, ())]
    for (start, end), score in sorted(zip(spans, scores, strict=True), key=lambda item: item[0][1]):
        if score <= 0:
            continue
        _, total, before = next(state for state in reversed(chosen) if state[0] <= start)
        if total + score > chosen[-1][1]:
            chosen.append((end, total + score, (*before, (start, end))))
    return list(chosen[-1][2])


@lru_cache(maxsize=1)
def load_weights() -> Weights:
    """The committed weights."""
    data = json.loads(_WEIGHTS.read_text(encoding="utf-8"))
    features = (*name_spans.FEATURES, *name_spans.LAC_FEATURES)
    return Weights(
        tuple(data["gate"][name] for name in name_spans.FEATURES),
        data["opens"],
        tuple(data["score"][name] for name in features),
        data["least"],
    )


def _dot(weights: Sequence[float], features: Sequence[float]) -> float:
    return sum(map(float.__mul__, weights, features))


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
