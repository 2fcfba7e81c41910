"""What it costs to compare parts with their manifest's SHA-256: a core's seconds of a stage, and those in digests.

    python benchmarks/store/digests.py [--pictures 4000] [--kilobytes 30]

A crawl is made up: noisy JPEGs of about as many kilobytes. The filter, also with a rule that reads pictures, and the
features of a small tower run in this process, one task after the other, where Ray would run each. All is done twice:
the first time is measured; in the second one the profiler says what ``wukong.store.damage`` spends in ``hashlib``.
Seconds are those that a core works, so other work on the machine counts little.
"""

import argparse
import cProfile
import hashlib
import io
import pstats
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import ray
import torch
from PIL import Image

from ray_jobs import features
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
STORED = {"dtype": "float16", "precision": "float32"}


def played(task: Callable[..., Any]) -> Any:
    """A task of Ray that runs here when it is asked for."""
    remote = SimpleNamespace(remote=task)
    return SimpleNamespace(remote=task, options=lambda **_: remote)


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


def measured(name: str, work: Callable[[str], Any], folder: str) -> None:
    """Do some work twice, in folders of its own; print its seconds, and the share that is spent in digests."""
    started = time.process_time()
    work(storage.join(folder, "plain"))
    seconds = time.process_time() - started
    profile = cProfile.Profile(time.thread_time)
    profile.runcall(work, storage.join(folder, "profiled"))
    digests = 0.0
    for (_, _, called), (*_, callers) in pstats.Stats(profile).stats.items():  # type: ignore[attr-defined]
        if "sha256" in called or "HASH" in called:
            digests += sum(of[2] for (file, _, _), of in callers.items() if file == damage.__file__)
    print(f"{name:32} {seconds:8.2f} s, digests {digests:6.3f} s ({100 * digests / seconds:.2f} %)", flush=True)


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=4000)
    parser.add_argument("--kilobytes", type=int, default=30)
    options = parser.parse_args()
    torch.set_num_threads(1)
    here = mock.patch.multiple(ray, remote=played, get=list, put=lambda value: value, cluster_resources=dict)
    with TemporaryDirectory(prefix="wukong-digests-") as folder, here:
        root = storage.from_path(Path(folder))
        crawl = made_crawl(root, options.pictures, options.kilobytes)
        print(f"{options.pictures} pictures, {crawl.parts.bytes / options.pictures / 1000:.1f} KB each")
        filtered = filtering.run(experiment(root), {"crawl": crawl})
        measured("filter", lambda place: filtering.run(experiment(place), {"crawl": crawl}), f"{root}/a")
        measured(
            "filter with duplicate_images",
            lambda place: filtering.run(experiment(place, duplicate_images="similar"), {"crawl": crawl}),
            f"{root}/b",
        )
        model = experiment(root).model
        work = list(features._work(filtered, "train", 0))[:1]
        measured(
            f"features of {sum(each.rows for each in work)} pictures",
            lambda place: features._compute(
                Stage(place, "features", STORED), filtered.uri, work, model, None, "cpu", 0
            ),
            f"{root}/c",
        )
        trained, tokenizer = Stage(root, "pretrain", {}), Tokenizer(packaged_vocabulary())
        saved_model.save(trained.path("model"), DualEncoder(model, tokenizer, ImageEncoder(model.image)), tokenizer)
        trained.commit([trained.describe(f"model/{file}") for file in saved_model.FILES])
        measured("a model is loaded", lambda _: saved_model.load(trained.path("model")), root)


if __name__ == "__main__":
    main()
