"""Only decode, resize and encode, without network or files: ``run_decode.py FOLDER COUNT CORES``; prints images/s."""

import multiprocessing
import sys
import time
from pathlib import Path

from wukong.config.crawl import Crawl
from wukong.crawl import image_header, stored_image


def work(folder: Path, count: int, barrier: object, seconds: object) -> None:
    config = Crawl(queries="", endpoint="")
    bodies = [path.read_bytes() for path in sorted(folder.iterdir())]
    barrier.wait()
    started = time.monotonic()
    for number in range(count):
        body = bodies[number % len(bodies)]
        header = image_header.read_header(body, complete=True)
        stored_image.store(body, header, config)
    seconds.put(time.monotonic() - started)


if __name__ == "__main__":
    folder, count, cores = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    context = multiprocessing.get_context("spawn")
    barrier, seconds = context.Barrier(cores), context.Queue()
    workers = [context.Process(target=work, args=(folder, count // cores, barrier, seconds)) for _ in range(cores)]
    for worker in workers:
        worker.start()
    slowest = max(seconds.get() for _ in workers)
    print(count // cores * cores / slowest)
