"""Measure how fast this machine trains: the rates with which ``wukong.estimate.training`` plans a training.

Each rate is measured for some seconds on random inputs and random weights, which take as long as real ones.
"""

import io
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from wukong.config import ImageEncoder as Tower
from wukong.config import Model, Training
from wukong.data import images
from wukong.data.tokenizer import Tokenizer
from wukong.model.dual import DualEncoder
from wukong.model.image_encoder import ImageEncoder
from wukong.train import gradients, optimizer
from wukong.train.training_data import Batch

_MOST_PAIRS = 64
"""Pairs of a measured step on processors; the time grows with their number, but for the optimiser's."""

_IMAGES = 32
_DEVIATION = 1 / 3
"""Deviation of the captions' lengths, as a share of the mean, as in table 2 of the paper."""


class Shape(NamedTuple):
    """The features of one image: the number of vectors, 1 without the token-wise similarity, and their width."""

    tokens: int
    width: int


def feature_shape(model: Model) -> Shape:
    """Return the shape of an image's features; the tower is built without memory for its weights.

    Raises:
        ConfigError: the tower cannot be built.
    """
    with torch.device("meta"):
        tower = ImageEncoder(model.image, with_weights=False)
    if model.similarity == "token":
        return Shape(tower.token_count, tower.token_width)
    return Shape(1, tower.pooled_width)


def text_step(
    model: Model, settings: Training, shape: Shape, device: torch.device, caption_tokens: int, seconds: float = 5.0
) -> float:
    """Return the pairs a second of training steps on stored features: forward, backward and the optimiser.

    Args:
        model: the architecture.
        settings: of the training; a step has a worker's share of the batch.
        shape: of the features of an image.
        device: where to compute.
        caption_tokens: mean number of tokens of a caption.
        seconds: that the measurement takes about, beside the model's construction.
    """
    torch.manual_seed(0)
    tokenizer = Tokenizer.of(model.text)
    dual = DualEncoder(model, tokenizer, feature_width=shape.width, with_weights=False).to(device).train()
    dual.text.checkpoint_activations = settings.checkpoint_activations
    if settings.compile:
        dual.compile_towers()
    optimiser = optimizer.build(dual, settings)
    share = settings.batch_size // settings.workers
    pairs = share if device.type == "cuda" else min(share, _MOST_PAIRS)
    lengths = (caption_tokens * (1 + _DEVIATION * torch.randn(pairs))).round().long().clamp(3, model.text.max_tokens)
    ids = torch.randint(5, len(tokenizer), (pairs, int(lengths.max())))
    ids = ids.masked_fill(torch.arange(ids.shape[1]) >= lengths[:, None], tokenizer.pad)
    ids[:, 0] = tokenizer.cls
    features = torch.randn(pairs, *(shape if model.similarity == "token" else (shape.width,)))
    batch = Batch(features, ids, torch.arange(pairs), torch.arange(pairs))

    def forward_and_backward() -> None:
        dual.zero_grad()
        gradients.backward(dual, dual, batch, settings)

    step = _seconds(forward_and_backward, device, 0.7 * seconds)
    return share / (share * step / pairs + _seconds(optimiser.step, device, 0.3 * seconds))


def tower(model: Model, settings: Training, device: torch.device, seconds: float = 5.0) -> float:
    """Return the images a second of the locked image tower's forward pass; see ``text_step``."""
    torch.manual_seed(0)
    encoder = ImageEncoder(model.image, with_weights=False).for_inference().to(device)
    size = model.image.image_size
    pixels = torch.randint(0, 256, (_IMAGES, 3, size, size), dtype=torch.uint8, device=device)

    def forward() -> None:
        bfloat16 = settings.precision == "bfloat16"
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
            encoder(pixels)

    return _IMAGES / _seconds(forward, device, seconds)


def decode(model: Tower, augmentations: tuple[str, ...], seconds: float = 2.0) -> float:
    """Return the JPEG images of 256 pixels a second that one core decodes to views.

    Args:
        model: the image encoder; its image size and view are used.
        augmentations: of an augmented view; none for the evaluation view.
        seconds: that the measurement takes about.
    """
    files = [photograph(number) for number in range(8)]
    number = 0

    def one() -> None:
        nonlocal number
        number += 1
        picture = images.decode(files[number % len(files)])
        if augmentations:
            seed = images.view_seed(str(number), 1)
            shown = images.augmented_view(picture, model.image_size, seed, augmentations)
        else:
            shown = images.evaluation_view(picture, model.image_size, model.view)
        images.to_tensor([shown])

    return 1 / _seconds(one, torch.device("cpu"), seconds)


def tower_flops(model: Model) -> float:
    """Return the floating-point operations of the image tower's forward pass for one image."""
    with torch.device("meta"):
        encoder = ImageEncoder(model.image, with_weights=False)
        size = model.image.image_size
        with FlopCounterMode(display=False) as counted, torch.inference_mode():
            encoder.eval()(torch.zeros(1, 3, size, size, dtype=torch.uint8))
    return float(counted.get_total_flops())


def text_step_flops(model: Model, settings: Training, shape: Shape, caption_tokens: int) -> float:
    """Return the floating-point operations for one pair of a step on stored features, forward and backward.

    Counted are the products of matrices: 2 operations for each weight and token in the forward pass, twice as many in
    the backward pass (Kaplan et al. 2020, section 2.1), and in the same way those of the similarity with all captions
    of the batch. Embeddings, norms and the optimiser are left out.
    """
    text = model.text
    attention = 2 * 2 * text.layers * text.width * caption_tokens
    layers = 2 * 12 * text.layers * text.width**2 + attention
    embedding = model.embedding or text.width
    words = caption_tokens if model.similarity == "token" else 1
    heads = 2 * embedding * (shape.tokens * shape.width + words * text.width)
    similarity = 2 * shape.tokens * words * embedding * settings.batch_size
    return 3.0 * (layers * caption_tokens + heads + similarity)


def _seconds(work: Callable[[], object], device: torch.device, seconds: float) -> float:
    """Return the mean seconds of a piece of work, of as many repetitions as take the given time, at least three."""
    work()
    _wait(device)
    started, count = time.perf_counter(), 0
    while count < 3 or time.perf_counter() - started < seconds:
        work()
        _wait(device)
        count += 1
    return (time.perf_counter() - started) / count


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
