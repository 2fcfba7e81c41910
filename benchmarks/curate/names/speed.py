"""Captions a second in which person names are found, one thread, beside jieba.posseg.

The captions are made of the labelled ones: exactly 15 % have a name, and captions without a name are joined with spaces
until the mean length is 17 characters. A quarter of the captions without a name is of the hard kind.

    OMP_NUM_THREADS=1 python benchmarks/curate/names/speed.py
"""

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import score

from wukong.curate import names

LENGTH, SHARE, HARD = 17, 0.15, 0.25


def assembled(count: int) -> list[str]:
    """Captions with a mean length of 17 characters, 15 % of them with a name."""
    captions = score.read("train")
    named = [text for text, spans in captions if spans]
    nameless = {kind: [text for text, spans in score.read("train", kind) if not spans] for kind in ("common", "hard")}
    generator = np.random.default_rng(0)

    def without() -> str:
        return str(generator.choice(nameless["hard" if generator.random() < HARD else "common"]))

    result: list[str] = []
    held = 0
    for number in generator.permutation(count):
        text = str(generator.choice(named)) if number < SHARE * count else without()
        # Lengthen a caption while the mean is too low.
        while held + len(text) < LENGTH * (len(result) + 1) - LENGTH / 3:
            text += " " + without()
        result.append(text)
        held += len(text)
    return result


def rate(finder: Callable[[list[str]], list[list[score.Span]]], captions: list[str], runs: int) -> list[float]:
    """Captions a second in each of some runs, after a warm-up that is not counted."""
    finder(captions[:2000])
    rates = []
    for _ in range(runs):
        start = time.perf_counter()
        finder(captions)
        rates.append(len(captions) / (time.perf_counter() - start))
    return rates


def main() -> None:
    """Print the rates."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--captions", type=int, default=20_000)
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    captions = assembled(options.captions)
    mean = sum(map(len, captions)) / len(captions)
    print(f"{len(captions)} captions, {mean:.1f} characters on average, {SHARE:.0%} with a name")
    for name, finder, part in (
        ("wukong", names.find, captions),
        ("jieba.posseg", score.with_jieba, captions[: options.captions // 5]),
    ):
        rates = rate(finder, part, options.runs)
        print(f"  {name:13} {statistics.median(rates):8,.0f} captions/s   ({min(rates):,.0f} to {max(rates):,.0f})")


if __name__ == "__main__":
    main()
