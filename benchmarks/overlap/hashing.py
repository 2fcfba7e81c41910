"""Decoding alone beside decoding and hashing (PDQ), in one run; ``pdqhash`` beside it; and the search for hashes.

    OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 python benchmarks/overlap/hashing.py [--pictures FOLDER]

Pictures are the demo's as a crawl stores them (256 pixels), or those of a folder, and the same at 800 pixels with grain
(about 100 KB each). All is timed in turns, a few batches of 64 at a time, in seconds of one core; the median of the
turns counts. A JSON line is printed for each size of picture, with how many bits differ from those of ``pdqhash``, and
for each number of hashes that are searched.
"""

import argparse
import io
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pdqhash
import psutil
from PIL import Image

from infra.corpus import catalogue
from wukong.curate import pdq
from wukong.curate.hash_search import HashSearch
from wukong.data.decoding import decode

BATCH = 64
TURNS = 15
COMPARED = 2_000
LARGE = (800, 608)
GRAIN = 18
TARGET = 0.8
SEARCHED = (1_000, 20_000, 400_000, 2_800_000)
QUERIES = 512


def pictures(folder: Path | None, count: int) -> list[bytes]:
    """Pictures as a crawl stores them, some of every source."""
    if folder is not None:
        files = sorted(path for path in folder.rglob("*") if path.suffix in {".jpg", ".png", ".webp"})
    else:
        corpus = catalogue.prepare()
        files = [corpus.file(entry) for entry in corpus.entries]
    step = max(1, len(files) // count)
    return [stored(path) for path in files[::step][:count]]


def stored(path: Path) -> bytes:
    """A picture of 256 pixels, as its JPEG."""
    data = path.read_bytes()
    image = decode(data, path.name)
    if path.suffix == ".jpg" and min(image.size) <= 256:
        return data
    scale = 256 / min(image.size)
    return encoded(image.resize((round(image.width * scale), round(image.height * scale))), 95)


def enlarged(data: bytes, seed: int) -> bytes:
    """The picture as a photograph of the web is: larger, and with grain."""
    grain = np.random.default_rng(seed).integers(-GRAIN, GRAIN + 1, (LARGE[1], LARGE[0], 3))
    pixels = np.asarray(decode(data).resize(LARGE, Image.Resampling.BICUBIC)) + grain
    return encoded(Image.fromarray(pixels.clip(0, 255).astype(np.uint8)), 88)


def encoded(image: Image.Image, quality: int) -> bytes:
    target = io.BytesIO()
    image.save(target, "JPEG", quality=quality)
    return target.getvalue()


def cost(work: Callable[[], object]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


def timed(data: Sequence[bytes]) -> dict[str, Any]:
    """Pictures a second of one core: decoding, and decoding with each kind of hash."""
    batch = data[:BATCH]
    images = [decode(each) for each in batch]
    arrays = [np.asarray(image) for image in images[:8]]
    work: dict[str, tuple[Callable[[], object], int]] = {
        "decode": (lambda: [decode(each) for each in batch], len(batch)),
        "hashes": (lambda: pdq.hashes([decode(each) for each in batch]), len(batch)),
        "eight forms": (lambda: pdq.dihedral([decode(each) for each in batch]), len(batch)),
        "pdqhash": (lambda: [pdqhash.compute(array) for array in arrays], len(arrays)),
    }
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(TURNS):
        for name, (run, count) in work.items():
            seconds[name].append(cost(run) / count)
    median = {name: statistics.median(each) for name, each in seconds.items()}
    median["pdqhash"] += median["decode"]
    shares = {
        name: round(statistics.median(d / s for d, s in zip(seconds["decode"], seconds[name], strict=True)), 3)
        for name in ("hashes", "eight forms")
    }
    return {
        "bytes": round(statistics.mean(map(len, data))),
        "pictures_a_second": {name: round(1 / each) for name, each in median.items()},
        "share_of_decoding": shares | {"pdqhash": round(median["decode"] / median["pdqhash"], 3)},
        "reached": shares["hashes"] >= TARGET,
    }


def differing(data: Sequence[bytes]) -> dict[str, float]:
    """Bits that differ from ``pdqhash``, of pictures with the customary quality."""
    far = []
    for start in range(0, len(data), BATCH):
        images = [decode(each) for each in data[start : start + BATCH]]
        hashes, _ = pdq.hashes(images)
        for row, image in zip(hashes, images, strict=True):
            bits, quality = pdqhash.compute(np.asarray(image))
            if quality >= pdq.MIN_QUALITY:
                far.append(int(np.bitwise_count(row ^ np.packbits(bits)).sum()))
    p99 = float(np.percentile(far, 99))
    return {"pictures": len(far), "mean": round(statistics.mean(far), 3), "p99": p99, "most": max(far)}


def searched(hashes: int) -> dict[str, float]:
    """Time and memory of looking up hashes of which each has one within the customary distance."""
    generator, process = np.random.default_rng(0), psutil.Process()
    before = process.memory_info().rss
    held = generator.integers(0, 256, (hashes, pdq.BYTES), dtype=np.uint8)
    started = time.process_time()
    search = HashSearch(held)
    built = time.process_time() - started
    queries = held[generator.integers(0, hashes, QUERIES)]
    queries[:, :3] ^= 255  # 24 bits
    started = time.process_time()
    rows, _, _ = search.within(queries, pdq.DISTANCE)
    spent = time.process_time() - started
    assert len(rows) >= QUERIES
    held_mb = (process.memory_info().rss - before) / 1e6
    return {
        "hashes": hashes,
        "built_s": round(built, 2),
        "ms_a_query": round(1e3 * spent / QUERIES, 4),
        "mb": round(held_mb),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=Path, help="a folder of pictures in place of the demo's")
    parser.add_argument("--compared", type=int, default=COMPARED, help="pictures that are compared with pdqhash")
    asked = parser.parse_args()
    small = pictures(asked.pictures, asked.compared)
    large = [enlarged(data, seed) for seed, data in enumerate(small[:BATCH])]
    for name, data in ("256 px", small), ("800 px", large):
        print(json.dumps({"size": name} | timed(data) | {"bits_from_pdqhash": differing(data)}), flush=True)
    for hashes in SEARCHED:
        print(json.dumps(searched(hashes)), flush=True)


if __name__ == "__main__":
    main()
