"""The first minutes on a GPU: what is right, what waits, how fast it is beside the goals; a page says what was found.

    make gpu-test                                (ARGS='--only kernels step')
    python benchmarks/model/gpu.py [--page build/gpu-test.md] [--minutes 8] [--only PART ...] [--rehearse]

It needs a GPU, what the extra ``train`` installs, Triton and the checkout; neither a store nor Ray nor a network.
Without a GPU it says why nothing is measured. late-interaction-kernels and open_clip are measured in the same call
where they are installed. The page is written after each part, so what was found is kept if a later part fails. After
some minutes the parts that are left are left out.

``--rehearse`` runs every part on the processor, with tiny sizes, a played ``torch.cuda`` and Triton's interpreter. Its
figures mean nothing.
"""

import os
import sys

if "--rehearse" in sys.argv:
    os.environ["TRITON_INTERPRET"] = "1"

import argparse
import json
import platform
import signal
import statistics
import subprocess
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib import metadata
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from wukong.model import similarity

ROOT = Path(__file__).parents[2]
DEVICE = torch.device("cuda")
WIDTH = 256
MOST_NAIVE = 2**30
"""The most products that the naive version keeps."""


@dataclass(frozen=True)
class Sizes:
    """How large everything is.

    Attributes:
        config: the config of configs/paper whose step is measured, on one worker.
        changes: settings that are changed in it.
        pairs: pairs of its step.
        tower: the tower of the trainings beside open_clip, by its name in ``benchmarks/train/peers.py``.
        stored: pairs of a step on stored features.
        pictures: pictures whose features are computed, and that are loaded.
        compared: images, texts, patches and words on which the kernels are compared with the reference.
        timed: those on which they are timed; the last one is a rank's share of the paper's batch.
        steps: steps that are measured, after as many that are not.
        reduced: bytes that are reduced between GPUs.
        validated: images and classes of the validation.
    """

    config: str
    changes: tuple[str, ...]
    pairs: int
    tower: str
    stored: int
    pictures: int
    compared: tuple[int, int, int, int]
    timed: tuple[tuple[int, int, int, int], ...]
    steps: int
    reduced: int
    validated: tuple[int, int]


FULL = Sizes(
    config="vit-l",
    changes=(),
    pairs=256,
    tower="l-14",
    stored=8192,
    pictures=8192,
    compared=(4, 6, 257, 32),
    timed=((128, 128, 49, 32), (128, 128, 256, 32), (256, 10_240, 256, 32)),
    steps=10,
    reduced=400 << 20,
    validated=(1000, 100),
)
SMALL = Sizes(
    config="vit-b-32",
    changes=(
        *("model.image.name=vit_tiny_patch16_224", "model.image.image_size=32", "model.image.weights=random"),
        *("model.text.layers=1", "model.text.width=128", "model.text.heads=8"),
    ),
    pairs=4,
    tower="b-32",
    stored=16,
    pictures=16,
    compared=(2, 3, 5, 7),
    timed=((2, 3, 5, 7),),
    steps=2,
    reduced=1 << 10,
    validated=(40, 4),
)


@dataclass(frozen=True)
class Row:
    """Something that was found.

    Attributes:
        what: what it is.
        found: the figure, with its unit.
        goal: what it is to be; empty where there is no goal.
        met: whether it is; None where there is no goal or nothing was found.
    """

    what: str
    found: str
    goal: str = ""
    met: bool | None = None

    @classmethod
    def at_least(cls, what: str, value: float, goal: float, unit: str) -> "Row":
        return cls(what, f"{value:,.4g} {unit}", f"at least {goal:,g}", value >= goal)

    @classmethod
    def at_most(cls, what: str, value: float, goal: float, unit: str) -> "Row":
        return cls(what, f"{value:,.4g} {unit}", f"at most {goal:,g}", value <= goal)

    @classmethod
    def ratio(cls, what: str, value: float, around: float) -> "Row":
        goal = f"{1 - around:.2f} to {1 + around:.2f}"
        return cls(what, f"{value:.2f}", goal, 1 - around <= value <= 1 + around)


Part = Callable[[Sizes], Iterator[Row]]


def kernels_part(sizes: Sizes) -> Iterator[Row]:
    """Compare the kernels' scores and gradients with the other implementation in float64."""
    from wukong.model import token_triton

    precisions = [("tf32", torch.float32, 5e-3), ("float32", torch.float32, 1e-5), ("float16", torch.float16, 3e-3)]
    if DEVICE.type == "cuda":  # the interpreter multiplies the bits of bfloat16, not its values
        precisions.insert(0, ("bfloat16", torch.bfloat16, 2e-2))
    before = torch.get_float32_matmul_precision()
    for name, kind, tolerance in precisions:
        torch.set_float32_matmul_precision("high" if name == "tf32" else "highest")
        image, text, counted = tokens(sizes.compared, kind)
        both, found = torch.stack([counted, counted]), []
        for function, precision in (
            (token_triton.token_similarity, kind),
            (similarity._TokenSimilarity.apply, torch.float64),
        ):
            leaves = [each.detach().to(precision).requires_grad_() for each in (image, text)]
            scores = function(*leaves, both)
            sum((side.double().exp()).sum() for side in scores).backward()
            found.append([*scores, *(leaf.grad for leaf in leaves)])
        largest = max(
            float((ours.double() - exact).abs().max() / exact.abs().max()) for ours, exact in zip(*found, strict=True)
        )
        yield Row.at_most(f"largest difference of scores and gradients, {name}", largest, tolerance, "of the largest")
    torch.set_float32_matmul_precision(before)


def tokens(shape: tuple[int, int, int, int], kind: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Return vectors of images and texts that take gradients, and which words count.

    Their numbers are those of bfloat16 in every type. So products are exact in TF32 too, and all find the same best
    matches, on which gradients depend.
    """
    images, texts, patches, words = shape
    options: dict[str, Any] = {"device": DEVICE, "generator": torch.Generator(DEVICE).manual_seed(0)}
    image = F.normalize(torch.randn(images, patches, WIDTH, **options), dim=-1).bfloat16().to(kind).requires_grad_()
    text = F.normalize(torch.randn(texts, words, WIDTH, **options), dim=-1).bfloat16().to(kind).requires_grad_()
    counted = torch.arange(words, device=DEVICE) < torch.randint(words // 4 + 1, words + 1, (texts, 1), **options)
    return image, text, counted


class Ready:
    """Pairs whose batch is in memory: how they are read is measured elsewhere.

    Args:
        features: image features or pictures, as of ``wukong.train.batches.Batch``.
        ids: token ids.
    """

    digest = "gpu-test"

    def __init__(self, features: Tensor, ids: Tensor) -> None:
        self._features, self._ids = features, ids
        self.rows = (10**6 * len(ids),)

    def __len__(self) -> int:
        return self.rows[0]

    def batches(self, *_: object) -> Iterator[Any]:
        from wukong.train.batches import Batch

        numbers = torch.arange(len(self._ids))
        while True:
            yield Batch(self._features, self._ids, numbers, numbers)


class Marks:
    """When the parts of steps ended, by CUDA's events, for which nothing waits."""

    def __init__(self) -> None:
        self._steps: list[list[tuple[str, torch.cuda.Event]]] = []

    def restart(self) -> None:
        self._steps.clear()

    def begin(self) -> None:
        self._steps.append([])
        self.end("begin")

    def end(self, part: str) -> None:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        self._steps[-1].append((part, event))

    def hook(self, part: str) -> Callable[..., None]:
        return lambda *_: self.end(part)

    def milliseconds(self) -> dict[str, float]:
        """Return the median of each part."""
        torch.cuda.synchronize()
        found: dict[str, list[float]] = {}
        for step in self._steps:
            for (_, start), (part, end) in pairwise(step):
                found.setdefault(part, []).append(start.elapsed_time(end))
        return {part: statistics.median(times) for part, times in found.items()}


def step_part(sizes: Sizes) -> Iterator[Row]:
    """Take steps of a config at the size of a rank: what waits, each part's time, the plan's, and the memory."""
    from wukong.config import documents
    from wukong.data.tokenizer import Tokenizer
    from wukong.model import cost
    from wukong.model.dual import DualEncoder
    from wukong.model.image_encoder import ImageEncoder
    from wukong.stages.estimate import CAPTION_TOKENS
    from wukong.train import loop, rates

    changes = [*sizes.changes, "pretrain.workers=1", f"pretrain.batch_size={sizes.pairs}", "pretrain.min_workers=0"]
    experiment = documents.load(ROOT / "configs" / "paper" / f"{sizes.config}.yaml", changes)
    model, settings = experiment.model, experiment.pretrain
    tower = ImageEncoder(model.image, with_weights=False)
    tower.lock("all")
    dual = DualEncoder(model, Tokenizer.of(model.text), tower, with_weights=False).to(DEVICE)
    side = model.image.image_size
    pictures = torch.randint(0, 256, (sizes.pairs, 3, side, side), dtype=torch.uint8)
    run = loop._Run(dual, Ready(pictures, ids_of(model, sizes.pairs, CAPTION_TOKENS)), settings, 0, None, None)
    run.begin()
    marks = Marks()
    tower.register_forward_pre_hook(marks.hook("batch"))
    tower.register_forward_hook(marks.hook("image tower"))
    dual.text.register_forward_pre_hook(marks.hook("image head"))
    dual.text.register_forward_hook(marks.hook("text tower"))
    whole = dual.loss

    def loss(*given: Any, **settings: Any) -> Tensor:
        found = whole(*given, **settings)
        marks.end("text head and loss")
        return found

    dual.loss = loss  # type: ignore[method-assign]
    run.optimiser.register_step_pre_hook(marks.hook("backward"))
    run.optimiser.register_step_post_hook(marks.hook("optimiser"))
    with run.batches() as batches:
        for _ in range(sizes.steps):
            marks.begin()
            run.step(batches)
        run.look()
        marks.restart()
        began = time.perf_counter()
        with refused_waits():
            for _ in range(sizes.steps):
                marks.begin()
                run.step(batches)
        torch.cuda.synchronize()
        seconds = (time.perf_counter() - began) / sizes.steps
        look = run.look()
    run.pairs = Ready(pictures, ids_of(model, sizes.pairs, 10 * model.text.max_tokens))  # as the rehearsal has them
    with run.batches() as batches:
        torch.cuda.reset_peak_memory_stats()
        run.step(batches)
        taken = torch.cuda.max_memory_allocated()
    yield Row("waits for the GPU between two looks", "none", "none", True)
    yield Row("loss after the steps", f"{look.loss:.4g}", "finite", bool(torch.tensor(look.loss).isfinite()))
    parts = marks.milliseconds()
    for part, milliseconds in parts.items():
        yield Row(f"a step of {sizes.config}, {sizes.pairs} pairs: {part}", f"{milliseconds:.3g} ms")
    yield Row(f"a step of {sizes.config}, {sizes.pairs} pairs, in all", f"{1e3 * seconds:.3g} ms")
    shape = cost.feature_shape(model)
    flops = cost.tower_flops(model) + cost.text_step_flops(model, settings, shape, CAPTION_TOKENS)
    yield Row("sustained, for `wukong plan --rate gpu=`", f"{flops * sizes.pairs / seconds / 1e12:,.4g} TFLOP/s")
    del run, dual, tower
    measured = rates.measure(model, settings, ["text_step", "tower"], DEVICE, CAPTION_TOKENS, sizes.steps)
    planned = sizes.pairs * sum(1 / rate for rate in measured.values())
    yield Row.ratio("what `wukong plan --measure` says of the step, of what it takes", planned / seconds, 0.2)
    yield Row.ratio("peak memory, of the rehearsal's", taken / rehearsed_peak(sizes.config, changes), 0.15)


@contextmanager
def refused_waits() -> Iterator[None]:
    """Let CUDA refuse what waits for it."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def rehearsed_peak(config: str, changes: list[str]) -> int:
    """Return the bytes that a step takes on a GPU that is not there."""
    options = [option for change in changes for option in ("--set", change)]
    command = [
        sys.executable,
        str(ROOT / "benchmarks" / "train" / "rehearsal.py"),
        config,
        "--json",
        "--step",
        *options,
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("TRITON_INTERPRET", None)
    said = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout
    return sum(json.loads(said.splitlines()[-1])[0]["peak"].values())


def ids_of(model: Any, pairs: int, mean: int) -> Tensor:
    """Return token ids of captions as long as the paper's, padded with zeros to the longest."""
    lengths = (mean * (1 + torch.randn(pairs, generator=torch.Generator().manual_seed(0)) / 3)).round().long()
    longest = model.text.max_tokens
    ids = torch.randint(200, 9_000, (pairs, longest))
    return ids.masked_fill(torch.arange(longest) >= lengths.clamp(3, longest)[:, None], 0)


def stored_part(sizes: Sizes) -> Iterator[Row]:
    """Take steps on stored features of 768 numbers, with the paper's text tower and the global similarity."""
    from wukong.config.model import Model
    from wukong.config.training import Training
    from wukong.data.tokenizer import Tokenizer
    from wukong.model.dual import DualEncoder
    from wukong.train import loop

    small = {"text": {"layers": 1, "heads": 2, "width": 16}} if sizes is SMALL else {}
    model = Model.model_validate({"architecture": "vit-l-14", "similarity": "global"} | small)
    options = {"workers": 1, "gpus_per_worker": 1, "precision": "bfloat16", "deterministic": False}
    # In one piece it would take 105 GB, as the rehearsal says.
    settings = Training.model_validate({"batch_size": sizes.stored, "micro_batch": sizes.stored // 2, **options})
    dual = DualEncoder(model, Tokenizer.of(model.text), feature_width=768, with_weights=False).to(DEVICE)
    features = torch.randn(sizes.stored, 768).half()
    full = torch.randint(200, 9_000, (sizes.stored, model.text.max_tokens))
    run = loop._Run(dual, Ready(features, full), settings, 0, None, None)
    run.begin()
    with run.batches() as batches:
        for _ in range(2):  # the second time counts
            with refused_waits() if run.taken else ExitStack():
                for _ in range(sizes.steps):
                    run.step(batches)
            look = run.look()
    what = f"captions a second, {sizes.stored} pairs of stored features in two pieces, {full.shape[1]} tokens"
    yield Row.at_least(what, look.samples_per_second, 24_000, "captions/s")
    yield Row("share of these steps that waits for data", f"{look.waiting_share:.1%}")


def pictures_part(sizes: Sizes) -> Iterator[Row]:
    """Load pictures without a GPU, and compute the features of ViT-L/14."""
    sys.path.insert(0, str(ROOT / "benchmarks" / "train"))
    import peers

    from wukong.config.model import Model
    from wukong.config.training import Training
    from wukong.data import feature_files
    from wukong.data.tokenizer import Tokenizer
    from wukong.store import storage
    from wukong.train import features, gradients
    from wukong.train.corpus import Corpus
    from wukong.train.picture_pairs import PicturePairs

    loaders = 0 if sizes is SMALL else max(1, (os.cpu_count() or 2) - 2)
    image = {"name": peers.TOWERS[sizes.tower][0], "weights": "random", "image_size": 224}
    model = Model.model_validate({"image": image, "text": peers.TEXT, "embedding": peers.EMBEDDING})
    with tempfile.TemporaryDirectory() as folder:
        peers.shard(Path(folder), sizes.pictures)
        corpus = Corpus(storage.from_path(Path(folder)), ("00000",), (sizes.pictures,), "gpu-test")
        size = min(256, sizes.pictures // 4)
        options = {"batch_size": size, "workers": 1, "store_features": False, "loader_workers": loaders}
        pairs = PicturePairs(corpus, Tokenizer.of(model.text), model.image, Training.model_validate(options))
        batches = peers.forever(pairs, size)
        next(batches)
        began, count = time.perf_counter(), sizes.pictures // size
        for _ in range(count):
            next(batches)
        rate = count * size / (time.perf_counter() - began)
        yield Row("the loader alone, augmented views", f"{rate:,.0f} pictures/s with {loaders} processes")
        batches.close()

        places = [feature_files.path_of("train", "00000", number) for number in range(3)]
        files = [feature_files.File(corpus.uri(0, ".tar"), 0, storage.join(corpus.prefix, place)) for place in places]
        computed = features.compute(files, model, "float16", "bfloat16", None, DEVICE, loaders)
        next(computed)  # while the loader processes start; the next file's first batch is computed by then
        began = time.perf_counter()
        next(computed)
        seconds = time.perf_counter() - began
    encoder = features._encoder(model.image.model_dump_json(), None, DEVICE)
    pixels = torch.randint(0, 256, (size, 3, 224, 224), dtype=torch.uint8, device=DEVICE)

    def forward() -> None:
        with torch.inference_mode(), gradients.autocast(DEVICE, "bfloat16"):
            encoder.in_pieces(pixels)

    alone = sizes.pictures / size * milliseconds(forward, sizes.steps) / 1e3
    rate, waiting = sizes.pictures / seconds, max(0.0, 1 - alone / seconds)
    yield Row("the tower alone, on pictures that are ready", f"{sizes.pictures / alone:,.0f} pictures/s")
    yield Row.at_least(f"features of {sizes.tower}, from JPEGs of 341 x 256", rate, 2_400, "pictures/s")
    yield Row.at_most("share of that time in which the tower waits for data", 100 * waiting, 5, "%")


def naive(image: Tensor, text: Tensor, counted: Tensor) -> Tensor:
    products = torch.einsum("ipd,jtd->ijpt", image, text)
    to_text = products.masked_fill(~counted[None, :, None], -torch.inf).amax(3).mean(2, dtype=torch.float32)
    to_image = products.amax(2).masked_fill(~counted, 0.0).sum(2, dtype=torch.float32) / counted.sum(1)
    return to_text.sum() + to_image.sum()


def kernels(image: Tensor, text: Tensor, counted: Tensor) -> Tensor:
    to_text, to_image = similarity.token_similarity(image, text, counted)
    return to_text.sum() + to_image.sum()


def blocks(image: Tensor, text: Tensor, counted: Tensor) -> Tensor:
    to_text, to_image = similarity._TokenSimilarity.apply(image, text, torch.stack([counted, counted]))
    return to_text.sum() + to_image.sum()


def maxsim(image: Tensor, text: Tensor, counted: Tensor) -> Tensor:
    from late_interaction_kernels import maxsim as one_direction

    to_text = one_direction(image, text, d_mask=counted) / image.shape[1]
    to_image = one_direction(text, image, q_mask=counted) / counted.sum(1, keepdim=True)
    return to_text.sum() + to_image.sum()


def token_part(sizes: Sizes) -> Iterator[Row]:
    """Time the token-wise similarity, forward and backward, beside other implementations."""
    for shape in sizes.timed:
        given, times = tokens(shape, torch.bfloat16), {}
        images, texts, patches, words = shape
        for version in (kernels, blocks, naive, maxsim):
            what = f"{version.__name__} {' x '.join(map(str, shape))}, forward and backward"
            if version is naive and images * texts * patches * words > MOST_NAIVE:
                continue

            def work(version: Callable[..., Tensor] = version, given: tuple[Tensor, ...] = given) -> None:
                given[0].grad = given[1].grad = None
                version(*given).backward()

            try:
                work()
            except ImportError as error:
                yield Row(what, f"left out: {error}")
                continue
            times[version] = milliseconds(work, sizes.steps if images * texts < 2**20 else 3)
            yield Row(what, f"{times[version]:.4g} ms")
        if maxsim in times:
            ratio = times[kernels] / times[maxsim]
            yield Row.at_most("kernels, of late-interaction-kernels in both directions", ratio, 1.2, "")


def milliseconds(work: Callable[[], object], repeats: int) -> float:
    """Return the median time of a call, by CUDA's events; the first call does not count."""
    work()
    marks = Marks()
    for _ in range(repeats):
        marks.begin()
        work()
        marks.end("call")
        torch.cuda.synchronize()
    return marks.milliseconds()["call"]


def peers_part(sizes: Sizes) -> Iterator[Row]:
    """Train with a locked tower and a text tower of 12 layers: ours, and open_clip's own loop, in turn."""
    sys.path[:0] = [str(ROOT / "benchmarks" / "train"), str(ROOT / "benchmarks" / "model")]
    import peers

    names = ("from pictures", "from stored features", f"open_clip {metadata.version('open_clip_torch')}, from tensors")
    with tempfile.TemporaryDirectory() as folder:
        loaders = 0 if sizes is SMALL else min(16, os.cpu_count() or 1)
        works = peers.on_a_gpu(sizes.tower, sizes.pairs, Path(folder), loaders, DEVICE)
        times: list[list[float]] = [[] for _ in works]
        starting = 0 if sizes is SMALL else 3  # until the loader processes are there
        for number in range(starting + sizes.steps):
            for work, each in zip(works, times, strict=True):
                torch.cuda.synchronize()
                began = time.perf_counter()
                work()
                torch.cuda.synchronize()
                if number >= starting:
                    each.append(time.perf_counter() - began)
    for name, each in zip(names, times, strict=True):
        rate = sizes.pairs / statistics.median(each)
        yield Row(f"{sizes.tower} locked, {sizes.pairs} pairs, {name}", f"{rate:,.4g} pairs/s")


def validation_part(sizes: Sizes) -> Iterator[Row]:
    """Validate a token-wise model on features of images, here and, of a few, on the processor."""
    import numpy as np

    from wukong.config.model import Model
    from wukong.data.tokenizer import Tokenizer
    from wukong.evaluate.data_set import ClassificationData
    from wukong.evaluate.protocol import PROTOCOLS
    from wukong.model.dual import DualEncoder
    from wukong.train.validation import Task, Validator

    small = {"text": {"layers": 1, "heads": 2, "width": 16}} if sizes is SMALL else {}
    model = Model.model_validate({"architecture": "vit-l-14", "similarity": "token"} | small)
    tokenizer = Tokenizer.of(model.text)
    dual = DualEncoder(model, tokenizer, feature_width=1024, with_weights=False).eval()
    with torch.no_grad():
        dual.text.tokens.weight.mul_(50)  # random weights alone give all texts nearly one vector

    def validate(images: int, classes: int) -> tuple[float, float]:
        names = [f"类{number}" for number in range(classes)]
        ids, labels = [str(number) for number in range(images)], np.arange(images) % classes
        data = ClassificationData("gpu-test", "test", names, ids, labels, [], "gpu-test", names)
        patches = 256 if sizes is FULL else 9
        features = torch.randn(images, patches, 1024, generator=torch.Generator().manual_seed(0)).half()
        validator = Validator([Task(data, PROTOCOLS["paper"], features)], tokenizer)
        began = time.perf_counter()
        found = validator(dual)
        return time.perf_counter() - began, found["classification/gpu-test/top1"]

    few = (sizes.validated[0] // 20, 2)
    _, exact = validate(*few)
    dual.to(DEVICE)
    _, here = validate(*few)
    yield Row.at_most(f"{few[0]} images: top-1 here and on the processor, difference", abs(here - exact), 0, "")
    seconds, _ = validate(*sizes.validated)
    images, classes = sizes.validated
    yield Row(f"a validation of {images} images and {classes} classes in 80 prompts", f"{seconds:.3g} s")


def reduce_part(sizes: Sizes) -> Iterator[Row]:
    """Sum gradients over the GPUs of this machine."""
    ranks = 2 if sizes is SMALL else torch.cuda.device_count()
    if ranks < 2:
        yield Row("all-reduce", "left out: there is one GPU")
        return
    with tempfile.TemporaryDirectory() as folder:
        meeting, answer = Path(folder, "meeting"), Path(folder, "answer")
        given = (ranks, sizes.reduced, meeting.as_uri(), str(answer), DEVICE.type)
        torch.multiprocessing.spawn(reduce, given, nprocs=ranks)
        seconds = float(answer.read_text())
    moved = 2 * (ranks - 1) / ranks * sizes.reduced
    yield Row(f"all-reduce of {sizes.reduced >> 20} MiB over {ranks} GPUs", f"{moved / seconds / 1e9:,.4g} GB/s a GPU")


def reduce(rank: int, ranks: int, size: int, meeting: str, answer: str, kind: str) -> None:
    """Be one rank of an all-reduce, and let the first write its seconds down."""
    device = torch.device(kind, rank) if kind == "cuda" else torch.device(kind)
    if kind == "cuda":
        torch.cuda.set_device(device)
    backend = "nccl" if kind == "cuda" else "gloo"
    dist.init_process_group(backend, init_method=meeting, rank=rank, world_size=ranks)
    numbers, times = torch.ones(size // 4, device=device), []
    for _ in range(10):
        dist.barrier()
        began = time.perf_counter()
        dist.all_reduce(numbers)
        numbers[0].item()  # waits until it is done
        times.append(time.perf_counter() - began)
    if not rank:
        Path(answer).write_text(str(statistics.median(times[3:])))
    dist.destroy_process_group()


PARTS: dict[str, tuple[str, Part]] = {
    "kernels": ("The token-wise kernels, beside the other implementation in float64", kernels_part),
    "step": ("A training step at the size of a rank", step_part),
    "stored": ("A step on stored features", stored_part),
    "pictures": ("Pictures and their features", pictures_part),
    "token": ("The token-wise similarity", token_part),
    "peers": ("Beside open_clip", peers_part),
    "validation": ("A validation", validation_part),
    "reduce": ("Between GPUs", reduce_part),
}


class OutOfTimeError(Exception):
    """The minutes are over."""


def found_by(part: Part, sizes: Sizes, seconds: float) -> list[Row]:
    """Run a part, for some seconds at most; what it had found when it failed is kept."""
    rows: list[Row] = []
    if seconds < 1:
        return [Row("the part", "left out: no time is left")]
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        for row in part(sizes):
            rows.append(row)
    except OutOfTimeError:
        rows.append(Row("the rest", "left out: no time is left"))
    except (ImportError, metadata.PackageNotFoundError) as error:
        rows.append(Row("the rest", f"left out: {error} is not installed"))
    except Exception as error:  # noqa: BLE001 - the other parts are measured all the same
        traceback.print_exc()
        rows.append(Row("the rest", f"{type(error).__name__}: {error}".splitlines()[0], "no error", False))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return rows


def machine() -> dict[str, str]:
    """Say on what is measured."""
    found = {
        "GPU": torch.cuda.get_device_name(),
        "GPUs": str(torch.cuda.device_count()),
        "CUDA": str(torch.version.cuda),
    }
    try:
        asked = ["nvidia-smi", "--query-gpu=driver_version,memory.total", "--format=csv,noheader"]
        said = subprocess.run(asked, capture_output=True, text=True, check=True).stdout
        found["driver, memory"] = said.splitlines()[0]
    except (OSError, subprocess.CalledProcessError, IndexError) as error:
        found["driver, memory"] = f"nvidia-smi does not say ({error})"
    found |= {"cores": str(os.cpu_count()), "Python": platform.python_version()}
    for name in ("torch", "triton", "timm", "safetensors", "late-interaction-kernels", "open_clip_torch"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def page(about: dict[str, str], parts: dict[str, tuple[list[Row], float]], *, rehearsed: bool) -> str:
    """Return what was found so far, in Markdown."""
    lines = ["# The first minutes on a GPU", ""]
    if rehearsed:
        lines += ["A rehearsal on a processor: the figures mean nothing.", ""]
    lines += ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in about.items())]
    for name, (rows, seconds) in parts.items():
        lines += ["", f"## {PARTS[name][0]}", "", "| | found | goal | |", "|---|---|---|---|"]
        verdicts = {True: "met", False: "missed", None: ""}
        lines += [f"| {row.what} | {row.found} | {row.goal} | {verdicts[row.met]} |" for row in rows]
        lines += ["", f"`{name}` took {seconds:.0f} s."]
    return "\n".join(lines) + "\n"


class PlayedEvent:
    """``torch.cuda.Event`` where there is no GPU."""

    def __init__(self, enable_timing: bool = False) -> None:
        self.at = 0.0

    def record(self) -> None:
        self.at = time.perf_counter()

    def elapsed_time(self, end: "PlayedEvent") -> float:
        return 1e3 * (end.at - self.at)


@contextmanager
def played() -> Iterator[None]:
    """Let a processor stand in for a GPU: the same lines run, with functions of the same parameters."""
    answers = {
        "synchronize": None,
        "set_sync_debug_mode": None,
        "reset_peak_memory_stats": None,
        "max_memory_allocated": 1 << 20,
        "get_device_name": "a processor",
        "device_count": 1,
    }
    with ExitStack() as stack:
        for name, answer in answers.items():
            played = mock.create_autospec(getattr(torch.cuda, name), return_value=answer)
            stack.enter_context(mock.patch.object(torch.cuda, name, played))
        stack.enter_context(mock.patch.object(torch.cuda, "Event", PlayedEvent))
        stack.enter_context(mock.patch.object(sys.modules[__name__], "DEVICE", torch.device("cpu")))
        yield


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--page", type=Path, default=ROOT / "build" / "gpu-test.md")
    parser.add_argument("--minutes", type=float, default=8)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--rehearse", action="store_true")
    options = parser.parse_args()
    if not options.rehearse and not torch.cuda.is_available():
        why = "this build of torch is for processors" if torch.version.cuda is None else "torch sees none"
        print(f"skipped: there is no GPU here ({why}); ARGS=--rehearse runs the parts on a processor")
        return

    def over(*_: object) -> None:
        raise OutOfTimeError

    signal.signal(signal.SIGALRM, over)
    began = time.perf_counter()
    options.page.parent.mkdir(parents=True, exist_ok=True)
    parts: dict[str, tuple[list[Row], float]] = {}
    with played() if options.rehearse else ExitStack():
        about = machine()
        for name in options.only:
            started = time.perf_counter()
            rows = found_by(PARTS[name][1], SMALL if options.rehearse else FULL, 60 * options.minutes - started + began)
            parts[name] = rows, time.perf_counter() - started
            for row in rows:
                goal = f" ({row.goal}: {'met' if row.met else 'MISSED'})" if row.met is not None else ""
                print(f"{name}: {row.what}: {row.found}{goal}", flush=True)
            options.page.write_text(page(about, parts, rehearsed=options.rehearse))
    print(f"the page is {options.page}")
    failed = any(row.goal == "no error" for rows, _ in parts.values() for row in rows)
    missed = any(row.met is False for rows, _ in parts.values() for row in rows)
    sys.exit(1 if failed or (missed and not options.rehearse) else 0)


if __name__ == "__main__":
    main()
