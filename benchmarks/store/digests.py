"""What it costs to compare parts with their manifest's SHA-256: a core's seconds of a stage, and those in digests.

    python benchmarks/store/digests.py [--pictures 4000] [--kilobytes 30]

A crawl is made up: noisy JPEGs of about as many kilobytes. The filter, also with a rule that reads pictures, and the
features of a small tower run in this process, one task after the other. ``sha256`` as readers call it
is timed. Seconds are those that a core works, so other work on the machine counts little.
"""

import argparse
import hashlib
import io
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from PIL import Image

from ray_jobs import exchange, features, fingerprints, groups, near_duplicates, repacking
from ray_jobs import filter as filtering
from wukong.config import documents
from wukong.config.experiment import Experiment
from wukong.crawl.part_writer import Spool, write_part
from wukong.crawl.url import key_of
from wukong.data.schema import CRAWLED
from wukong.data.tokenizer import Tokenizer, packaged_vocabulary
from wukong.model import saved_model
from wukong.model.dual import DualEncoder
from wukong.model.image_encoder import ImageEncoder
from wukong.store import damage, storage
from wukong.store.manifest import Manifest, Stage

PART = 1000
TOWER = "tf_efficientnet_lite0"


class Timed:
    """``hashlib`` for the readers, which counts seconds and bytes."""

    def __init__(self) -> None:
        self.seconds, self.bytes = 0.0, 0

    def sha256(self, data: Any = b"") -> Any:
        digest = SimpleNamespace(known=hashlib.sha256())

        def update(data: Any) -> None:
            started = time.thread_time()
            digest.known.update(data)
            self.seconds += time.thread_time() - started
            self.bytes += memoryview(data).nbytes

        update(data)
        return SimpleNamespace(update=update, hexdigest=digest.known.hexdigest)


def made_crawl(root: str, pictures: int, kilobytes: int) -> Manifest:
    """Write a crawl's output: parts of 1,000 pictures of about so many kilobytes."""
    random, stage, parts = np.random.default_rng(0), Stage(root, "crawl", {}), []
    side = int(320 * (kilobytes / 30) ** 0.5)
    for number, first in enumerate(range(0, pictures, PART)):
        rows = []
        with Spool() as spool:
            for n in range(first, min(first + PART, pictures)):
                stream = io.BytesIO()
                small = random.integers(0, 256, (side // 3, side // 3, 3), np.uint8)
                Image.fromarray(small).resize((side, side)).save(stream, "JPEG", quality=84)
                row = dict.fromkeys(CRAWLED.names) | {
                    "key": key_of(f"http://x/{n}"), "url": f"http://x/{n}", "caption": f"第{n}只红色的猫在树上",
                    "queries": ["猫"], "engine": "urls", "status": "success", "width": 400, "height": 400,
                    "mime": "image/jpeg", "sha256": hashlib.sha256(stream.getvalue()).hexdigest(),
                    "stored_width": side, "stored_height": side,
                }  # fmt: skip
                rows.append(row)
                spool.add(row["key"], stream.getvalue())
            write_part(stage.path(f"parts/{number:05d}"), rows, spool)
        parts += [stage.describe(f"parts/{number:05d}{end}", len(rows)) for end in (".tar", ".parquet")]
    return stage.commit(parts)


def experiment(root: str, **filtered: Any) -> Experiment:
    """An experiment whose filter keeps all of it, with a locked tower."""
    return documents.parse(
        {
            "name": "x",
            "storage": root,
            "crawl": {"queries": "file:///none", "endpoint": "http://127.0.0.1:1"},
            "filter": {"split": {}, **filtered},
            "model": {"image": {"name": TOWER, "weights": "random"}},
        }
    )


def measured(name: str, timed: Timed, work: Callable[[], Any]) -> Any:
    """Do some work; print its seconds, and those in digests."""
    timed.seconds, timed.bytes = 0.0, 0
    started = time.process_time()
    result = work()
    seconds = time.process_time() - started
    rate = timed.bytes / timed.seconds / 1e9 if timed.seconds else 0.0
    share = 100 * timed.seconds / seconds
    print(f"{name:32} {seconds:8.2f} s, digests {timed.seconds:6.3f} s ({share:.2f} %), {rate:.2f} GB/s", flush=True)
    return result


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=4000)
    parser.add_argument("--kilobytes", type=int, default=30)
    options = parser.parse_args()
    torch.set_num_threads(1)
    timed = Timed()
    damage.hashlib = timed  # type: ignore[attr-defined]
    here = lambda task, arguments, _gpus=0: [task(*entry) for entry in arguments]  # noqa: E731
    for module in (exchange, fingerprints, groups, near_duplicates, repacking):
        module.run_all = here  # type: ignore[attr-defined]
    repacking.ray = filtering.ray = SimpleNamespace(put=lambda value: value)  # type: ignore[assignment]
    filtering.gpus = SimpleNamespace(count=lambda: 0)  # type: ignore[assignment]
    with TemporaryDirectory(prefix="wukong-digests-") as folder:
        root = storage.from_path(Path(folder))
        crawl = made_crawl(root, options.pictures, options.kilobytes)
        print(f"{options.pictures} pictures, {crawl.parts.bytes / options.pictures / 1000:.1f} KB each")
        e = experiment(root)
        filtered = measured("filter", timed, lambda: filtering.run(e, {"crawl": crawl}))
        looks = experiment(root, duplicate_images="similar")
        measured("filter with duplicate_images", timed, lambda: filtering.run(looks, {"crawl": crawl}))
        stage = Stage(root, "features", {})
        work = list(features._work(filtered, "train", 0))[:1]
        name = f"features of {sum(each.rows for each in work)} pictures"
        measured(name, timed, lambda: features._compute(stage, filtered.uri, work, e.model, None, "cpu", 0))
        trained, tokenizer = Stage(root, "pretrain", {}), Tokenizer(packaged_vocabulary())
        tower = ImageEncoder(e.model.image)
        saved_model.save(trained.path("model"), DualEncoder(e.model, tokenizer, tower), tokenizer)
        trained.commit([trained.describe(f"model/{file}") for file in saved_model.FILES])
        measured("a model is loaded", timed, lambda: saved_model.load(trained.path("model")))


if __name__ == "__main__":
    main()
