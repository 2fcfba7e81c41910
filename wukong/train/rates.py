"""Measure how fast this machine trains: the rates with which ``wukong.stages.estimate.training`` plans a training.

They are measured on random inputs and random weights, which take as long as real ones.
"""

import io
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import count

import numpy as np
import torch
from PIL import Image

from wukong.config.model import ImageEncoder as Tower
from wukong.config.model import Model
from wukong.config.training import Training
from wukong.data.tokenizer import Tokenizer
from wukong.data.views import Views
from wukong.model.cost import feature_shape
from wukong.model.dual import DualEncoder
from wukong.model.image_encoder import ImageEncoder
from wukong.stages.estimate import CAPTION_TOKENS, RATES, Rate, RateName
from wukong.train import gradients, optimizer
from wukong.train.batches import Batch

_FEWEST_PAIRS, _LONG = 16, 0.5
"""Pairs, and at most about how many seconds, of a measured step on processors."""
_ROUNDS = 5
_IMAGES = 32
_DEVIATION = 1 / 3
"""Deviation of the captions' lengths, as a share of the mean, as in table 2 of the paper."""


def find(
    model: Model,
    settings: Training,
    names: Sequence[RateName] = RATES,
    caption_tokens: int = CAPTION_TOKENS,
    seconds: float = 20.0,
) -> dict[RateName, Rate]:
    """Measure rates of a training on this machine.

    On processors one thread is measured, which a task that computes features has, and a worker of Ray Train at least.

    Args:
        model: the architecture.
        settings: settings of the training.
        names: their names.
        caption_tokens: mean number of tokens of a caption.
        seconds: time that the measurement takes about, beside the models' construction.

    Raises:
        ConfigError: the model cannot be built.
    """
    device = torch.device("cuda" if settings.gpus_per_worker and torch.cuda.is_available() else "cpu")
    threads = torch.get_num_threads()
    try:
        if device.type == "cpu":
            torch.set_num_threads(1)
        measured = measure(model, settings, names, device, caption_tokens, seconds)
    finally:
        torch.set_num_threads(threads)
    return {name: Rate(rate, "measured") for name, rate in measured.items()}


def measure(
    model: Model,
    settings: Training,
    names: Sequence[RateName],
    device: torch.device,
    caption_tokens: int = CAPTION_TOKENS,
    seconds: float = 20.0,
) -> dict[RateName, float]:
    """Measure rates, in items a second (``wukong.stages.estimate.Rate``).

    Everything is measured in turn, in several rounds, and the median round counts: other programs change the speed of a
    machine from second to second.

    Args:
        model: the architecture.
        settings: settings of the training; a text step has a worker's share of the batch, on stored features.
        names: names of the rates.
        device: device on which the towers run.
        caption_tokens: mean number of tokens of a caption.
        seconds: time that all measurements take about, beside the models' construction.
    """
    torch.manual_seed(0)
    works: dict[str, Callable[[], object]] = {}
    pairs, share = 1, settings.batch_size // settings.workers
    if "text_step" in names:
        pairs, works["text_step"], works["optimiser"] = _text_step(model, settings, device, caption_tokens)
    if "tower" in names:
        works["tower"] = _tower(model, settings, device)
    if "decode" in names:
        works["decode"] = _decoding(model.image, ())
    if "augment" in names:
        works["augment"] = _decoding(model.image, settings.augmentations)
    times = _medians(works, device, seconds)
    if "text_step" in names:
        # The optimiser's work does not depend on the number of pairs.
        times["text_step"] = (times["text_step"] / pairs * share + times["optimiser"]) / share
    if "tower" in names:
        times["tower"] /= _IMAGES
    return {name: 1 / times[name] for name in names}


def _text_step(
    model: Model, settings: Training, device: torch.device, caption_tokens: int
) -> tuple[int, Callable[[], object], Callable[[], object]]:
    """Return a step on stored features, forward and backward, the number of its pairs, and the optimiser's step.

    On processors the step has as many pairs of the worker's share as it can within half a second.
    """
    shape = feature_shape(model)
    tokenizer = Tokenizer.of(model.text)
    dual = DualEncoder(model, tokenizer, feature_width=shape.width, with_weights=False).to(device).train()
    dual.text.checkpoint_activations = settings.checkpoint_activations
    if settings.compile:
        dual.compile_towers()
    optimiser = optimizer.build(dual, settings)

    def step(pairs: int) -> Callable[[], object]:
        deviation = 1 + _DEVIATION * torch.randn(pairs)
        lengths = (caption_tokens * deviation).round().long().clamp(3, model.text.max_tokens)
        ids = torch.randint(5, len(tokenizer), (pairs, int(lengths.max())))
        ids = ids.masked_fill(torch.arange(ids.shape[1]) >= lengths[:, None], tokenizer.pad)
        ids[:, 0] = tokenizer.cls
        features = torch.randn(pairs, *(shape if model.is_token_wise else (shape.width,)))
        batch = Batch(features, ids, torch.arange(pairs), torch.arange(pairs))

        def forward_and_backward() -> None:
            dual.zero_grad()
            gradients.backward(dual, dual, batch, settings)

        return forward_and_backward

    share = settings.batch_size // settings.workers
    pairs = share if device.type == "cuda" else min(share, _FEWEST_PAIRS)
    work = step(pairs)
    work()
    while pairs < share and _seconds(work, 1, device) < _LONG / 2:
        pairs = min(2 * pairs, share)
        work = step(pairs)
        work()
    return pairs, work, optimiser.step


def _tower(model: Model, settings: Training, device: torch.device) -> Callable[[], object]:
    """Return the locked image tower's forward pass on ``_IMAGES`` images."""
    encoder = ImageEncoder(model.image, with_weights=False).for_inference().to(device)
    size = model.image.image_size
    pixels = torch.randint(0, 256, (_IMAGES, 3, size, size), dtype=torch.uint8, device=device)

    def forward() -> None:
        with torch.inference_mode(), gradients.autocast(device, settings.precision):
            encoder.in_pieces(pixels)

    return forward


def _decoding(model: Tower, augmentations: tuple[str, ...]) -> Callable[[], object]:
    """Return the decoding of a JPEG image of 256 pixels to a view; no augmentations for the evaluation view."""
    files = [photograph(number) for number in range(8)]
    views, numbers = Views(model, augmentations), count(1)

    def one() -> None:
        number = next(numbers)
        views[files[number % len(files)], str(number), 1 if augmentations else 0, ""]

    return one


def _medians(works: Mapping[str, Callable[[], object]], device: torch.device, seconds: float) -> dict[str, float]:
    """Return the seconds of each piece of work: the median of ``_ROUNDS`` rounds, in each of which all take turns."""
    slice_seconds = seconds / _ROUNDS / max(1, len(works))
    repeats = {}
    for name, work in works.items():
        work()
        repeats[name] = max(1, int(slice_seconds / _seconds(work, 1, device)))
    rounds = [{name: _seconds(work, repeats[name], device) for name, work in works.items()} for _ in range(_ROUNDS)]
    return {name: statistics.median(each[name] for each in rounds) for name in works}


def _seconds(work: Callable[[], object], repeats: int, device: torch.device) -> float:
    """Return the mean seconds of a piece of work."""
    _wait(device)
    started = time.perf_counter()
    for _ in range(repeats):
        work()
    _wait(device)
    return (time.perf_counter() - started) / repeats


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def photograph(seed: int) -> bytes:
    """Return a JPEG of 341 x 256 pixels and about 30 KB, the size of a photograph of that size."""
    generator = np.random.default_rng(seed)
    coarse = Image.fromarray(generator.integers(0, 256, (24, 32, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((341, 256), Image.Resampling.BICUBIC), dtype=np.float32)
    noisy = smooth + generator.normal(0, 8, smooth.shape)
    data = io.BytesIO()
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(data, "JPEG", quality=90)
    return data.getvalue()
