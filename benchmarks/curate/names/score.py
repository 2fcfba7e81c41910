"""Person names found against the labelled captions: precision and recall with confidence intervals, jieba beside.

The recogniser is fitted on ``captions/train/``. ``captions/test.txt`` measures it; its errors are never listed.

    python benchmarks/curate/names/score.py test
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from tools.name_tagger import captions
from tools.name_tagger.captions import Labelled
from wukong.curate import names
from wukong.curate.names.tagger import Span

Finder = Callable[[list[str]], list[list[Span]]]
FOLDER = Path(__file__).parent / "captions"


@dataclass(frozen=True)
class Score:
    """Counts of one caption: spans labelled, found, equal; found that overlap one, labelled that overlap one."""

    labelled: int
    found: int
    exact: int
    found_overlapping: int
    labelled_overlapping: int


def train() -> list[Path]:
    """The files of captions that the taggers are fitted on."""
    return sorted((FOLDER / "train").glob("*.txt"))


def read(part: str, kind: str = "") -> list[Labelled]:
    """The captions of a part.

    Args:
        part: ``test``, ``test_second_labels``, ``train`` for all files in there, or the name of one of them.
        kind: only captions below a heading that ends in this.
    """
    if part == "train":
        return [caption for path in train() for caption in captions.read(path, kind)]
    return captions.read(FOLDER / ("" if part.startswith("test") else "train") / f"{part}.txt", kind)


def compare(labelled: Sequence[Span], found: Sequence[Span]) -> Score:
    """Compare the spans of one caption."""

    def overlaps(span: Span, others: Sequence[Span]) -> bool:
        return any(span[0] < end and start < span[1] for start, end in others)

    return Score(
        len(labelled),
        len(found),
        len(set(labelled) & set(found)),
        sum(overlaps(span, labelled) for span in found),
        sum(overlaps(span, found) for span in labelled),
    )


def measure(part: str, finder: Finder, draws: int = 2000) -> dict[str, list[float]]:
    """Precision and recall, exact and overlapping, each with its 95 % interval (bootstrap over captions), and the share
    of captions without a name in which one was found: of all, and of those of each kind that the part has."""
    labelled_captions = read(part)
    found = finder([text for text, _ in labelled_captions])
    pairs = list(zip(labelled_captions, found, strict=True))
    rows = np.array([list(vars(compare(spans, got)).values()) for (_, spans), got in pairs])
    generator = np.random.default_rng(0)
    sums = [rows.sum(0)] + [rows[generator.integers(0, len(rows), len(rows))].sum(0) for _ in range(draws)]
    labelled, spans, exact, found_overlapping, labelled_overlapping = np.array(sums).T.astype(float)
    values = {
        "exact precision": exact / np.maximum(spans, 1),
        "exact recall": exact / labelled,
        "overlap precision": found_overlapping / np.maximum(spans, 1),
        "overlap recall": labelled_overlapping / labelled,
    }
    result = {name: [value[0], *np.percentile(value[1:], [2.5, 97.5])] for name, value in values.items()}
    hit = {text: bool(got) for (text, spans), got in pairs if not spans}
    for kind in ("", "common", "hard"):
        hits = [hit[text] for text, spans in read(part, kind) if not spans]
        if hits:
            result[f"{kind} nameless captions hit".strip()] = [sum(hits) / len(hits), sum(hits), len(hits)]
    return result


def show(title: str, part: str, finder: Finder) -> None:
    """Print what ``measure`` gives."""
    print(title)
    for key, (value, low, high) in measure(part, finder).items():
        interval = f"{low:.0f} of {high:.0f}" if "hit" in key else f"95 % {low:.3f} to {high:.3f}"
        print(f"  {key:28} {value:.3f}   {interval}")


def with_jieba(texts: list[str]) -> list[list[Span]]:
    """What jieba.posseg tags ``nr``."""
    import jieba.posseg

    result = []
    for text in texts:
        spans, place = [], 0
        for word, flag in jieba.posseg.cut(text):
            if flag in ("nr", "nrt", "nrfg"):
                spans.append((place, place + len(word)))
            place += len(word)
        result.append(spans)
    return result


def main() -> None:
    """Print the table for one part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["train", "test"])
    parser.add_argument("--errors", action="store_true", help="list the captions that differ (of train alone)")
    options = parser.parse_args()
    if options.errors and options.part != "train":
        parser.error("only the errors in train are listed")
    for care in names.THRESHOLDS:
        show(f"wukong, name_care: {care}", options.part, partial(names.find, care=care))
    show("jieba.posseg", options.part, with_jieba)
    if options.part == "test":
        second = dict(read("test_second_labels"))
        show("the second labels", options.part, lambda texts: [second[text] for text in texts])
    if options.errors:
        labelled = read("train")
        for (text, spans), got in zip(labelled, names.find([text for text, _ in labelled]), strict=True):
            if set(spans) != set(got):
                print(text, [text[a:b] for a, b in spans], "->", [text[a:b] for a, b in got])


if __name__ == "__main__":
    main()
