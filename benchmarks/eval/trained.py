"""Measure a trained model: its results under each named protocol.

    python benchmarks/eval/trained.py --model MODEL [--config configs/demo.yaml] [--limit IMAGES]
        [--only fashion-mnist tuxpaint HOLD-OUT …]

``MODEL`` is what ``wukong evaluate --model`` takes: a folder, or for instance ``models:/demo@champion`` after
``make run``. Hold-outs are those of the newest run of the experiment in ``--config``. The table is printed in Markdown;
the last line of output is JSON.
"""

import argparse
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from infra import corpus
from infra.corpus import packages
from wukong.config import documents
from wukong.config.experiment import Experiment
from wukong.data import images, shards
from wukong.evaluate import adapters, answers, classification, prompts, retrieval, sets
from wukong.evaluate.blocks import Files
from wukong.evaluate.data_set import Classification
from wukong.evaluate.interval import Interval
from wukong.evaluate.model import Model
from wukong.evaluate.protocol import PROTOCOLS, Protocol
from wukong.runs import run_records
from wukong.runtime import environment
from wukong.store import manifest, storage

BATCH = 64
EMBEDDED = {
    "fashion-mnist": (packages.FASHION_MNIST, "usr/share/datasets/fashion-mnist"),
    "tuxpaint": (packages.STAMPS, "usr/share/tuxpaint"),
}

Measure = Callable[[Model, Protocol], dict[str, Interval]]
Seen = dict[str, Tensor]


def protocols(model: Model, experiment: Experiment, limit: int, cache: Path, only: Sequence[str]) -> dict[str, Any]:
    """Measure the embedded sets and the hold-outs under each protocol, and print one row for each result."""
    names = only or [*EMBEDDED, *(holdout.name for holdout in experiment.filter.split.holdouts)]
    measures = {**embedded(names, limit, cache), **holdouts(names, experiment)}
    found: dict[str, Any] = {}
    print(f"| set | result | {' | '.join(PROTOCOLS)} |\n|---|---|{'---|' * len(PROTOCOLS)}")
    for title, measure in measures.items():
        by_protocol = {name: measure(model, protocol) for name, protocol in PROTOCOLS.items()}
        for result in next(iter(by_protocol.values())):
            cells = [cell(by_protocol[name][result]) for name in PROTOCOLS]
            print(f"| {title} | {result} | {' | '.join(cells)} |", flush=True)
        found[title] = {
            name: {result: asdict(value) for result, value in results.items()} for name, results in by_protocol.items()
        }
    return found


def cell(value: Interval) -> str:
    return f"{100 * value.value:.1f} ({100 * value.low:.1f}-{100 * value.high:.1f})"


def embedded(names: Sequence[str], limit: int, cache: Path) -> dict[str, Measure]:
    """Return how to measure the embedded sets: the first ``limit`` images of fashion-mnist, all of tuxpaint."""
    found: dict[str, Measure] = {}
    for name, (package, place) in EMBEDDED.items():
        if name not in names:
            continue
        data_set = sets.of(name)
        assert isinstance(data_set, Classification)
        folder = packages.fetch(package, corpus.cache_folder() / "packages") / place
        seen: Seen = {}

        def measure(
            model: Model,
            protocol: Protocol,
            name: str = name,
            data_set: Classification = data_set,
            folder: Path = folder,
            seen: Seen = seen,
        ) -> dict[str, Interval]:
            data = data_set.read(folder, protocol.split(name))
            size = min(limit, len(data)) if name == "fashion-mnist" else len(data)
            shown = encode(seen, model, (data.image(i) for i in range(size)), protocol)
            called = [each.chinese for each in data_set.classes]
            classes = classification.embed(model, called, prompts.of(protocol.prompts, name), protocol, Files(cache))
            scores = classification.scores(model, shown, classes, protocol)
            judged = classification.judged(scores, torch.from_numpy(data.labels[:size]), protocol, name)
            results = classification.measured(judged, len(called), protocol, name)
            return {"top-1": results.top1, "mean per class": results.mean_per_class}

        found[data_set.title] = measure
    return found


def holdouts(names: Sequence[str], experiment: Experiment) -> dict[str, Measure]:
    """Return how to measure the hold-outs of the newest run: every pair's caption is a query."""
    environment.use_for(experiment.root)
    newest = run_records.latest(experiment, "filter")
    if newest is None:
        raise SystemExit(f"no run of {experiment.name} has filtered yet at {experiment.root}: make run")
    filtered = manifest.load(newest)
    found: dict[str, Measure] = {}
    for holdout in experiment.filter.split.holdouts:
        if holdout.name not in names:
            continue
        rows: list[dict[str, str]] = []
        bytes_of: dict[str, bytes] = {}
        for uri in filtered.part_uris(f"{holdout.name}/", ".parquet"):
            rows += storage.read_table(uri, ["key", "caption", "sha256"]).to_pylist()
            bytes_of |= dict(shards.pictures(uri.removesuffix(".parquet") + ".tar"))
        task = retrieval.task([row["sha256"] for row in rows], [row["caption"] for row in rows], "all")
        keys = [rows[row]["key"] for row in task.pictures.tolist()]
        seen: Seen = {}

        def measure(
            model: Model,
            protocol: Protocol,
            task: retrieval.Task = task,
            keys: Sequence[str] = keys,
            bytes_of: dict[str, bytes] = bytes_of,
            seen: Seen = seen,
        ) -> dict[str, Interval]:
            pairs = retrieval.Pairs.of([row.nonzero()[0].tolist() for row in task.relevant.numpy()], len(keys))
            shown = encode(seen, model, (images.decode(bytes_of[key], key) for key in keys), protocol)
            texts = model.encode_texts(task.texts, protocol)
            searched = retrieval.search(shown, texts, pairs, model.similarity, protocol.retrieval_ties)
            answered = answers.of_retrieval(searched, pairs, task.texts, keys, share=protocol.hit == "share")
            result = answered.intervals()
            return {
                "R@1, text to image": result["text_to_image_r1"],
                "R@1, image to text": result["image_to_text_r1"],
                "mean recall": result["mean_recall"],
            }

        found[holdout.title or holdout.name] = measure
    return found


def encode(seen: Seen, model: Model, pictures: Iterable[Image.Image], protocol: Protocol) -> Tensor:
    """Encode a set's images; protocols with the same transform share them, and all do where every picture is square."""
    if protocol.transform not in seen:
        found, square = encoded(model, pictures, protocol)
        seen |= dict.fromkeys(("crop", "squash") if square else (protocol.transform,), found)
    return seen[protocol.transform]


def encoded(model: Model, pictures: Iterable[Image.Image], protocol: Protocol) -> tuple[Tensor, bool]:
    """Return the images' vectors, and whether every picture is square: then to cut and to squash it are the same."""
    parts: list[Tensor] = []
    batch: list[Image.Image] = []
    square = True
    for picture in pictures:
        batch.append(picture)
        square = square and picture.width == picture.height
        if len(batch) == BATCH:
            parts.append(model.encode_images(batch, protocol))
            batch = []
    return torch.cat([*parts, *([model.encode_images(batch, protocol)] if batch else [])]), square


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--config", type=Path, default=Path("configs/demo.yaml"))
    parser.add_argument("--limit", type=int, default=10_000, help="images of fashion-mnist")
    parser.add_argument("--only", nargs="+", help="names of embedded sets and hold-outs; by default all")
    options = parser.parse_args()
    cache = corpus.cache_folder().with_name("classes")
    experiment = documents.load(options.config, [])
    found = protocols(adapters.load(options.model), experiment, options.limit, cache, options.only or [])
    print(json.dumps(found, ensure_ascii=False))


if __name__ == "__main__":
    main()
