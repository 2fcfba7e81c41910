"""How long the blocks of an evaluation take, from rates that are measured here, and what sharing a tower saves.

    python benchmarks/scale/evaluate.py plan [--models vit-l-14 vit-b-32] [--similarity token] [--protocol paper]
    python benchmarks/scale/evaluate.py shared [--pictures 256]
    python benchmarks/scale/evaluate.py similarity [--pictures 256]

``plan`` measures one core: the towers of the architectures, a text tower, token-wise and global scores, and decoding.
It divides the 22 sets into blocks as the evaluate job does, and prints the hours of one core of two models that share
their tower, the longest task, and for comparison the longest task if a set is one task. ``shared`` times two models
with one small ViT on two cores, together and one after the other. ``similarity`` times the filter's rule on two cores:
two processes of one thread, and one of two.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from wukong.config.model import Model as Settings
from wukong.data.tokenizer import Tokenizer, packaged_vocabulary
from wukong.evaluate import best_words, encoding, paper, prompts, sets, tasks
from wukong.evaluate.blocks import Sizes
from wukong.evaluate.classification import PIECE_CLASSES
from wukong.evaluate.data_set import Classification, ClassificationData, WordOrder
from wukong.evaluate.formats.pictures import Files
from wukong.evaluate.model import OwnModel
from wukong.evaluate.protocol import PROTOCOLS, Protocol
from wukong.model import cost
from wukong.model.dual import DualEncoder, Texts
from wukong.model.image_encoder import ImageEncoder
from wukong.model.saved_model import SavedModel, save
from wukong.model.similarity import global_similarity, token_similarity
from wukong.stages.estimate import CAPTION_TOKENS
from wukong.store import storage
from wukong.train.rates import photograph

MODELS = 2
TEXTS = 4096
"""Captions of a block (``wukong.evaluate.image_text``)."""
PAPER = (*paper.TABLE_5, *paper.TABLE_7)
"""The paper's 22 sets."""


def seconds(work: Callable[[], object], at_least: float = 4.0) -> float:
    """Seconds of a call, the best of those that fit into some seconds, after one that is not counted."""
    work()
    best, started = float("inf"), time.perf_counter()
    while time.perf_counter() - started < at_least:
        begun = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - begun)
    return best


@dataclass(frozen=True)
class Rates:
    """Seconds of one core for an image through the tower, a text, a token-wise or global pair, a class score of a text,
    and a decoded image."""

    tower: float
    text: float
    pair: float
    class_text: float
    decode: float


def measured(settings: Settings) -> Rates:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    tower = ImageEncoder(settings.image, with_weights=False).eval().requires_grad_(requires_grad=False)
    tokenizer = Tokenizer(packaged_vocabulary())
    dual = DualEncoder(settings, tokenizer, tower, with_weights=False).eval().requires_grad_(requires_grad=False)
    size, width = settings.image.image_size, dual.width
    pixels = torch.randint(0, 256, (8, 3, size, size), dtype=torch.uint8)
    ids = tokenizer(["第" + "一张照片里的猫和狗" * 2] * 256)[:, :CAPTION_TOKENS]
    patches = cost.compared_vectors(settings, cost.feature_shape(settings))
    with torch.inference_mode():
        of_image = seconds(lambda: tower(pixels)) / len(pixels)
        of_text = seconds(lambda: dual.embed_text(ids)) / len(ids)
        if settings.is_token_wise:
            image = F.normalize(torch.randn(64, patches, width), dim=-1)
            words = F.normalize(torch.randn(512, CAPTION_TOKENS, width), dim=-1)
            counted = torch.ones(512, CAPTION_TOKENS).bool()
            pair = seconds(lambda: token_similarity(image, words, counted)) / (64 * 512)
            texts = Texts(words, counted)
            one = best_words.rough if best_words.rough_is_quicker() else best_words.exact
            class_text = seconds(lambda: one(image, texts)) / (64 * 512)
        else:
            image, words = (F.normalize(torch.randn(2048, width), dim=-1) for _ in range(2))
            pair = seconds(lambda: global_similarity(image, words).image_to_text.topk(10, 1)) / 2048**2
            class_text = 2 * width / 5e10
    return Rates(of_image, of_text, pair, class_text, _decoding(size))


def _decoding(size: int) -> float:
    from wukong.data import images

    files = [photograph(number) for number in range(8)]
    return seconds(
        lambda: [images.to_tensor([images.evaluation_view(images.decode(each, ""), size, "crop")]) for each in files]
    ) / len(files)


def plan(settings: Settings, protocol: Protocol) -> None:
    rate = measured(settings)
    print(f"{settings.image.name}: seconds of a core: {rate}", flush=True)
    patches = cost.compared_vectors(settings, cost.feature_shape(settings))
    words = CAPTION_TOKENS if settings.is_token_wise else 1
    width = settings.embedding or settings.text.width
    of_pair, of_tower = 2.0 * patches * words * width, cost.tower_flops(settings)
    whole, pictures, blocks = dict.fromkeys(("texts", "images", "scores", "repeated"), 0.0), 0, 0
    longest, longest_set, rows = 0.0, 0.0, []
    for name, data_set in sets.REGISTRY.items():
        if name not in PAPER or isinstance(data_set, WordOrder):
            continue
        split = protocol.split(name)
        if isinstance(data_set, Classification):
            images, classes = data_set.splits[split], len(data_set.classes)
            texts = classes * len(prompts.of(protocol.prompts, name))
            sizes = Sizes.of(of_tower + MODELS * texts * of_pair, of_pair, 4 * patches * width)
            of_block = sizes.images * (rate.tower + rate.decode + MODELS * texts * rate.class_text)
            kinds = {
                "texts": (MODELS * -(-classes // PIECE_CLASSES), PIECE_CLASSES * texts / classes * rate.text),
                "images": (-(-images // sizes.images), of_block),
                "scores": (0, 0.0),
            }
            scores = MODELS * texts * images * rate.class_text
        else:
            images, texts = data_set.splits[split]
            sizes = Sizes.of(of_tower, of_pair, 4 * patches * width)
            tiles = -(-images // sizes.side) * -(-texts // sizes.side)
            in_tile = min(images, sizes.side) * min(texts, sizes.side)
            kinds = {
                "texts": (MODELS * -(-texts // TEXTS), min(TEXTS, texts) * rate.text),
                "images": (-(-images // sizes.images), sizes.images * (rate.tower + rate.decode)),
                "scores": (MODELS * tiles, in_tile * rate.pair),
            }
            scores = MODELS * images * texts * rate.pair
        whole["texts"] += MODELS * texts * rate.text
        whole["images"] += images * (rate.tower + rate.decode)
        whole["scores"] += scores
        whole["repeated"] += images * (rate.tower + rate.decode)
        pictures += images
        blocks += sum(count for count, _ in kinds.values())
        of_set = MODELS * images * (rate.tower + rate.decode) + MODELS * texts * rate.text + scores
        slowest = max(time for _, time in kinds.values())
        longest, longest_set = max(longest, slowest), max(longest_set, of_set)
        rows.append((name, images, texts, sizes, sum(count for count, _ in kinds.values()), slowest))
    for name, images, texts, sizes, count, slowest in rows:
        print(
            f"  {name:16} {images:7,} pictures {texts:8,} texts, {count:5,} blocks of {sizes}, at most {slowest:,.0f} s"
        )
    total = whole["texts"] + whole["images"] + whole["scores"]
    print(
        f"  {pictures:,} pictures, {MODELS} models: {total / 3600:,.1f} hours of a core in {blocks:,} blocks "
        f"(pictures {whole['images'] / 3600:,.1f}, texts {whole['texts'] / 3600:,.1f}, scores "
        f"{whole['scores'] / 3600:,.1f}); each model by itself {(total + whole['repeated']) / 3600:,.1f}\n"
        f"  longest task {longest / 60:,.1f} minutes; a set as one task {longest_set / 3600:,.1f} hours",
        flush=True,
    )


def drawn(folder: Path, count: int) -> Files:
    for number in range(count):
        (folder / f"{number:05d}.jpg").write_bytes(photograph(number % 64))
    return Files(folder, [f"{number:05d}.jpg" for number in range(count)])


def small(similarity: str) -> SavedModel:
    torch.manual_seed(0)
    settings = Settings.model_validate(
        {
            "image": {"name": "vit_small_patch16_224", "weights": "random"},
            "text": {"layers": 2, "heads": 4, "width": 128},
            "similarity": similarity,
        }
    )
    tokenizer = Tokenizer(packaged_vocabulary())
    dual = DualEncoder(settings, tokenizer, ImageEncoder(settings.image, with_weights=False), with_weights=False)
    with torch.no_grad():
        dual.text.tokens.weight.mul_(50)
    return SavedModel(dual.eval(), tokenizer)


def shared(count: int, similarity: str) -> None:
    """Two models with one ViT-S tower on two threads: as blocks, and one model after the other."""
    torch.set_num_threads(2)
    first = small(similarity)
    second = SavedModel(deepcopy(first.model), first.tokenizer)
    models = {"pretrained": OwnModel(first, "first"), "finetuned": OwnModel(second, "second")}
    names = [f"第{number}类" for number in range(10)]
    with tempfile.TemporaryDirectory() as scratch:
        files, labels = drawn(Path(scratch), count), np.arange(count) % len(names)
        data = ClassificationData("x", "test", names, list(files.paths), labels, files, "X", names)

        def measure() -> None:
            tasks.measure_all(models, data, PROTOCOLS["paper"], Path(scratch, "classes"))

        apart = seconds(measure, 20)
        encoding.share_towers(models.values())
        both = seconds(measure, 20)
    print(
        f"{similarity}, two models, {count} pictures: {apart:.1f} s one by one, {both:.1f} s together, "
        f"{apart / both:.2f} x"
    )


RULE = """
import sys, time, torch
from wukong.config.filter import Filter
from wukong.curate import rules
threads, tar, model, part, parts = int(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5])
settings = Filter(similarity_model=model, duplicate_images="keep")
from wukong.data import shards
keys = [key for key, _ in shards.pictures(tar)][part::parts]
captions = {key: ["红色的猫"] for key in keys}
rules.compute_from_pictures(tar, dict(list(captions.items())[:8]), settings)
torch.set_num_threads(threads)
print("ready", flush=True); sys.stdin.readline()
rules.compute_from_pictures(tar, captions, settings)
print("done", flush=True)
"""


def similarity(count: int) -> None:
    """The filter's rule on two cores: two processes of a thread each, and a process of two threads."""
    import io
    import tarfile

    with tempfile.TemporaryDirectory() as scratch:
        model = storage.from_path(Path(scratch, "model"))
        loaded = small("global")
        save(model, loaded.model, loaded.tokenizer)
        with tarfile.open(Path(scratch, "shard.tar"), "w") as tar:
            for number in range(count):
                picture = photograph(number % 64)
                entry = tarfile.TarInfo(f"{number:016x}.jpg")
                entry.size = len(picture)
                tar.addfile(entry, io.BytesIO(picture))
        for processes, threads in ((2, 1), (1, 2)):
            environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
            command = [sys.executable, "-c", RULE, str(threads), storage.from_path(Path(scratch, "shard.tar")), model]
            running = [
                subprocess.Popen(
                    [*command, str(part), str(processes)],
                    env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                )
                for part in range(processes)
            ]  # fmt: skip
            for each in running:
                assert each.stdout is not None and each.stdout.readline() == "ready\n"
            started = time.perf_counter()
            for each in running:
                assert each.stdin is not None
                each.stdin.write("\n")
                each.stdin.flush()
            for each in running:
                assert each.stdout is not None and each.stdout.readline() == "done\n"
            taken = time.perf_counter() - started
            for each in running:
                each.wait()
            print(f"{processes} processes of {threads} threads: {count / taken:.1f} pictures a second", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", choices=["plan", "shared", "similarity"])
    parser.add_argument("--models", nargs="+", default=["vit-l-14", "vit-b-32"])
    parser.add_argument("--similarity", choices=["token", "global"], nargs="+", default=["token", "global"])
    parser.add_argument("--protocol", choices=sorted(PROTOCOLS), default="paper")
    parser.add_argument("--pictures", type=int, default=256)
    options = parser.parse_args()
    if options.work == "similarity":
        similarity(options.pictures)
        return
    for kind in options.similarity:
        if options.work == "shared":
            shared(options.pictures, kind)
            continue
        for name in options.models:
            settings = Settings.model_validate({"architecture": name, "similarity": kind})
            image = settings.image.model_copy(update={"weights": "random"})
            plan(settings.model_copy(update={"image": image}), PROTOCOLS[options.protocol])


if __name__ == "__main__":
    main()
