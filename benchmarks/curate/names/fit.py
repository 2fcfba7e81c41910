"""Fit ``wukong/curate/name_lists/weights.json`` on the labelled captions, and show what cross-validation makes of it.

The score is a semi-Markov conditional random field's: the likelihood of the labelled set of names among all sets of
candidates that do not overlap, with an L2 penalty. Each caption counts half as it is and half as if nobody in it were
on the list of well-known people, so that the weights hold for people who are not. Words of jieba's dictionary in plain
contexts are added as captions without a name, half of them as if the dictionary lacked them.

    python benchmarks/curate/names/fit.py            # cross-validate, then write the weights
    python benchmarks/curate/names/fit.py --errors   # and list what cross-validation got wrong
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import exp, log
from pathlib import Path

import ahocorasick_rs
import numpy as np
import numpy.typing as npt
import score
from scipy.optimize import minimize

from wukong.curate import lac, name_spans, name_words, names
from wukong.curate.name_spans import Span

Labelled = tuple[str, list[Span]]
Floats = npt.NDArray[np.float64]

PENALTY = 0.1
FOLDS = 8
WORDS = 3000
WORD_WEIGHT = 0.4
WORD_CONTEXTS = ("{}", "{}", "{}图片", "手绘{}", "{}简笔画", "一张{}的照片")
LEAST = {"precise": 1.2, "balanced": 0.2, "thorough": -1.0}
# Share of the labelled names in whose caption the gate has to see one.
OPENS = {"precise": 0.99, "balanced": 0.99, "thorough": 0.995}
TARGET = Path(__file__).parents[3] / "wukong" / "curate" / "name_lists" / "weights.json"


@dataclass(frozen=True)
class Case:
    """A caption: its labels, its candidates, their features and what it counts."""

    text: str
    labels: list[Span]
    spans: list[Span]
    features: Floats
    weight: float

    @cached_property
    def by_place(self) -> tuple[list[list[tuple[int, int]]], list[list[tuple[int, int]]]]:
        """The candidates that end and that begin at each place: the other end and the number."""
        ending: list[list[tuple[int, int]]] = [[] for _ in range(len(self.text) + 1)]
        beginning: list[list[tuple[int, int]]] = [[] for _ in range(len(self.text) + 1)]
        for number, (start, end) in enumerate(self.spans):
            ending[end].append((start, number))
            beginning[start].append((end, number))
        return ending, beginning

    def expected(self, scores: Sequence[float]) -> tuple[float, list[float]]:
        """Log of the sum over all sets of candidates, and the probability of each candidate (forward-backward)."""
        ending, beginning = self.by_place
        powers = [exp(min(value, 50.0)) for value in scores]
        before, behind = [1.0], [1.0]
        for place in range(1, len(self.text) + 1):
            before.append(before[-1] + sum(before[start] * powers[number] for start, number in ending[place]))
        for place in range(len(self.text) - 1, -1, -1):
            there = sum(behind[len(self.text) - end] * powers[number] for end, number in beginning[place])
            behind.append(behind[-1] + there)
        total, length = before[-1], len(self.text)
        spans = enumerate(self.spans)
        return log(total), [before[low] * powers[n] * behind[length - high] / total for n, (low, high) in spans]


def cases(captions: Sequence[Labelled], words: name_words.NameWords, weight: float, read: bool) -> list[Case]:
    """Describe captions, with LAC's reading or without."""
    texts = [names.plain(text) for text, _ in captions]
    readings = lac.load().read(texts)
    result = []
    for text, (_, labels), reading in zip(texts, captions, readings, strict=True):
        found = name_spans.propose(text, words)
        features = found.features
        if read:
            found = name_spans.add_read(found, reading, words)
            described = zip(found.spans, found.features, strict=True)
            features = [plain + name_spans.read_features(span, reading) for span, plain in described]
        width = len(name_spans.FEATURES) + read * len(name_spans.LAC_FEATURES)
        table = np.array(features, float).reshape(len(found.spans), width)
        result.append(Case(text, labels, found.spans, table, weight))
    return result


def fit(some: Sequence[Case]) -> Floats:
    """The weights of greatest penalised likelihood."""
    used = [case for case in some if case.spans]
    features = np.concatenate([case.features for case in used])
    labels = np.concatenate([[span in case.labels for span in case.spans] for case in used]).astype(float)
    counts = np.concatenate([[case.weight] * len(case.spans) for case in used])
    ends = np.cumsum([len(case.spans) for case in used]).tolist()

    def loss(weights: Floats) -> tuple[float, Floats]:
        scores = features @ weights
        listed, total, chances, start = scores.tolist(), 0.0, [], 0
        for case, end in zip(used, ends, strict=True):
            partition, expected = case.expected(listed[start:end])
            total += case.weight * partition
            chances += expected
            start = end
        penalised = np.concatenate([[0.0], weights[1:]])
        value = total - (counts * labels) @ scores + PENALTY * penalised @ penalised / 2
        return value, PENALTY * penalised - features.T @ (counts * (labels - chances))

    return np.asarray(minimize(loss, np.zeros(features.shape[1]), jac=True, method="L-BFGS-B").x)


def dictionary_words(words: name_words.NameWords) -> list[Labelled]:
    """Captions of one word of the dictionary that is no name."""
    pool = [
        word
        for word, frequency, flag in name_words.dictionary()
        if frequency >= 20 and 2 <= len(word) <= 4 and word not in words.lexicon and word not in words.people
        if flag.startswith(("n", "v", "a", "i", "l"))
    ]
    drawn = np.random.default_rng(0).choice(pool, WORDS, replace=False)
    return [(WORD_CONTEXTS[number % len(WORD_CONTEXTS)].format(word), []) for number, word in enumerate(drawn)]


def lacking(words: name_words.NameWords, captions: Sequence[Labelled]) -> name_words.NameWords:
    """The tables without the words that stand in the captions."""
    inside = {
        text[low:high] for text, _ in captions for low in range(len(text)) for high in range(low + 2, len(text) + 1)
    }
    left = {word: likely for word, likely in words.words.items() if word not in inside}
    longer = [word for word in left if len(word) > 1]
    finder = ahocorasick_rs.AhoCorasick(longer)
    return replace(words, words=left, finder=finder, likely=tuple(left[word] for word in longer))


def report(some: Sequence[Case], scores: Sequence[Floats], errors: bool) -> None:
    """Precision, recall and false positives at each setting of care."""
    for care, least in LEAST.items():
        found = [names.best(case.spans, (values - least).tolist()) for case, values in zip(some, scores, strict=True)]
        rows = np.array([list(vars(score.compare(c.labels, got)).values()) for c, got in zip(some, found, strict=True)])
        labelled, spans, exact, overlapping, reached = rows.sum(0)
        nameless = rows[rows[:, 0] == 0]
        rates = ""
        if labelled:
            rates = f"exact {exact / spans:.3f} / {exact / labelled:.3f}   overlapping {overlapping / spans:.3f} / "
            rates += f"{reached / labelled:.3f}   "
        print(f"  {care:9} {rates}captions without a name hit {(nameless[:, 1] > 0).sum()} of {len(nameless)}")
        if errors and care == "balanced":
            for case, got in zip(some, found, strict=True):
                if got != case.labels:
                    print("   ", case.text, *([case.text[slice(*s)] for s in spans] for spans in (case.labels, got)))


def main() -> None:
    """Cross-validate, fit, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--errors", action="store_true", help="list what cross-validation got wrong")
    options = parser.parse_args()
    words = name_words.load()
    unknown = replace(words, people=frozenset())
    captions = score.read("tuning")
    plain = dictionary_words(words)
    parts: dict[bool, list[Case]] = {}
    for read in (True, False):
        both = [cases(captions, known, 0.5, read) for known in (words, unknown)]
        known, strange = plain[: WORDS // 2], plain[WORDS // 2 :]
        both += [cases(known, words, WORD_WEIGHT, read), cases(strange, lacking(words, strange), WORD_WEIGHT, read)]
        parts[read] = [case for some in both for case in some]
    count = len(captions)
    folds = np.random.default_rng(0).integers(0, FOLDS, count)
    folds = np.concatenate([folds, folds, np.arange(len(plain)) % FOLDS])
    scores: list[Floats] = [np.zeros(0)] * len(folds)
    for fold in range(FOLDS):
        weights = fit([case for case, other in zip(parts[True], folds, strict=True) if other != fold])
        for number in np.flatnonzero(folds == fold):
            scores[number] = parts[True][number].features @ weights
    print(f"{FOLDS}-fold cross-validation on {count} captions, precision / recall")
    for title, part in (
        ("as they are", slice(count)),
        ("with nobody well known", slice(count, 2 * count)),
        ("words of the dictionary", slice(2 * count, None)),
    ):
        print(title)
        report(parts[True][part], scores[part], options.errors)
    weights, gate = fit(parts[True]), fit(parts[False])
    # The gate opens for its share of the names that the score then finds.
    best = []
    for full, bare in zip(parts[True][: 2 * count], parts[False][: 2 * count], strict=True):
        found = names.best(full.spans, (full.features @ weights - LEAST["balanced"]).tolist())
        best += [max([-99.0, *(bare.features @ gate)]) for span in full.labels if span in found]
    best.sort()
    opens = {care: best[int((1 - share) * len(best))] for care, share in OPENS.items()}
    nameless = [max([-99.0, *(case.features @ gate)]) for case in parts[False][:count] if not case.labels]
    shares = ", ".join(f"{care} {np.mean(np.array(nameless) > least):.3f}" for care, least in opens.items())
    print(f"captions without a name that the gate lets through: {shares}")
    data = {
        "gate": {name: round(float(w), 4) for name, w in zip(name_spans.FEATURES, gate, strict=True)},
        "opens": {care: round(float(value), 4) for care, value in opens.items()},
        "score": {
            name: round(float(w), 4)
            for name, w in zip((*name_spans.FEATURES, *name_spans.LAC_FEATURES), weights, strict=True)
        },
        "least": LEAST,
    }
    TARGET.write_text(json.dumps(data, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
