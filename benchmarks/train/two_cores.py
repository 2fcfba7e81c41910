"""Time the demo's pre-training on Ray Train beside a plain loop of one process, in turn, on two cores.

    python benchmarks/train/two_cores.py [--workers 1 2 4] [--rounds 3] [--epochs 3]

All train the demo's model on stored features with the captions of the demo corpus and the demo's settings. The features
are random numbers of the tower's width: their values do not change the time. The plain loop keeps all of them in memory
with the ids of the captions, and does what a script does: one process with two threads, the loss of the model, LAMB of
timm on whole gradients. It writes and reports nothing. Pairs a second are those of the epochs after the first; the
median of the rounds counts.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from timm.optim import Lamb

from wukong.config import documents
from wukong.config.experiment import Experiment
from wukong.data import feature_files
from wukong.data.tokenizer import Tokenizer
from wukong.model.dual import DualEncoder
from wukong.store import storage
from wukong.train import checkpoint, optimizer
from wukong.train.corpus import Corpus

CORES = 2
PAIRS = 4_096
"""Pairs of an epoch, 16 steps, as in the demo."""
WIDTH = 320
"""Width of the demo's features."""
DEMO = Path(__file__).parents[2] / "configs" / "demo.yaml"


def demo(epochs: int, **changed: Any) -> Experiment:
    """The demo with another number of epochs and other settings of its pre-training."""
    document = documents.load(DEMO)
    section = document.pretrain.model_copy(update={"epochs": epochs, **changed})
    return document.model_copy(update={"pretrain": section})


def write(folder: Path) -> None:
    """Write a shard's table and features."""
    from infra import corpus

    captions = [entry.title for entry in corpus.prepare().entries][:PAIRS]
    keys = [f"{number:020x}" for number in range(PAIRS)]
    urls = [f"http://pictures.example/{key}.jpg" for key in keys]
    (folder / "train").mkdir(parents=True)
    pq.write_table(pa.table({"key": keys, "url": urls, "caption": captions}), folder / "train" / "00000.parquet")
    values = torch.randn(PAIRS, WIDTH, generator=torch.Generator().manual_seed(0)).half()
    feature_files.write(storage.from_path(folder / feature_files.path_of("train", "00000", 0)), keys, values)


def plain(folder: Path, epochs: int) -> None:
    """Train as a script does; print the pairs a second of each epoch after the first."""
    torch.set_num_threads(CORES)
    experiment = demo(epochs)
    settings, tokenizer = experiment.pretrain, Tokenizer.of(experiment.model.text)
    captions = pq.read_table(folder / "train" / "00000.parquet")["caption"].to_pylist()
    ids = tokenizer.encode(captions)
    uri = storage.from_path(folder / feature_files.path_of("train", "00000", 0))
    features = feature_files.read_rows(uri, 0, PAIRS)[1].float()
    numbers = {caption: number for number, caption in enumerate(captions)}
    equal = torch.tensor([numbers[caption] for caption in captions])
    torch.manual_seed(0)
    model = DualEncoder(experiment.model, tokenizer, feature_width=WIDTH).train()
    model.whiten_image_head(features)
    groups = optimizer.parameter_groups(model, settings)
    lamb = Lamb(groups, betas=optimizer.BETAS, eps=settings.epsilon, max_grad_norm=None, always_adapt=True)
    steps = PAIRS // settings.batch_size
    for epoch in range(epochs):
        began = time.perf_counter()
        order = torch.randperm(PAIRS)
        for step in range(steps):
            rows = order[step * settings.batch_size : (step + 1) * settings.batch_size]
            for group in lamb.param_groups:
                rate = optimizer.learning_rate(epoch * steps + step, epochs * steps, settings)
                group["lr"] = rate * group["rate"]
            lamb.zero_grad()
            embedded = model(features[rows], tokenizer.collate([ids[row] for row in rows.tolist()]))
            model.loss(embedded, equal[rows]).backward()
            lamb.step()
            model.clamp_temperature()
        if epoch:
            print(PAIRS / (time.perf_counter() - began), flush=True)


def on_ray(folder: Path, epochs: int, workers: int) -> list[float]:
    """Train on workers of Ray Train; return the pairs a second of each epoch after the first."""
    from ray_jobs import worker_group
    from ray_jobs.training_worker import Job

    experiment, prefix = demo(epochs, workers=workers, threads=max(1, CORES // workers)), storage.from_path(folder)
    with tempfile.TemporaryDirectory(dir=folder) as own:
        job = Job(
            name="pretrain",
            model=experiment.model,
            settings=experiment.pretrain,
            seed=0,
            corpus=Corpus(prefix, ("00000",), (PAIRS,), "digest"),
            features=prefix,
            start=None,
            checkpoints=storage.from_path(Path(own, "checkpoints")),
            validation=None,
        )
        worker_group.run(job, storage.from_path(Path(own, "ray")))
        newest = checkpoint.newest(job.checkpoints)
        assert newest is not None
        history = checkpoint.load_weights(newest)[1]["history"]
    return [epoch["pairs_per_second"] for epoch in history[1:]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--plain", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.plain:
        plain(Path(options.plain), options.epochs)
        return
    import ray

    ray.init("local", num_cpus=max(CORES, *options.workers), include_dashboard=False, log_to_driver=False)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(folder)
        command = [sys.executable, __file__, "--plain", name, "--epochs", str(options.epochs)]
        peer: list[float] = []
        ours: dict[int, list[float]] = {workers: [] for workers in options.workers}
        for _ in range(options.rounds):
            answer = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            peer.append(statistics.median(map(float, answer.split())))
            for workers, speeds in ours.items():
                speeds.append(statistics.median(on_ray(folder, options.epochs, workers)))
                print(f"{workers} workers: {speeds[-1]:,.0f} pairs/s, plain loop {peer[-1]:,.0f}", flush=True)
        base = statistics.median(peer)
        print(f"plain loop, {CORES} threads: {base:,.0f} pairs/s, of {[round(speed) for speed in peer]}")
        for workers, speeds in ours.items():
            speed = statistics.median(speeds)
            each = [round(speed) for speed in speeds]
            print(f"{workers} workers: {speed:,.0f} pairs/s, of {each}: {speed / base:.2f} of the plain loop")
    ray.shutdown()


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))
    main()
