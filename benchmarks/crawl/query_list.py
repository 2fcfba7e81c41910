"""Peak memory and time of ranking 8 million words by their frequency in 10 GB of text.

    python benchmarks/crawl/query_list.py [--words 8000000] [--gigabytes 10] [--check]

The vocabulary is a file of word vectors in text format, with words of two to five characters. The corpus is a folder of
files of 100 MB each. They are hard links to one file, so they take only 100 MB of disk, but all are read and counted.
``--check`` also counts one such file with a simple loop and compares the results.
"""

import argparse
import json
import os
import resource
import shutil
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np

from wukong.crawl import queries
from wukong.store import storage

FILE_BYTES = 100_000_000
HAN = np.arange(0x4E00, 0x4E00 + 6000)


def make_words(count: int, seed: int = 0) -> list[str]:
    """Return distinct words over 6,000 characters; a few characters are in most words."""
    rng = np.random.default_rng(seed)
    weights = 1 / np.arange(10, 10 + len(HAN))
    words: dict[str, None] = {}
    while len(words) < count:
        lengths = rng.choice([2, 3, 4, 5], p=[0.3, 0.35, 0.25, 0.1], size=count // 4)
        characters = rng.choice(HAN, p=weights / weights.sum(), size=int(lengths.sum()))
        text, place = "".join(map(chr, characters)), 0
        for length in lengths:
            words[text[place : place + length]] = None
            place += length
    return list(words)[:count]


def write_corpus(folder: Path, words: list[str], gigabytes: float) -> int:
    """Write lines of words, the first words far more often than the last; return the number of files."""
    rng = np.random.default_rng(1)
    with (folder / "00000.txt").open("w", encoding="utf-8") as stream:
        while stream.tell() < FILE_BYTES:
            places = (len(words) ** rng.random(200_000)).astype(np.int64) - 1
            for line in np.array_split(places, 10_000):
                stream.write("，".join(words[place] for place in line) + "。\n")
    files = max(1, round(gigabytes * 1e9 / (folder / "00000.txt").stat().st_size))
    for number in range(1, files):
        os.link(folder / "00000.txt", folder / f"{number:05d}.txt")
    return files


def by_a_loop(path: Path, words: list[str]) -> Counter[str]:
    """Count words by longest match from left to right, in the simplest way."""
    known, counts = set(words), Counter[str]()
    for line in path.read_text(encoding="utf-8").splitlines():
        place = 0
        while place < len(line):
            for length in (5, 4, 3, 2):
                if (word := line[place : place + length]) in known and len(word) == length:
                    counts[word] += 1
                    place += length
                    break
            else:
                place += 1
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--words", type=int, default=8_000_000)
    parser.add_argument("--gigabytes", type=float, default=10.0)
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="wukong-queries-"))
    try:
        reader, writer = os.pipe()
        if (child := os.fork()) == 0:  # make the words in another process, so that their memory is not measured
            words = make_words(options.words)
            with (folder / "vectors.txt").open("w", encoding="utf-8") as stream:
                stream.write(f"{len(words)} 4\n")
                stream.writelines(f"{word} 0.125 -0.5 0.25 1.0\n" for word in words)
            (folder / "corpus").mkdir()
            os.write(writer, str(write_corpus(folder / "corpus", words, options.gigabytes)).encode())
            os._exit(0)
        os.waitpid(child, 0)
        files = int(os.read(reader, 20))
        read = sum(path.stat().st_size for path in (folder / "corpus").iterdir())
        started = time.monotonic()
        ranked = queries.build(
            storage.from_path(folder / "vectors.txt"), [storage.from_path(folder / "corpus")], limit=200_000
        )
        seconds = time.monotonic() - started
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        result = {
            "words": options.words,
            "corpus_gb": round(read / 1e9, 2),
            "files": files,
            "seconds": round(seconds, 1),
            "peak_mib": round(peak),
            "kept": len(ranked),
        }
        if options.check:
            words = make_words(options.words)
            expected = {word: n * files for word, n in by_a_loop(folder / "corpus" / "00000.txt", words).items()}
            kept = dict(ranked)
            most_left_out = max((n for word, n in expected.items() if word not in kept), default=0)
            equal = all(expected[word] == count for word, count in ranked)
            result["equal"] = equal and min(kept.values()) >= most_left_out
        print(json.dumps(result))
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
