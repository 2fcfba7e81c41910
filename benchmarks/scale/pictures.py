"""Time filter and validate on distinct JPEGs beside a sequential copy of the same bytes, in one run.

    python benchmarks/scale/pictures.py --pictures 20000 --bytes 8000
    python benchmarks/scale/pictures.py --pictures 5000 --bytes 100000 --store file

A crawl's parts are written first by the library. The copy is one sequential reader and writer a core, tar to tar,
through the same storage. Start-up is excluded: each of Ray's workers has run the stages before, on pictures of 2 KB. A
JSON line is printed for each of ``copy``, ``repack`` (the last passes of filter), ``filter`` and ``validate``: seconds,
MB/s, pictures/s, requests of the object store, peak memory of a process in MiB. ``--store s3`` is the real SeaweedFS
with the arguments of ``k8s/base/object-store.yaml``; ``PYTHONPATH`` chooses the code that is measured.
"""

import argparse
import hashlib
import io
import json
import logging
import os
import re
import shutil
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import ray
from PIL import Image

from ray_jobs import filter as filtering
from ray_jobs import validate
from wukong.config import documents
from wukong.config.experiment import Experiment
from wukong.crawl.part_writer import Spool, write_part
from wukong.crawl.url import key_of
from wukong.data.schema import CRAWLED
from wukong.store import storage
from wukong.store.manifest import Manifest, Stage

for neighbour in ("store", "curate"):
    sys.path.insert(0, str(Path(__file__).parents[1] / neighbour))
import captions  # noqa: E402
from memory import free_port, server  # noqa: E402

PART = 1000
SIDE = 64
COMMENT = 60_000
COPY_BYTES = 1 << 20
CORES = os.cpu_count() or 1
FEW = 12_000
"""Pictures for each core before the measurement: more than a batch of validate, so that each core has one."""


def picture(number: int, size: int, noise: list[bytes]) -> bytes:
    """A JPEG of about ``size`` bytes: noise, and a comment that makes it distinct and fills it up."""
    jpeg = noise[number % len(noise)]
    filling = np.random.default_rng(number).bytes(max(16, size - len(jpeg)))
    comments = [filling[start : start + COMMENT] for start in range(0, len(filling), COMMENT)]
    marked = b"".join(b"\xff\xfe" + (len(each) + 2).to_bytes(2) + each for each in comments)
    return jpeg[:2] + marked + jpeg[2:]


def crawl(root: str, pictures: int, size: int) -> Manifest:
    """Write a crawl's output."""
    noise = []
    for seed in range(8):
        target = io.BytesIO()
        pixels = np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(target, "JPEG", quality=90)
        noise.append(target.getvalue())
    texts = captions.make(pictures, 0, captions.words()).to_list()
    stage = Stage(root, "crawl", {"pictures": pictures, "bytes": size})
    parts = []
    for start in range(0, pictures, PART):
        rows = []
        with Spool() as spool:
            for number in range(start, min(pictures, start + PART)):
                url, data = f"http://example.org/{number}.jpg", picture(number, size, noise)
                row: dict[str, Any] = dict.fromkeys(CRAWLED.names)
                row |= {"key": key_of(url), "url": url, "caption": texts[number], "queries": ["词"], "engine": "bench"}
                row |= {"status": "success", "width": 400, "height": 300, "mime": "image/jpeg", "bytes": len(data)}
                row |= {"sha256": hashlib.sha256(data).hexdigest(), "stored_width": SIDE, "stored_height": SIDE}
                spool.add(row["key"], data)
                rows.append(row)
            name = f"parts/{start // PART:05d}"
            write_part(stage.path(name), rows, spool)
        parts += [stage.describe(f"{name}{suffix}", len(rows)) for suffix in (".tar", ".parquet")]
    return stage.commit(parts)


def experiment(name: str, root: str) -> Experiment:
    return documents.parse(
        {
            "name": name,
            "storage": root,
            "crawl": {"queries": "file:///none", "endpoint": "http://127.0.0.1:1"},
            "validation": {"min_pairs": 1, "max_unmasked_name_rate": 1},
        }
    )


def copy(pairs: list[tuple[str, str]]) -> None:
    for source, target in pairs:
        with storage.open_input(source) as stream, storage.open_output(target) as output:
            shutil.copyfileobj(stream, output, COPY_BYTES)


class Watch(logging.Handler):
    """Notes when each pass of filter ends."""

    def __init__(self) -> None:
        super().__init__()
        self.ends: dict[str, float] = {}

    def emit(self, record: logging.LogRecord) -> None:
        if passed := re.match(r"filter: (\w+): ", record.getMessage()):
            self.ends[passed[1]] = time.monotonic()


@contextmanager
def peak(result: dict[str, float]) -> Iterator[None]:
    """Note the largest resident memory of one of this process's descendants, shared memory apart."""
    end = threading.Event()

    def sample() -> None:
        while not end.wait(0.1):
            for process in psutil.Process().children(recursive=True):
                try:
                    if process.name().startswith("ray::"):
                        memory = process.memory_info()
                        result["peak"] = max(result.get("peak", 0), (memory.rss - memory.shared) / 2**20)
                except psutil.Error:
                    continue

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join()


def requests(port: int | None) -> int:
    if port is None:
        return 0
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        text = answer.read().decode()
    return int(
        sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith("SeaweedFS_s3_request_total"))
    )


def measured(
    name: str,
    run: Callable[[], Any],
    pictures: int,
    size: int,
    port: int | None,
    since: Callable[[], float] | None = None,
) -> Any:
    memory: dict[str, float] = {}
    before, start = requests(port), time.monotonic()
    with peak(memory):
        answer = run()
    end = time.monotonic()
    asked = requests(port) - before
    for label, began in [(name, start), *([("repack", since())] if since else [])]:
        seconds = end - began
        line = {
            "stage": label,
            "seconds": round(seconds, 2),
            "MB_per_second": round(size / seconds / 1e6, 1),
            "pictures_per_second": round(pictures / seconds),
            "peak_MiB": round(memory.get("peak", 0)),
        }
        print(json.dumps(line | ({"requests": asked} if label == name else {})), flush=True)
    return answer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=20_000)
    parser.add_argument("--bytes", type=int, default=8_000)
    parser.add_argument("--store", choices=("s3", "file"), default="s3")
    options = parser.parse_args()
    port = free_port() if options.store == "s3" else None
    logging.getLogger("ray_jobs.groups").setLevel(logging.INFO)
    watch = Watch()
    logging.getLogger("ray_jobs.groups").addHandler(watch)
    with (
        tempfile.TemporaryDirectory() as folder,
        server("400MiB", [f"-metricsPort={port}", "-metricsIp=127.0.0.1"]) if port else nullcontext(),
    ):
        root = "s3://bench" if port else storage.from_path(Path(folder))
        os.environ["WUKONG_HOME"] = folder  # as beside an embedded stack: pairs wait there for their shards
        ray.init("local", num_cpus=CORES, include_dashboard=False, configure_logging=False, log_to_driver=False)
        few = crawl(f"{root}/few", CORES * FEW, 2000)
        validate.run(experiment("few", root), {"filter": filtering.run(experiment("few", root), {"crawl": few})})
        made = crawl(f"{root}/many", options.pictures, options.bytes)
        tars = made.part_uris("parts/", ".tar")
        size = sum(part.bytes for part in made.parts if part.path.endswith(".tar"))
        shares = [
            [(uri, f"{root}/copy/{n:05d}.tar") for n, uri in enumerate(tars)][core::CORES] for core in range(CORES)
        ]
        copying = ray.remote(copy)
        ray.get([copying.remote([]) for _ in range(CORES)])
        measured("copy", lambda: ray.get([copying.remote(share) for share in shares]), options.pictures, size, port)
        storage.delete(f"{root}/copy")
        many = experiment("many", root)
        filtered = measured(
            "filter",
            lambda: filtering.run(many, {"crawl": made}),
            options.pictures,
            size,
            port,
            lambda: watch.ends["assign"],
        )
        print(json.dumps({"filter_digest": filtered.digest, "crawl_digest": made.digest}))
        measured("validate", lambda: validate.run(many, {"filter": filtered}), options.pictures, size, port)
        ray.shutdown()


if __name__ == "__main__":
    main()
