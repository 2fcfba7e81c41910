"""Person names found against the labelled captions: precision and recall with confidence intervals, jieba beside.

The recogniser is fitted on ``tuning/``; ``apart`` is the part to measure with, and its errors are not listed.

    python benchmarks/curate/names/score.py apart
"""

import argparse
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from wukong.curate import names
from wukong.curate.names.tagger import Span

Finder = Callable[[list[str]], list[list[Span]]]
FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Score:
    """Counts of one caption: spans labelled, found, equal; found that overlap one, labelled that overlap one."""

    labelled: int
    found: int
    exact: int
    found_overlapping: int
    labelled_overlapping: int


def tuning() -> list[Path]:
    """The files of captions to fit on."""
    return sorted((FOLDER / "tuning").glob("*.txt"))


def read(part: str, kind: str = "") -> list[tuple[str, list[Span]]]:
    """The captions of a file beside this one, of one in ``tuning/``, or with ``tuning`` of all in there.

    Returns:
        Each caption under a heading that ends in the kind, without brackets, and the spans of the names.
    """
    if part == "tuning":
        return [caption for path in tuning() for caption in read(path.stem, kind)]
    path = FOLDER / ("" if part.startswith("apart") else "tuning") / f"{part}.txt"
    captions, heading = [], ""
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            heading = line
        if not line or line.startswith("#") or not heading.endswith(kind):
            continue
        spans, text = [], ""
        for piece in re.split(r"(\[[^\]]*\])", line):
            bare = piece.strip("[]")
            if piece.startswith("["):
                spans.append((len(text), len(text) + len(bare)))
            text += bare
        captions.append((text, spans))
    return captions


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
    captions = read(part)
    found = finder([text for text, _ in captions])
    rows = np.array([list(vars(compare(spans, got)).values()) for (_, spans), got in zip(captions, found, strict=True)])
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
    hit = {text: bool(got) for (text, spans), got in zip(captions, found, strict=True) if not spans}
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
    parser.add_argument("part", choices=["tuning", "apart"])
    parser.add_argument("--errors", action="store_true", help="list the captions that differ (of the tuning part)")
    options = parser.parse_args()
    if options.errors and options.part != "tuning":
        parser.error("only the errors of the tuning part are listed")
    for care in names.LEAST:
        show(f"wukong, name_care: {care}", options.part, partial(names.find, care=care))
    show("jieba.posseg", options.part, with_jieba)
    if options.part == "apart":
        again = dict(read("apart_again"))
        show("the second who labelled them", options.part, lambda texts: [again[text] for text in texts])
    if options.errors:
        captions = read("tuning")
        for (text, spans), got in zip(captions, names.find([text for text, _ in captions]), strict=True):
            if set(spans) != set(got):
                print(text, [text[a:b] for a, b in spans], "->", [text[a:b] for a, b in got])


if __name__ == "__main__":
    main()
