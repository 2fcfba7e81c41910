"""Measure the stream of a training and its checkpoints: ``make bench NAME=train``.

Each row runs in a process of its own and prints what it measured. The corpora are synthetic manifests: every shard of
them is the same file, so that a corpus of 100 million pairs takes no room, while each piece is really read.
"""

import argparse
import hashlib
import io
import multiprocessing
import os
import random
import resource
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from multiprocessing.context import ForkProcess
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from wukong import stages
from wukong.config import documents
from wukong.config.experiment import Experiment
from wukong.config.model import ImageEncoder, Model
from wukong.config.training import Training
from wukong.data import feature_files
from wukong.data.tokenizer import Tokenizer, packaged_vocabulary
from wukong.model.dual import DualEncoder
from wukong.store import fence, storage
from wukong.store.manifest import Manifest, Stage
from wukong.train import checkpoint, stream
from wukong.train.corpus import Corpus
from wukong.train.feature_pairs import FeaturePairs
from wukong.train.loop import train
from wukong.train.pairs import Loaded
from wukong.train.picture_pairs import PicturePairs
from wukong.train.stream import Order, Piece

_EACH = {"least_seconds": 0, "most_share": 1}  # settings of checkpoints that leave none out
ROWS = (
    "resume",
    "memory",
    "shuffle",
    "checkpoint",
    "kills",
    "ray-kills",
    "resize",
    "validation",
    "peers",
    "plan",
    "two-cores",
)
SHARD, SIDE, WIDTH = 1000, 256, 768


def shard(folder: Path, *, distinct: bool = False) -> str:
    """Write one shard of 1,000 pairs: images of about 45 KB, a table, features. Return its prefix.

    Args:
        folder: where to write it.
        distinct: whether each pair has an image of its own, of one colour, and not all the same.
    """
    (folder / "train").mkdir(parents=True)
    generator = np.random.default_rng(0)
    keys = [f"{number:020x}" for number in range(SHARD)]
    noise = generator.integers(0, 256, (SIDE // 4, SIDE // 4, 3), np.uint8)
    picture = io.BytesIO()
    Image.fromarray(noise).resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(picture, "JPEG", quality=95)
    with tarfile.open(folder / "train" / "00000.tar", "w") as tar:
        for key in keys:
            if distinct:
                picture = io.BytesIO()
                colour = tuple(int(value) for value in generator.integers(0, 256, 3))
                Image.new("RGB", (SIDE, SIDE), colour).save(picture, "JPEG")
            for suffix, content in (("jpg", picture.getvalue()), ("json", b"{}" * 300), ("txt", "一只猫".encode())):
                entry = tarfile.TarInfo(f"{key}.{suffix}")
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
    characters = [chr(0x4E00 + number) for number in range(2000)]
    captions = ["".join(generator.choice(characters, 22)) for _ in keys]
    urls = [f"http://pictures.example/{key}.jpg" for key in keys]
    pq.write_table(pa.table({"key": keys, "url": urls, "caption": captions}), folder / "train" / "00000.parquet")
    values = torch.randn(SHARD, WIDTH, generator=torch.Generator().manual_seed(0)).half()
    feature_files.write(storage.from_path(folder / feature_files.path_of("train", "00000", 0)), keys, values)
    return storage.from_path(folder)


def corpus(prefix: str, pairs: int) -> Corpus:
    shards = pairs // SHARD
    return Corpus(prefix, ("00000",) * shards, (SHARD,) * shards, "digest")


def peak_gib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def resume(prefix: str) -> None:
    """Time to the first batch in the middle of an epoch of 1 million pairs, from a process that has just started."""
    settings = Training(lock="none", loader_workers=0, workers=1)
    for name in ("images", "features"):
        began, used = time.perf_counter(), time.process_time()
        pairs = _pairs(name, corpus(prefix, 10**6), settings)
        needed = next(stream.read(Order(pairs.rows, pairs.digest, 0, 256), lambda piece: piece, 2345, 10**6))
        batches = pairs.batches(256, 0, first=2345, last=10**6)
        next(batches)
        took, used = time.perf_counter() - began, time.process_time() - used
        shards = {sample.piece.shard for sample in needed}
        print(
            f"{name}: first batch of 256 after {took:.2f} s ({used:.2f} of processor, with what is read ahead), from "
            f"{len(shards)} shards",
            flush=True,
        )
        batches.close()


def _pairs(name: str, of: Corpus, settings: Training) -> PicturePairs | FeaturePairs:
    tokenizer = Tokenizer(packaged_vocabulary())
    if name == "features":
        return FeaturePairs(of, tokenizer, of.prefix, (0,))
    return PicturePairs(of, tokenizer, ImageEncoder(image_size=224), settings)


def memory(prefix: str) -> None:
    """Peak memory of a worker of 40 and of one alone, on 1 and on 100 million pairs."""
    for name in ("features", "images"):
        for pairs, workers, size in ((10**6, 1, 256), (10**8, 1, 256), (10**8, 40, 10_240)):
            command = [sys.executable, __file__, "--measure", prefix, name, str(pairs), str(workers), str(size)]
            print(subprocess.run(command, check=True, capture_output=True, text=True).stdout, end="", flush=True)


def measure(prefix: str, name: str, pairs: int, workers: int, size: int) -> None:
    before = peak_gib()
    torch.set_num_threads(1)
    data = _pairs(name, corpus(prefix, pairs), Training(lock="none", loader_workers=0, workers=1))
    steps, first = 100, min(10**5, pairs // size // 2)
    if name == "features":
        for _ in data.batches(size, 0, first, 0, workers, first + steps):
            pass
    else:  # what is read, without what loader processes make of it
        order = Order(data.rows, data.digest, 0, size)
        for _ in stream.read(order, data.load, first, first + steps, 0, workers):
            pass
    after = peak_gib()
    print(
        f"{name}: {pairs:,} pairs, batches of {size} for {workers} workers: {after:.2f} GiB, {after - before:.2f} more "
        "than after the imports"
    )


def shuffle() -> None:
    """Mean displacement of a sample, from its place in the manifest and from the epoch before, over n / 3."""
    for pairs in (100_000, 1_000_000):
        rows = [SHARD] * (pairs // SHARD)
        found = []
        for seed in range(3):
            order = Order(rows, "digest", seed, 256)
            first, second = (flat(order, epoch) for epoch in (0, 1))
            place = np.full(pairs, -1)
            place[first] = np.arange(len(first))
            again = place[second]
            found.append(
                [
                    3 * np.abs(first - np.arange(len(first))).mean() / pairs,
                    3 * np.abs(again - np.arange(len(again)))[again >= 0].mean() / pairs,
                ]
            )
        print(f"{pairs:,} pairs: {np.mean(found, 0).round(3).tolist()}, least {np.min(found, 0).round(3).tolist()}")


def flat(order: Order, epoch: int) -> np.ndarray:
    """The rows of an epoch in their order."""

    def load(piece: Piece) -> int:
        return piece.shard * SHARD + piece.start

    steps = stream.read(order, load, epoch * order.steps, (epoch + 1) * order.steps)
    return np.array([sample.piece + sample.row for samples in steps for sample in samples])


def of_100_million() -> tuple[nn.Module, torch.optim.Optimizer]:
    """A model of 100 million weights, and its optimiser after a step."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(21_128, 768), *(nn.Linear(2048, 2048) for _ in range(20)))
    optimizer = torch.optim.AdamW(model.parameters())
    for weight in model.parameters():
        weight.grad = torch.zeros_like(weight)
    optimizer.step()
    return model, optimizer


def store() -> None:
    """Seconds for which a checkpoint of 100 million parameters stops the training, and those until it is complete."""
    model, optimizer = of_100_million()
    print(f"{sum(weight.numel() for weight in model.parameters()):,} parameters")
    with tempfile.TemporaryDirectory() as folder:
        writer = checkpoint.Writer(storage.from_path(Path(folder)))
        writer.prepare(model, optimizer)
        writer.wait()
        for number in range(1, 4):
            before, began, used = writer.seconds, time.perf_counter(), time.thread_time()
            writer.save(model, optimizer, number, {})
            blocked, used = writer.seconds - before, time.thread_time() - used
            writer.wait()
            took = time.perf_counter() - began
            print(
                f"checkpoint {number}: blocks {blocked:.3f} s ({used:.3f} of processor), complete after {took:.2f} s",
                flush=True,
            )
        writer.close()


class Small(FeaturePairs):
    """300 pairs in memory."""

    def __init__(self) -> None:
        super().__init__(Corpus("", tuple("abcdef"), (50,) * 6, "digest"), Tokenizer(packaged_vocabulary()), "", (0, 1))
        self._features = torch.randn(2, 300, 12, generator=torch.Generator().manual_seed(0)).half()

    def load(self, piece: Piece) -> Loaded:
        numbers = range(50 * piece.shard + piece.start, 50 * piece.shard + piece.stop)
        keys = [str(number) for number in numbers]
        captions = [f"第{number}张图" for number in numbers]
        return self.loaded(piece, keys, captions, self._features[:, numbers.start : numbers.stop])


def train_small(uri: str, target: str) -> None:
    """Train a small model with dropout and masking from the newest checkpoint, storing one after each step."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    text = {"layers": 1, "heads": 2, "width": 16, "dropout": 0.2}
    model = Model.model_validate({"text": text, "embedding": 8})
    dual = DualEncoder(model, Tokenizer(packaged_vocabulary()), feature_width=12)
    section = {"epochs": 40, "batch_size": 32, "workers": 1, "views": 1}
    settings = Training.model_validate({**section, "checkpoint": {"steps": 1, **_EACH}})
    writer = checkpoint.Writer(uri)
    train(dual, Small(), settings, 7, checkpoints=writer, resume=checkpoint.newest(uri))
    writer.close()
    save_file(dual.state_dict(), target)


def kills(count: int) -> None:
    """SIGKILL of a training twice in a row, at random moments, ``count`` times; the weights afterwards.

    Each training is a process that is forked after the imports, so that a kill hits its work and not its start.
    """
    drawn, fork = random.Random(0), multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as folder:

        def place(name: str) -> str:
            return storage.from_path(Path(folder, name))

        def start(name: str) -> ForkProcess:
            process = fork.Process(target=train_small, args=(place(name), str(Path(folder, f"{name}.safetensors"))))
            process.start()
            return process

        def step(name: str) -> int:
            newest = checkpoint.newest(place(name))
            return int(newest.rsplit("_", 1)[1][:9]) if newest else 0

        def finish(name: str) -> str:
            process = start(name)
            process.join()
            if process.exitcode:
                raise SystemExit(f"{name} failed")
            return hashlib.sha256(Path(folder, f"{name}.safetensors").read_bytes()).hexdigest()

        began = time.perf_counter()
        expected = finish("calm")
        print(f"undisturbed: {time.perf_counter() - began:.1f} s", flush=True)
        equal, steps = 0, []
        for number in range(count):
            name = f"run{number}"
            for _ in range(2):
                process, until = start(name), step(name) + drawn.randint(1, 120)
                while process.is_alive() and step(name) < until:
                    time.sleep(drawn.random() / 50)
                process.kill()
                process.join()
                steps.append(step(name))
            equal += finish(name) == expected
            print(f"{equal} of {number + 1} runs ended with the bytes of the undisturbed one", flush=True)
        print(f"killed after steps {steps}")


def on_ray(name: str, folder: str, **changed: object) -> Experiment:
    """An experiment whose pre-training reads one shard of images of one colour each."""
    stored = {"steps": 5, **_EACH}
    section = {"epochs": 60, "batch_size": 50, "workers": 1, "log_every": 5, "checkpoint": stored, **changed}
    text = {"layers": 2, "heads": 2, "width": 64, "dropout": 0.0}
    return documents.parse(
        {
            "name": name,
            "storage": storage.from_path(Path(folder)),
            "crawl": {"queries": "file:///none", "endpoint": "http://127.0.0.1:1"},
            "model": {"image": {"image_size": 64}, "text": text, "embedding": 32},
            "pretrain": section,
        }
    )


def pretrain(made: Experiment) -> Manifest:
    """Pre-train on one shard, which is written first where it is not there."""
    from ray_jobs import training

    filtered = Stage(made.root, "filter", stages.of("filter").config(made))
    if (finished := filtered.finished()) is None:
        shard(Path(storage.filesystem(filtered.uri)[1]), distinct=True)
        parts = [filtered.describe(f"train/00000{suffix}", SHARD) for suffix in (".tar", ".parquet")]
        finished = filtered.commit(parts)
    return training.run("pretrain", made, finished)


def drive(name: str, folder: str, address: str) -> None:
    """Pre-train as the driver of an attempt, on a Ray that runs."""
    import ray

    ray.init(address=address, configure_logging=False, log_to_driver=False)
    made = on_ray(name, folder, epochs=15)
    fence.claim(made.root, "run", "pretrain")
    trained = pretrain(made)
    print(f"{name}: {trained.digest[:16]}", flush=True)


def ray_kills(folder: str, count: int) -> None:
    """SIGKILL of a Ray Train worker, of the driver, and of both, twice in a row each, after checkpoints at random."""
    import psutil
    import ray

    ray.init("local", num_cpus=2, include_dashboard=False, configure_logging=False, log_to_driver=False)
    address, drawn = ray.get_runtime_context().gcs_address, random.Random(0)
    end = "manifest.json"

    def start(name: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, __file__, "--drive", name, folder, address])

    def place(name: str) -> str:
        return storage.join(storage.from_path(Path(folder)), name, "pretrain")

    def step(name: str) -> int:
        files = storage.list_files(place(name), "checkpoint.json")
        return max((int(file.rsplit("checkpoint_", 1)[1][:9]) for file in files), default=0)

    def kill_worker() -> None:
        for process in psutil.Process().children(recursive=True):
            if "RayTrainWorker" in process.name() or "RayTrainWorker" in " ".join(process.cmdline()):
                process.kill()

    def digest(name: str) -> str:
        (found,) = [file for file in storage.list_files(place(name), end) if "_checkpoints" not in file]
        return str(storage.read_json(found)["parts"])

    if start("calm").wait():
        raise SystemExit("the undisturbed run failed")
    for what in ("worker", "driver", "both"):
        equal, steps = 0, []
        for number in range(count):
            name = f"{what}{number}"
            driver = start(name)
            for _ in range(2):
                until = step(name) + drawn.randint(5, 100)
                while driver.poll() is None and step(name) < until:
                    time.sleep(0.1)
                if driver.poll() is not None:
                    raise SystemExit(f"{name} ended before it could be killed")
                steps.append(step(name))
                if what != "driver":
                    kill_worker()
                if what != "worker":
                    driver.kill()
                    driver.wait()
                    driver = start(name)
                else:  # the next kill is of the next worker
                    before = steps[-1]
                    while driver.poll() is None and step(name) <= before:
                        time.sleep(0.1)
            if driver.wait():
                raise SystemExit(f"{name} failed")
            equal += digest(name) == digest("calm")
        print(f"{what}: {equal} of {count} runs ended with the bytes of the undisturbed one; killed after {steps}")
    ray.shutdown()


def resize(folder: str, epochs: int) -> None:
    """A run of Ray Train on one worker, then on two, then on one: a node joins the cluster and leaves it again.

    The losses are compared with those of a run on one worker throughout.
    """
    import ray
    from ray.cluster_utils import Cluster

    from ray_jobs import worker_group

    worker_group.RESIZE_SECONDS = 2.0
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    ray.init(address=cluster.address, configure_logging=False)

    def losses(made: Experiment) -> list[float]:
        history = storage.read_json(storage.join(pretrain(made).uri, "history.json"))["history"]
        return [epoch["loss"] for epoch in history]

    ended, sizes = threading.Event(), []

    def nodes() -> None:
        def moved() -> bool:
            files = storage.list_files(storage.join(storage.from_path(Path(folder)), "resized"), "checkpoint.json")
            found = max((int(file.rsplit("checkpoint_", 1)[1][:9]) for file in files), default=0)
            new = found > seen[0]
            seen[0] = max(seen[0], found)
            return new

        def until(workers: int) -> None:
            count = 0
            while not ended.is_set() and count < 2:
                alive = ray.cluster_resources()["CPU"] - ray.available_resources().get("CPU", 0.0)
                count = count + 1 if alive == workers and moved() else count
                time.sleep(0.2)
            sizes.append(workers)

        seen = [0]
        until(1)
        node = cluster.add_node(num_cpus=1)
        until(2)
        cluster.remove_node(node)
        until(1)

    alone = losses(on_ray("alone", folder, epochs=epochs))
    resized: list[float] = []

    def train_resized() -> None:
        try:
            resized.extend(losses(on_ray("resized", folder, epochs=epochs, workers=2, min_workers=1)))
        finally:
            ended.set()

    thread = threading.Thread(target=train_resized)
    thread.start()
    nodes()  # here, because a node can be started only in the main thread
    thread.join()
    differences = [abs(one - other) for one, other in zip(alone, resized, strict=True)]
    # Sums over workers round otherwise, and each step makes the difference of the step before larger.
    shown = ", ".join(f"{number + 1}: {differences[number]:.1g}" for number in range(0, len(differences), 5))
    print(f"workers {sizes}, {len(alone)} epochs; difference of the loss of epoch {shown}")
    ray.shutdown()
    cluster.shutdown()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=ROWS, default=ROWS)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=60, help="of the row resize")
    parser.add_argument("--drive", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--ray-kills", help=argparse.SUPPRESS)
    parser.add_argument("--measure", nargs=5, help=argparse.SUPPRESS)
    parser.add_argument("--resume", help=argparse.SUPPRESS)
    parser.add_argument("--resize", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        prefix, name, *numbers = arguments.measure
        measure(prefix, name, *map(int, numbers))
    elif arguments.resume:
        resume(arguments.resume)
    elif arguments.resize:
        resize(arguments.resize, arguments.epochs)
    elif arguments.drive:
        drive(*arguments.drive)
    elif arguments.ray_kills:
        ray_kills(arguments.ray_kills, arguments.kills)
    else:
        with tempfile.TemporaryDirectory() as folder:
            prefix = shard(Path(folder, "pairs"))
            for row in arguments.only:
                print(f"## {row}", flush=True)
                if row == "resume":
                    subprocess.run([sys.executable, __file__, "--resume", prefix], check=True)
                elif row == "memory":
                    memory(prefix)
                elif row == "shuffle":
                    shuffle()
                elif row == "checkpoint":
                    store()
                elif row == "kills":
                    kills(arguments.kills)
                elif row in {"validation", "peers", "plan", "two-cores"}:
                    script = Path(__file__).with_name(f"{row.replace('-', '_')}.py")
                    subprocess.run([sys.executable, str(script)], check=True)
                else:
                    command = [sys.executable, __file__, f"--{row}", str(Path(folder, row))]
                    command += ["--epochs", str(arguments.epochs), "--kills", str(arguments.kills)]
                    subprocess.run(command, check=True)


if __name__ == "__main__":
    sys.path.insert(0, os.fspath(Path(__file__).parents[2]))
    main()
