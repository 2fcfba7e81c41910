"""Measure the planning of many URLs: ``planning.py FOLDER ROWS``; prints seconds, peak memory and counts as JSON.

The input is that of a crawl whose queries find a fifth of all images twice: files of 250,000 rows, as the search writes
them. Then they are merged, and all ranges are planned one after the other with the code of the crawl job.
"""

import itertools
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa

from wukong.crawl import plan
from wukong.crawl.found import FOUND, write_found
from wukong.crawl.url import key_of
from wukong.curate import exchange
from wukong.store import storage

FILE_ROWS = 250_000
DUPLICATES = 0.2


def write_results(folder: Path, rows: int) -> None:
    rng = np.random.default_rng(0)
    for number in range(-(-rows // FILE_ROWS)):
        first, size = number * FILE_ROWS, min(FILE_ROWS, rows - number * FILE_ROWS)
        identity = np.arange(first, first + size)
        again = rng.random(size) < DUPLICATES
        identity[again] = rng.integers(0, first + size, int(again.sum()))
        urls = [f"https://img{i % 97}.example.com/photos/{i % 1009:04d}/{i:010d}.jpg" for i in identity]
        table = pa.table(
            {
                "key": [key_of(url) for url in urls],
                "url": urls,
                "caption": [f"第{i}张图片的标题，来自网页" for i in identity],
                "query": [f"词{(first + i) // 1000}" for i in range(size)],
                "order": np.arange(first, first + size),
                "page_url": [f"https://www.example.com/page/{i % 100003}" for i in identity],
            },
            schema=FOUND,
        )
        write_found(storage.from_path(folder / f"{number:05d}.parquet"), table.sort_by([("key", "ascending")]))


def main(folder: Path, rows: int) -> None:
    files = storage.list_files(storage.from_path(folder / "search"), ".parquet")
    count = plan.ranges_for(rows)
    started, urls, parts = time.monotonic(), 0, 0
    edges = plan.edges(count)
    found = [exchange.File(uri, FILE_ROWS) for uri in files]
    rounds, spans = exchange.rounds(found, edges, storage.from_path(folder / "merged"), plan.MERGE_ROWS)
    for merge in itertools.chain.from_iterable(rounds):
        exchange.merge(merge)
    for index in range(count):
        planned = plan.merge(exchange.source(spans, edges, index).read())
        urls += planned.num_rows
        parts += len(plan.write_range(storage.from_path(folder / "plan" / f"{index:05d}.parquet"), planned, 1000))
    print(
        json.dumps(
            {
                "results": rows,
                "urls": urls,
                "parts": parts,
                "ranges": count,
                "seconds": time.monotonic() - started,
                "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            }
        )
    )


if __name__ == "__main__":
    target, total = Path(sys.argv[1]), int(sys.argv[2])
    if len(sys.argv) > 3:
        main(target, total)
    else:
        write_results(target / "search", total)
        subprocess.run([sys.executable, __file__, str(target), str(total), "plan"], check=True)
