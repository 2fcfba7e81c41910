"""Disguised words that are found, innocent lines in which words are found, and captions a second.

    python -m benchmarks.curate.words.bench [--captions 1000] [--seed 7] [--record FILE] [--work FOLDER]

The first run fetches four Debian packages (apt-get), one of npm, and the demo's corpus. ``--record`` writes some of the
disguised captions into a file, which the tests read. It prints what it read, and ends with 1 if a target is missed.
"""

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import polars as pl

from benchmarks.curate.words import obfuscate, prose
from infra import corpus
from wukong.config.disguise import Disguise
from wukong.curate import sensitive_words
from wukong.curate.sensitive_words import SensitiveWords
from wukong.curate.text.normalize import normal_forms

RECOMMENDED: tuple[Disguise, ...] = ("signs", "letters", "pinyin", "shapes", "homophones")
LEAST_RECALL, MOST_FALSE = 0.95, 0.0005
RECORDED = 40
"""Captions of each kind that ``--record`` writes."""

ROUNDS = 5


def found(words: SensitiveWords, texts: Sequence[str]) -> int:
    """In how many texts a word is found."""
    categories = words.categories_of_normal(normal_forms(pl.Series(texts, dtype=pl.String)))
    return len(categories) - categories.null_count()


def seconds(words: SensitiveWords, captions: pl.Series) -> float:
    """The least time of some rounds."""

    def once() -> float:
        started = time.process_time()
        words.categories_of_normal(captions)
        return time.process_time() - started

    return min(once() for _ in range(ROUNDS))


def innocent(work: Path) -> Mapping[str, list[str]]:
    """Texts in which no word of the default lists stands, by where they are from."""
    texts = {prose.archive(package, work).name: prose.lines(package, work) for package in prose.PACKAGES}
    return texts | {"titles of the demo's pictures": [entry.title for entry in corpus.prepare().entries]}


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--captions", type=int, default=1_000, help="of each kind")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--record", type=Path)
    parser.add_argument("--work", type=Path, default=corpus.cache_folder() / "bench-words")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    plain, seeing = sensitive_words.load(), sensitive_words.load(disguises=RECOMMENDED)
    listed = [
        line for file in sensitive_words.DEFAULT_LISTS.glob("*.txt") for line in file.read_text("utf-8").split("\n")
    ]
    words = sorted(word for word in listed if word and not word.startswith("#"))
    missed, recorded = False, []
    print("recall, of captions with a word in disguise:        as listed   its kind   all kinds")
    for name, (kind, write) in obfuscate.kinds(obfuscate.read(options.work, words)).items():
        made = obfuscate.captions(write, words, options.captions, options.seed)
        captions = [caption for _, caption in made]
        alone = sensitive_words.load(disguises=[kind])
        shares = [found(each, captions) / len(made) for each in (plain, alone, seeing)]
        missed |= shares[-1] < LEAST_RECALL
        print(f"  {name:28} {kind:11} {len(made):6,} {shares[0]:11.3f} {shares[1]:10.3f} {shares[2]:11.3f}")
        recorded += [f"{name}\t{word}\t{caption}\n" for word, caption in made[:RECORDED]]
    if options.record:
        options.record.write_text("".join(recorded), encoding="utf-8")

    print("lines of innocent text with a word:                 as listed   all kinds, and captions a second")
    for name, texts in innocent(options.work).items():
        normal = normal_forms(pl.Series(texts))
        hits = [found(each, texts) for each in (plain, seeing)]
        missed |= hits[1] > MOST_FALSE * len(texts)
        rates = [len(texts) / seconds(each, normal) for each in (plain, seeing)]
        print(f"  {name:46} {len(texts):6,} {hits[0]:5} {hits[1]:5} ({hits[1] / len(texts):.4%})"
              f" {rates[0]:12,.0f} {rates[1]:10,.0f}")  # fmt: skip
    sys.exit(missed)


if __name__ == "__main__":
    main()
