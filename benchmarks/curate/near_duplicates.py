"""The search for near duplicates among made-up vectors: seconds, memory of all processes, planted pairs that it finds.

    python benchmarks/curate/near_duplicates.py [--vectors 10000000] [--processes 2] [--work FOLDER]

The vectors are a mixture of topics of very different sizes. Inside a topic they lie around its middle in all directions
alike, which is the hardest case: whatever borders k-means draws through a topic have as many vectors close to them as
can be. One vector in fifty has a planted copy in another file, at a cosine of 0.90 to 0.99. All other pairs are further
apart. The vectors are written first, as the filter stores those of pictures; the time is without that. The job's own
code runs, with processes in the place of Ray. Prints a line of JSON, and the share that is found by cosine.
"""

import argparse
import json
import multiprocessing
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from ray_jobs import exchange
from ray_jobs import near_duplicates as job
from wukong.curate import near_duplicates

WIDTH = 256
FILE_ROWS = 100_000
PLANTED = 50
COSINES = np.arange(0.90, 0.995, 0.01)
FOUND_AT_LEAST, MIB_AT_MOST = 0.98, 4096

Floats = npt.NDArray[np.float32]


class Memory(threading.Thread):
    """Measures the peak of the sum of the resident memory of this process and its descendants, in MiB."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak = 0.0

    def run(self) -> None:
        own = psutil.Process()
        while True:
            total = 0
            for process in [own, *own.children(recursive=True)]:
                try:
                    total += process.memory_info().rss
                except psutil.Error:
                    continue
            self.peak = max(self.peak, total / 2**20)
            time.sleep(0.2)


def unit(vectors: npt.NDArray[Any]) -> Floats:
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)


def cpu_seconds() -> float:
    """Seconds of cores that this process and its descendants have used."""
    own = psutil.Process()
    return sum(sum(each.cpu_times()[:2]) for each in [own, *own.children(recursive=True)])


def directions(generator: np.random.Generator, count: int) -> Floats:
    return unit(generator.standard_normal((count, WIDTH), np.float32))


def mixture(generator: np.random.Generator, count: int, vectors: int) -> Floats:
    topics = directions(np.random.default_rng(0), max(10, vectors // 500))
    sizes = np.arange(1, len(topics) + 1) ** -0.7
    made = topics[generator.choice(len(topics), count, p=sizes / sizes.sum())] + 0.8 * directions(generator, count)
    return unit(made)


def planted(block: int, vectors: int) -> tuple[Floats, Floats, Floats, list[str]]:
    """The pairs of a block: originals, copies, cosines, and the keys of both, one list after the other."""
    generator = np.random.default_rng([1, block])
    count = FILE_ROWS // PLANTED
    originals, cosines = mixture(generator, count, vectors), generator.choice(COSINES, count).astype(np.float32)
    aside = directions(generator, count)
    aside = unit(aside - (aside * originals).sum(axis=1, keepdims=True) * originals)
    copies = cosines[:, None] * originals + np.sqrt(1 - cosines**2)[:, None] * aside
    return originals, unit(copies), cosines, keys(generator, 2 * count)


def keys(generator: np.random.Generator, count: int) -> list[str]:
    digits = generator.bytes(10 * count).hex()
    return [digits[20 * row : 20 * row + 20] for row in range(count)]


def write(path: Path, number: int, files: int) -> None:
    """Write a file of vectors: the originals of its own block, the copies of the next, and others."""
    vectors, next_block = files * FILE_ROWS, (number + 1) % files
    originals, _, _, some = planted(number, vectors)
    _, copies, _, more = planted(next_block, vectors)
    generator = np.random.default_rng([2, number])
    rest = FILE_ROWS - 2 * len(copies)
    made = np.concatenate([originals, copies, mixture(generator, rest, vectors)]).astype(np.float16)
    column = pa.FixedSizeListArray.from_arrays(pa.array(made.ravel()), WIDTH)
    names = some[: len(originals)] + more[len(originals) :] + keys(generator, rest)
    pq.write_table(pa.table({"key": names, "vector": column}), path, row_group_size=8192, compression="none")


def rows(path: str) -> pl.DataFrame:
    """What the filter reads of a group."""
    table = pl.DataFrame(pq.read_table(path))
    score = pl.Series("score", np.zeros(len(table), np.float32))
    return table.select("key", score, near_duplicates.of_column(table["vector"]))


def share_found(files: int, found: pl.DataFrame) -> dict[float, list[int]]:
    """By cosine, the planted pairs and those that were found."""
    cosine_of = dict(found.select("key", near_duplicates.COSINE).iter_rows())
    near = dict(found.select("key", near_duplicates.NEAREST).iter_rows())
    counts = {round(float(cosine), 2): [0, 0] for cosine in COSINES}
    for block in range(files):
        _, _, cosines, names = planted(block, files * FILE_ROWS)
        for cosine, *pair in zip(cosines.tolist(), names[: len(cosines)], names[len(cosines) :], strict=True):
            first, later = sorted(pair)
            count = counts[round(cosine, 2)]
            count[0] += 1
            count[1] += near.get(later) == first and cosine_of[later] > cosine - 0.002
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vectors", type=int, default=10_000_000)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--work", type=Path, default=None)
    options = parser.parse_args()
    files = max(2, options.vectors // FILE_ROWS)
    with (
        tempfile.TemporaryDirectory(dir=options.work) as folder,
        ProcessPoolExecutor(options.processes, multiprocessing.get_context("spawn")) as pool,
    ):
        paths = [Path(folder, f"{number:05d}.parquet") for number in range(files)]
        list(pool.map(write, paths, range(files), [files] * files))

        def run_all(task: Callable[..., Any], arguments: Sequence[tuple[Any, ...]], _gpus: int = 0) -> list[Any]:
            started = time.monotonic()
            done = list(pool.map(task, *zip(*arguments, strict=True)))
            print(
                f"{getattr(task, '__name__', task)}: {len(done)} tasks, {time.monotonic() - started:.0f} s",
                file=sys.stderr,
            )
            return done

        for module in (exchange, job):
            vars(module)["run_all"] = run_all
        memory = Memory()
        memory.start()
        started, used, groups = time.monotonic(), cpu_seconds(), [str(path) for path in paths]
        answers = job.nearest(groups, rows, files * FILE_ROWS, f"file://{folder}/search")
        found = pl.concat([near_duplicates.best(answers.of(number)) for number in range(files)])
        seconds, cpu, peak = time.monotonic() - started, cpu_seconds() - used, memory.peak
    counts = share_found(files, found)
    of_all = sum(found for _, found in counts.values()) / sum(all_pairs for all_pairs, _ in counts.values())
    result = {
        "vectors": files * FILE_ROWS,
        "processes": options.processes,
        "seconds": round(seconds),
        "cpu_seconds": round(cpu),
        "peak_mib": round(peak),
        "planted": sum(all_pairs for all_pairs, _ in counts.values()),
        "found": round(of_all, 4),
        "found_by_cosine": {cosine: round(found / all_pairs, 4) for cosine, (all_pairs, found) in counts.items()},
        "others_told": len(found) - sum(found for _, found in counts.values()),
    }
    print(json.dumps(result))
    sys.exit(of_all < FOUND_AT_LEAST or peak > MIB_AT_MOST)


if __name__ == "__main__":
    main()
