"""One measurement of the text rules, in one process: ``chain FILE``, ``count FOLDER`` or ``parts FOLDER``.

``bench.py`` runs it. It prints a line of JSON. Peak memory is that of the process, as the kernel reports it.
"""

import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

import polars as pl

from ray_jobs import exchange, groups
from ray_jobs import filter as job
from wukong.config.filter import Filter
from wukong.curate import caption_counts, rules
from wukong.data.crawl_part import CrawlPart
from wukong.store import storage
from wukong.store.manifest import Stage

SETTINGS = Filter(mask_names=False)


def chain(file: str) -> dict[str, float]:
    """All rules of sections 3.1 and 3.2 without names: count, compute, decide."""
    captions = pl.Series("caption", Path(file).read_text(encoding="utf-8").split("\n"))
    pairs = captions.to_frame().with_columns(width=pl.lit(300, pl.Int32), height=pl.lit(300, pl.Int32))
    loaded = rules.load(SETTINGS)
    loaded["sensitive"].categories_of_normal(pl.Series(["赌博"]))  # jieba reads its dictionary once

    def once() -> float:
        started = time.perf_counter()
        counts = caption_counts.CaptionCounts.of_rows(caption_counts.counted(caption_counts.hashes(captions)))
        rules.decide(rules.compute(pairs, SETTINGS, counts, loaded), SETTINGS)
        return time.perf_counter() - started

    return {"seconds": min(once() for _ in range(3)), "captions": len(captions)}


def count(folder: str) -> dict[str, float]:
    """The filter job's count, two of its tasks at a time; of the corpus there are captions alone."""
    files = [storage.from_path(path.with_suffix("")) for path in sorted(Path(folder).glob("*.parquet"))]
    of_files = [groups.Group(number, number, (CrawlPart(file),)) for number, file in enumerate(files)]
    job.read_pairs = lambda uri, _sha256: pl.DataFrame(storage.read_table(uri, ["caption"]))
    with TemporaryDirectory(dir=folder) as work, ThreadPoolExecutor(2) as pool:
        groups.run_all = exchange.run_all = lambda task, arguments: list(
            pool.map(lambda entry: task(*entry), arguments)
        )
        started = time.perf_counter()
        answers = job._count(Stage(storage.from_path(Path(work)), "filter", {}), of_files, SETTINGS)
        seconds = time.perf_counter() - started
        counts = [answers.of(group.number)["count"] for group in of_files]
    return {"seconds": seconds, "answers": sum(map(len, counts)), "most": max(each.max() or 1 for each in counts)}


def parts(folder: str) -> dict[str, float]:
    """The filter job's passes over Parquet, its tasks one after another in one process: count, apply the rules."""
    files = [storage.from_path(path.with_suffix("")) for path in sorted(Path(folder).glob("*.parquet"))]
    stage = Stage(storage.from_path(Path(folder)), "filter", {})
    size = max(1, groups._MAX_ROWS // pl.scan_parquet(CrawlPart(files[0]).table).select(pl.len()).collect().item())
    starts = enumerate(range(0, len(files), size))
    of_files = [groups.Group(n, low, tuple(map(CrawlPart, files[low : low + size]))) for n, low in starts]
    started = time.perf_counter()
    groups.run_all = exchange.run_all = lambda task, arguments: [task(*entry) for entry in arguments]
    counts = job._count(stage, of_files, SETTINGS)
    pairs = sum(job._apply_rules(stage, group, SETTINGS, counts)["pairs"] for group in of_files)
    return {"seconds": time.perf_counter() - started, "pairs": pairs}


def peak_mib() -> float:
    # Not getrusage: what it gives may be the peak of the process that started this one.
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in status if line.startswith("VmHWM:"))


def main() -> None:
    what, where = sys.argv[1:]
    result = {"chain": chain, "count": count, "parts": parts}[what](where)
    result["peak_mib"] = peak_mib()
    print(json.dumps(result))


if __name__ == "__main__":
    main()
