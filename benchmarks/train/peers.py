"""Time a training with a locked image tower beside open_clip and cn_clip, step by step in turn, in one process.

    python benchmarks/train/peers.py [--only own-context context-32 l-14 waiting workers] [--rounds 5]

open_clip 3.3.0 and cn_clip 1.6.0 are installed in folders of their own in ``--work``. All have the same shapes: CLIP's
image tower, a text tower of 3 layers of width 768 with 21,128 word pieces, an embedding of 512, float32, AdamW, random
weights. The image tower is locked in each library's own way. open_clip trains by its own ``train_one_epoch``; cn_clip's
needs a GPU, so its steps are written here, with its model and its loss.

Ours reads pictures from a shard, decodes and augments them, all inside the measured time. The peers get tensors that
are ready, so their data loading costs nothing. They pad captions to their own context, 77 and 52 tokens, or to 32; ours
cuts a batch to its longest caption. Rounds take turns; the median round counts, in elapsed seconds and in processor
seconds.

``l-14`` measures the forward pass of the larger tower; what a training with it takes is computed from that and from the
steps of the smaller one. ``waiting`` is the share of a step in which training waits for data, ``workers`` compares one
process on one core with two on two.
"""

import argparse
import io
import json
import logging
import math
import multiprocessing
import os
import socket
import statistics
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from wukong.config.model import Model
from wukong.config.training import Training
from wukong.data import feature_files
from wukong.data.feature_files import File
from wukong.data.tokenizer import Tokenizer
from wukong.model.dual import DualEncoder
from wukong.model.image_encoder import ImageEncoder
from wukong.store import storage
from wukong.train import features, gradients, optimizer, rates
from wukong.train.batches import Batch
from wukong.train.corpus import Corpus
from wukong.train.feature_pairs import FeaturePairs
from wukong.train.looks import Look
from wukong.train.loop import train
from wukong.train.pairs import Loaded, Pairs
from wukong.train.picture_pairs import PicturePairs
from wukong.train.stream import Piece

sys.path.insert(0, str(Path(__file__).parents[1] / "model"))
import measure

BATCH, EPOCHS, VIEWS = 32, 20, 2
"""Views are all that are stored: the plain one and an augmented one."""
TOWERS = {
    "b-32": ("vit_base_patch32_clip_quickgelu_224.openai", {"layers": 12, "width": 768, "patch_size": 32}, 32),
    "l-14": ("vit_large_patch14_clip_quickgelu_224.openai", {"layers": 24, "width": 1024, "patch_size": 14}, 4),
}
"""Name in timm, open_clip's settings, and images of a measured forward pass."""
TEXT = {"layers": 3, "heads": 12, "width": 768}
EMBEDDING, VOCABULARY = 512, 21_128
OURS = {"batch_size": BATCH, "workers": 1, "optimizer": "adamw"}
PEERS = ("open_clip", "cn_clip")
SHARED = (64, 256)
"""Pairs of a step that two workers share. Gradients and the optimiser take the same time for any number."""

CPU = torch.device("cpu")
Step = Callable[[], object]


def shard(folder: Path, pairs: int) -> None:
    """Write photographs of 341 x 256 pixels with captions as long as in table 2 (mean 22 tokens)."""
    (folder / "train").mkdir()
    keys, photographs = [f"{number:08d}" for number in range(pairs)], [rates.photograph(seed) for seed in range(16)]
    with tarfile.open(folder / "train" / "00000.tar", "w") as tar:
        for number, key in enumerate(keys):
            data = photographs[number % 16]
            member = tarfile.TarInfo(f"{key}.jpg")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    lengths = (20 + 7 * torch.randn(pairs, generator=torch.Generator().manual_seed(0))).round().clamp(1, 30)
    characters = [chr(0x4E00 + number) for number in range(2000)]
    captions = [
        "".join(characters[(7 * number + 13 * place) % 2000] for place in range(int(length)))
        for number, length in enumerate(lengths)
    ]
    table = pa.table({"key": keys, "caption": captions, "url": [f"http://pictures.example/{key}" for key in keys]})
    pq.write_table(table, folder / "train" / "00000.parquet")


def forever(pairs: Pairs, size: int) -> Iterator[Batch]:
    while True:
        yield from pairs.batches(size, 0, last=10**6)


def ours(model: DualEncoder, pairs: Pairs, settings: Training, device: torch.device = CPU) -> Step:
    """A step as in ``wukong.train.loop``, with its reading of the data."""
    model = model.to(device)
    optimiser, batches = optimizer.build(model, settings), forever(pairs, settings.batch_size)
    model.train()

    def step() -> None:
        batch = next(batches).to(device, model.text.padding, model.text.positions.num_embeddings)
        optimiser.zero_grad()
        gradients.backward(model, model, batch, settings)
        optimiser.step()
        model.clamp_temperature()

    return step


def open_clip(
    tower: str, context: int, ids: Tensor, device: torch.device = CPU, precision: str = "fp32"
) -> tuple[nn.Module, Step]:
    """open_clip's model, and a step of it by its own training loop."""
    import open_clip as library
    from open_clip_train.train import train_one_epoch

    config = {
        "embed_dim": EMBEDDING,
        "quick_gelu": True,
        "vision_cfg": {"image_size": 224, **TOWERS[tower][1]},
        "text_cfg": {"context_length": context, "vocab_size": VOCABULARY, **TEXT},
    }
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "peer.json").write_text(json.dumps(config))
        library.add_model_config(folder)
        model = library.create_model("peer", precision=precision, device=device, output_dict=True)
    model.lock_image_tower(unlocked_groups=0, freeze_bn_stats=True)
    adam = torch.optim.AdamW((weight for weight in model.parameters() if weight.requires_grad), lr=1e-4)
    loss = library.ClipLoss(local_loss=False, gather_with_grad=False, cache_labels=True, rank=0, world_size=1)
    arguments = SimpleNamespace(
        device=str(device),
        precision=precision,
        distill=False,
        accum_freq=1,
        skip_scheduler=True,
        horovod=False,
        grad_clip_norm=None,
        rank=0,
        local_rank=0,
        world_size=1,
        log_every_n_steps=10**9,
        batch_size=len(ids),
        log_local=False,
        wandb=False,
    )

    class Ready(list[tuple[Tensor, Tensor]]):
        num_batches, num_samples = 1, len(ids)

    batch = Ready([(torch.randn(len(ids), 3, 224, 224), padded(ids, context))])
    data = {"train": SimpleNamespace(dataloader=batch, set_epoch=lambda _epoch: None)}
    return model, lambda: train_one_epoch(model, data, loss, 0, adam, None, None, None, arguments)


def cn_clip(tower: str, context: int, ids: Tensor) -> tuple[nn.Module, Step]:
    """cn_clip's model, and a step as in ``cn_clip/training/train.py`` on one worker without a GPU."""
    from cn_clip.clip.model import CLIP

    vision = TOWERS[tower][1]
    model = CLIP(
        embed_dim=EMBEDDING,
        image_resolution=224,
        vision_layers=vision["layers"],
        vision_width=vision["width"],
        vision_patch_size=vision["patch_size"],
        vocab_size=VOCABULARY,
        text_attention_probs_dropout_prob=0.0,
        text_hidden_act="gelu",
        text_hidden_dropout_prob=0.0,
        text_hidden_size=TEXT["width"],
        text_initializer_range=0.02,
        text_intermediate_size=4 * TEXT["width"],
        text_max_position_embeddings=512,
        text_num_attention_heads=TEXT["heads"],
        text_num_hidden_layers=TEXT["layers"],
        text_type_vocab_size=2,
    ).float()
    for weight in model.visual.parameters():
        weight.requires_grad = False
    adam = torch.optim.AdamW((weight for weight in model.parameters() if weight.requires_grad), lr=1e-4)
    pictures, texts, truth = torch.randn(BATCH, 3, 224, 224), padded(ids, context), torch.arange(BATCH)
    model.train()

    def step() -> None:
        adam.zero_grad()
        image, text, scale = model(pictures, texts, 0)
        logits = scale.mean() * image @ text.t(), scale.mean() * text @ image.t()
        ((F.cross_entropy(logits[0], truth) + F.cross_entropy(logits[1], truth)) / 2).backward()
        adam.step()
        model.logit_scale.data = torch.clamp(model.logit_scale.data, 0, math.log(100))
        scale.item()

    return model, step


def on_a_gpu(tower: str, size: int, folder: Path, loaders: int, device: torch.device) -> tuple[Step, Step, Step]:
    """Return steps in bfloat16 with a text tower of 12 layers: ours from pictures and stored features, open_clip's."""
    TEXT["layers"] = 12
    shard(folder, 8 * size)
    corpus = Corpus(storage.from_path(folder), ("00000",), (8 * size,), "peers")
    image = {"name": TOWERS[tower][0], "weights": "random", "image_size": 224}
    model = Model.model_validate({"image": image, "text": TEXT, "embedding": EMBEDDING})
    tokenizer = Tokenizer.of(model.text)
    options = {"batch_size": size, "workers": 1, "optimizer": "adamw", "loader_workers": loaders}
    options |= {"precision": "bfloat16", "deterministic": False, "store_features": False}
    settings = Training.model_validate(options)
    pictures = PicturePairs(corpus, tokenizer, model.image, settings)
    dual = DualEncoder(model, tokenizer, ImageEncoder(model.image, with_weights=False), with_weights=False)
    assert dual.image is not None
    dual.image.lock("all")
    path = storage.join(corpus.prefix, feature_files.path_of("train", "00000", 0))
    for _ in features.compute(
        [File(corpus.uri(0, ".tar"), 0, path)], model, "float16", "bfloat16", None, device, loaders
    ):
        pass
    stored = FeaturePairs(corpus, tokenizer, corpus.prefix, (0,))
    cached = DualEncoder(model, tokenizer, feature_width=dual.image.pooled_width, with_weights=False)
    ids = next(FeaturePairs(corpus, tokenizer, corpus.prefix, (0,)).batches(size, 0)).ids
    theirs = open_clip(tower, 77, ids, device, "amp_bf16")[1]
    return ours(dual, pictures, settings, device), ours(cached, stored, settings, device), theirs


def padded(ids: Tensor, context: int) -> Tensor:
    return F.pad(ids, (0, context - ids.shape[1])) if context > ids.shape[1] else ids[:, :context]


def measured(works: dict[str, Step], rounds: int, seconds: float) -> dict[str, dict[str, float]]:
    """Return the median seconds of each piece of work, elapsed and of processor, over rounds in which all take turns.

    It ends after some seconds, though not before two rounds.
    """
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in works}
    started = time.perf_counter()
    for number in range(rounds + 1):
        if number > 2 and time.perf_counter() - started > seconds:
            break
        for name, work in works.items():
            began, used = time.perf_counter(), time.process_time()
            work()
            if number:
                found[name].append((time.perf_counter() - began, time.process_time() - used))
    return {name: medians(each) for name, each in found.items()}


def medians(times: Sequence[tuple[float, float]]) -> dict[str, float]:
    elapsed, processor = zip(*times, strict=True)
    return {"elapsed": statistics.median(elapsed), "processor": statistics.median(processor), "rounds": len(times)}


def sides(tower: str, context: str, rounds: int, seconds: float) -> dict[str, dict[str, float]]:
    """Measure a step of each side, the bare forward pass and, with the smaller tower, filling the cache and reading."""
    torch.manual_seed(0)
    name, _, images = TOWERS[tower]
    image = {"name": name, "weights": "random", "image_size": 224}
    model = Model.model_validate({"image": image, "text": TEXT, "embedding": EMBEDDING})
    tokenizer = Tokenizer.of(model.text)
    contexts = (77, 52) if context == "own" else (32, 32)
    settings = Training.model_validate(OURS | {"loader_workers": 0, "store_features": False})
    with tempfile.TemporaryDirectory() as folder:
        shard(Path(folder), BATCH)
        corpus = Corpus(storage.from_path(Path(folder)), ("00000",), (BATCH,), "peers")
        pictures = PicturePairs(corpus, tokenizer, model.image, settings)
        ids = next(pictures.batches(BATCH, 0)).ids
        peers = {
            "open_clip": open_clip(tower, contexts[0], ids),
            "cn_clip": cn_clip(tower, contexts[1], ids),
        }
        encoder = ImageEncoder(model.image, with_weights=False).for_inference()
        pixels = torch.randint(0, 256, (images, 3, 224, 224), dtype=torch.uint8)

        def bare() -> None:
            with torch.inference_mode():
                encoder(pixels)

        works: dict[str, Step] = {"forward": bare}
        if tower == "b-32":
            locked = ImageEncoder(model.image, with_weights=False)
            locked.lock("all")
            dual = DualEncoder(model, tokenizer, locked, with_weights=False)
            works["streamed"] = ours(dual, pictures, settings)
            works |= {peer: step for peer, (_, step) in peers.items()}
            features._encoder = lambda *_: encoder  # the tower of the bare forward pass
            paths = [
                storage.join(corpus.prefix, feature_files.path_of("train", "00000", view)) for view in range(VIEWS)
            ]
            files = [File(corpus.uri(0, ".tar"), view, path) for view, path in enumerate(paths)]
            list(features.compute(files, model))
            works["fill"] = lambda: list(features.compute(files[1:], model))
            cached = DualEncoder(model, tokenizer, feature_width=locked.pooled_width, with_weights=False)
            works["cached"] = ours(cached, FeaturePairs(corpus, tokenizer, corpus.prefix, range(VIEWS)), settings)
        else:
            # What the peers would do with this tower in place of the smaller one.
            smaller = {"open_clip": open_clip("b-32", 77, ids), "cn_clip": cn_clip("b-32", 52, ids)}
            floats, more = torch.randn(images, 3, 224, 224), torch.randn(BATCH, 3, 224, 224)
            for peer in PEERS:
                works[peer] = forward_of(peers[peer][0], floats)
                works[f"{peer} b-32"] = forward_of(smaller[peer][0], more)
        return measured(works, rounds, seconds)


def waiting(steps: int) -> dict[str, float]:
    """Return the share of the time that steps wait for data, from pictures (a loader process) and stored features."""
    torch.manual_seed(0)
    image = {"name": TOWERS["b-32"][0], "weights": "random", "image_size": 224}
    model = Model.model_validate({"image": image, "text": TEXT, "embedding": EMBEDDING})
    tokenizer = Tokenizer.of(model.text)
    shares = {}
    with tempfile.TemporaryDirectory() as folder:
        shard(Path(folder), BATCH * steps)
        corpus = Corpus(storage.from_path(Path(folder)), ("00000",), (BATCH * steps,), "peers")
        locked = ImageEncoder(model.image, with_weights=False)
        locked.lock("all")
        for name in ("streamed", "cached"):
            options = OURS | {"loader_workers": 1, "store_features": name == "cached", "epochs": 1, "log_every": 1}
            settings = Training.model_validate(options)
            if name == "streamed":
                pairs: Pairs = PicturePairs(corpus, tokenizer, model.image, settings)
                dual = DualEncoder(model, tokenizer, locked, with_weights=False)
            else:
                values = torch.randn(corpus.rows[0], locked.pooled_width).half()
                path = Path(folder, feature_files.path_of("train", "00000", 0))
                keys = [f"{number:08d}" for number in range(corpus.rows[0])]
                feature_files.write(storage.from_path(path), keys, values)
                pairs = FeaturePairs(corpus, tokenizer, corpus.prefix, (0,))
                dual = DualEncoder(model, tokenizer, feature_width=locked.pooled_width, with_weights=False)
            looks: list[Look] = []
            train(dual, pairs, settings, 0, after_look=looks.append)
            later = looks[2:]  # before, the loader starts
            times = [1 / look.samples_per_second for look in later]
            shares[name] = sum(look.waiting_share * each for look, each in zip(later, times, strict=True)) / sum(times)
    return shares


class InMemory(FeaturePairs):
    """Pairs with features in memory."""

    def __init__(self, features: Tensor, tokenizer: Tokenizer) -> None:
        Pairs.__init__(self, [features.shape[1]], "peers", tokenizer)
        self._features = features

    def load(self, piece: Piece) -> Loaded:
        rows = range(piece.start, piece.stop)
        captions = [chr(0x4E00 + row) * (5 + row % 25) for row in rows]
        return self.loaded(piece, [str(row) for row in rows], captions, self._features[:, rows.start : rows.stop])


def worker(rank: int, workers: int, size: int, port: int, orders: Connection) -> None:
    """Train on stored features with one thread, a step at each order; answer with the seconds of processor it took."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if workers > 1:
        dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=workers)
    model = Model.model_validate({"text": TEXT, "embedding": EMBEDDING})
    tokenizer = Tokenizer.of(model.text)
    settings = Training.model_validate(OURS | {"batch_size": size, "workers": workers})
    dual = DualEncoder(model, tokenizer, feature_width=768, with_weights=False)
    replica = DistributedDataParallel(dual) if workers > 1 else dual
    optimiser = optimizer.build(dual, settings)
    pairs = InMemory(torch.randn(1, 1024, 768).half(), tokenizer)
    batches = pairs.batches(settings.batch_size, 0, 0, rank, workers, 10**6)
    while orders.recv():
        used = time.process_time()
        optimiser.zero_grad()
        gradients.backward(dual, replica, next(batches), settings)
        optimiser.step()
        dual.clamp_temperature()
        orders.send(time.process_time() - used)


def two_workers(rounds: int, size: int) -> dict[str, dict[str, float]]:
    """Measure a step of one process on one core and of two on two, in turn, on ``size`` pairs with stored features."""
    spawn = multiprocessing.get_context("spawn")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    groups: dict[str, list[tuple[BaseProcess, Connection]]] = {}
    for name, workers in (("one", 1), ("two", 2)):
        groups[name] = []
        for rank in range(workers):
            here, there = spawn.Pipe()
            process = spawn.Process(target=worker, args=(rank, workers, size, port, there), daemon=True)
            process.start()
            groups[name].append((process, here))
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in groups}
    for number in range(rounds + 2):
        for name, members in groups.items():
            began = time.perf_counter()
            for _, orders in members:
                orders.send(True)
            used = sum(orders.recv() for _, orders in members)
            if number > 1:
                found[name].append((time.perf_counter() - began, used))
    for members in groups.values():
        for process, orders in members:
            orders.send(False)
            process.join(30)
    return {name: medians(each) for name, each in found.items()}


def report(found: dict[str, Any]) -> None:
    """Print each side's seconds, and the ratios that the sides are compared by."""
    for part in ("own-context", "context-32", "l-14", "workers"):
        for row, each in found.get(part, {}).items():
            took = f"{each['elapsed']:.2f} s, {each['processor']:.2f} of processor"
            print(f"{part}, {row}: {took}, {each['rounds']:.0f} rounds")
    for kind in ("elapsed", "processor"):
        for part in ("own-context", "context-32"):
            if part in found:
                compare(part, kind, found)
        for size in SHARED if "workers" in found else ():
            one, two = (found["workers"][f"{name}, {size} pairs"][kind] for name in ("one", "two"))
            # By processor time: two cores would do the work of a step in half of it.
            ratio = one / two if kind == "elapsed" else 2 * one / two
            print(f"workers, {kind}, {size} pairs: two workers are {ratio:.2f} x one")
    for row, share in found.get("waiting", {}).items():
        print(f"waiting, {row}: {100 * share:.1f} % of the time")


def compare(part: str, kind: str, found: dict[str, Any]) -> None:
    """Print the ratios of a part, by elapsed or by processor seconds."""

    def of(row: str, where: str = part) -> float:
        return float(found[where][row][kind])

    def say(what: str) -> None:
        print(f"{part}, {kind}: {what}")

    peer, fill = min(map(of, PEERS)), of("fill")
    say(f"streamed is {peer / of('streamed'):.2f} x the faster peer")
    say(f"cached over {EPOCHS} epochs is {EPOCHS * peer / (VIEWS * fill + EPOCHS * of('cached')):.2f} x")
    say(f"filling has {of('forward') / fill:.3f} of the forward pass's rate")
    if "l-14" in found:
        scale = BATCH / TOWERS["l-14"][2]
        # A step with the larger tower: one with the smaller, and the difference of the forward passes.
        peer = min(of(name) + scale * of(name, "l-14") - of(f"{name} b-32", "l-14") for name in PEERS)
        fill += scale * of("forward", "l-14") - of("forward")
        ratio = EPOCHS * peer / (VIEWS * fill + EPOCHS * of("cached"))
        say(f"cached over {EPOCHS} epochs at ViT-L/14 is {ratio:.2f} x, computed")


def main() -> None:
    parts = ("own-context", "context-32", "l-14", "waiting", "workers")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=parts, default=parts)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=600.0, help="of a part, after which no round begins")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--work", type=Path, default=Path("~/.cache/wukong/bench-model").expanduser())
    parser.add_argument("--measure", choices=parts, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure is None:
        options.work.mkdir(parents=True, exist_ok=True)
        folders = [
            measure.installed(options.work, "open_clip", measure.OPEN_CLIP),
            measure.installed(options.work, "cn_clip", measure.CN_CLIP),
        ]
        given = ("--rounds", options.rounds, "--seconds", options.seconds, "--threads", options.threads)
        # Threads that wait for others do not spin: other programs use the machine, and processor time is measured.
        os.environ["OMP_WAIT_POLICY"] = "passive"
        results = options.work / "peers.json"
        found = json.loads(results.read_text()) if results.exists() else {}
        for part in options.only:
            found[part] = measure.run_for_time(__file__, "--measure", part, *given, python_path=folders)
        results.write_text(json.dumps(found, indent=2) + "\n")
        report(found)
        return
    torch.set_num_threads(options.threads)
    logging.disable(logging.INFO)
    if options.measure == "waiting":
        result: dict[str, Any] = waiting(3 + 3 * options.rounds)
    elif options.measure == "workers":
        result = {}
        for size in SHARED:
            result |= {f"{name}, {size} pairs": each for name, each in two_workers(options.rounds, size).items()}
    else:
        tower = "l-14" if options.measure == "l-14" else "b-32"
        context = "32" if options.measure == "context-32" else "own"
        result = sides(tower, context, options.rounds, options.seconds)
    sys.stdout.write(json.dumps(result) + "\n")


def forward_of(library: nn.Module, pictures: Tensor) -> Step:
    def forward() -> None:
        with torch.no_grad():
            library.visual(pictures)

    return forward


if __name__ == "__main__":
    main()
