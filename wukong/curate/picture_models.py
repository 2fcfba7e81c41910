"""What models of others say of pictures, batch by batch. Each is read once a process, after its digest was compared.

A graph is run by onnxruntime. A folder is built by timm, from the name of an architecture that timm knows: no code
comes with weights. Only what runs a model imports these packages.
"""

from __future__ import annotations

import io
import textwrap
from collections import defaultdict
from collections.abc import Sequence
from functools import lru_cache
from threading import Lock
from typing import Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from wukong.config.picture_model import PictureInput, PictureModel, PictureOutput
from wukong.curate import picture_weights
from wukong.data.decoding import UNNAMED
from wukong.errors import ConfigError, DataError
from wukong.store import storage

Numbers = npt.NDArray[np.float32]

_LOADING = Lock()
_LOADED = 8
_PIXELS_AT_ONCE, _PIXELS_ON_GPU = 2**20, 2**23
_MAX_ASPECT_RATIO = 10
"""A longer picture is not read: a detector would need much memory for it, and others would see next to nothing."""

_MULTIPLE = 32
_ROUNDING = 1e-5
_OF_MEMORY = ("out of memory", "failed to allocate", "bad_alloc")
"""What runtimes say where memory is missing, which is no reason to call a picture unreadable."""

_GRAY = Image.new("RGB", (96, 64), (128, 128, 128))


def outputs(
    model: PictureModel, images: Sequence[Image.Image], device: str = "cpu", names: Sequence[str] = ()
) -> Numbers:
    """Return what a model says of pictures: a row a picture, a column a number; NaN where it cannot read a picture.

    Args:
        model: its weights, its input, and which numbers are taken.
        images: RGB.
        device: where it computes, as torch names it.
        names: what an error message calls each picture.

    Raises:
        ConfigError: the weights are others, or cannot be computed with there.
        DataError: the model gives a number that is none, or outside its range.
    """
    network = _network(model, device)
    found = np.full((len(images), network.numbers), np.nan, np.float32)
    for row, arrays in enumerate(_seen(network, model, images, (model.output.name,))):
        if arrays is not None:
            found[row] = _taken(_activated(arrays[0].reshape(1, -1), model.output), model)[0]
            _refuse_impossible(found[row], model, names[row] if names else UNNAMED, model.output.possible)
    return found


def maps(
    model: PictureModel, images: Sequence[Image.Image], device: str = "cpu", names: Sequence[str] = ()
) -> list[tuple[Numbers, ...] | None]:
    """Return what a detector gives of each picture, each output with its sides; None where it cannot read a picture.

    Args:
        model: its weights and its input. Its first output, or the one that is named, are scores of 0 to 1, or in
            ``output.range``; the others are returned as they are.
        images: RGB.
        device: where it computes, as torch names it.
        names: what an error message calls each picture.

    Raises:
        ConfigError: the weights are others, or cannot be computed with there.
        DataError: the model gives a number that is none, or a score outside its range.
    """
    taken = None if model.output.name is None else (model.output.name,)
    found: list[tuple[Numbers, ...] | None] = [None] * len(images)
    for row, arrays in enumerate(_seen(_network(model, device), model, images, taken)):
        if arrays is not None:
            scores, *others = arrays
            scores = _activated(scores[None], model.output)[0]
            name = names[row] if names else UNNAMED
            _refuse_impossible(scores, model, name, model.output.possible or (0.0, 1.0))
            for other in others:
                _refuse_impossible(other, model, name, None)
            found[row] = (scores, *others)
    return found


def check(model: PictureModel) -> int:
    """Load a model and let it look at a gray picture, so that one that can read none is refused before it is used.

    Returns:
        How many numbers are taken of a picture.

    Raises:
        ConfigError: the weights are others, or do not fit the settings.
        DataError: it gives a number that is none, or outside its range.
    """
    return len(outputs(model, [_GRAY], names=["a gray picture"])[0])


def view(image: Image.Image, settings: PictureInput) -> Image.Image:
    """Resize and cut a picture as a model's authors do."""
    method = Image.Resampling[settings.interpolation.upper()]
    size, first = settings.size, settings.resize_to or settings.size
    if settings.resize == "whole":
        seen = ImageOps.pad(image, (size, size), method, color=(settings.margin,) * 3)
    elif settings.resize == "keep":
        shorter = min(image.size)
        width, height = (max(1, round(int(side * size / shorter) / _MULTIPLE)) * _MULTIPLE for side in image.size)
        seen = image.resize((width, height), method)
    else:
        shorter = min(image.size)
        # Like torchvision: the longer side is rounded down, and the border to the nearest number.
        width, height = (first if settings.resize == "squash" else int(first * side / shorter) for side in image.size)
        left, top = round((width - size) / 2), round((height - size) / 2)
        seen = image.resize((width, height), method).crop((left, top, left + size, top + size))
    if settings.jpeg is not None:
        compressed = io.BytesIO()
        seen.save(compressed, "JPEG", quality=settings.jpeg)
        seen = Image.open(compressed, formats=["JPEG"])
    return seen


class _Network(Protocol):
    """What runs a model.

    Attributes:
        numbers: how many numbers are taken of a picture.
        on_gpu: whether it computes on a GPU, where more pictures at once are faster.
        most: pictures that it takes at once, no fewer; 0 where it takes any number.
        errors: what it raises for pictures that it cannot read.
    """

    numbers: int
    on_gpu: bool
    most: int
    errors: tuple[type[Exception], ...]

    def __call__(self, pictures: Numbers, taken: Sequence[str | None] | None) -> list[Numbers]:
        """Return the outputs that are asked for, by name or None for the first, or all; each with a row a picture."""
        ...


def _network(model: PictureModel, device: str) -> _Network:
    with _LOADING:
        return _loaded(model, "cpu" if model.device == "cpu" else device)


@lru_cache(maxsize=_LOADED)
def _loaded(model: PictureModel, device: str) -> _Network:
    weights = picture_weights.read(model)
    kind = _Graph if model.uri == model.file else _Folder
    network: _Network = kind(model, weights, device)
    try:
        (first,) = network(
            _stacked([view(_GRAY, model.input)] * max(1, network.most), model.input), (model.output.name,)
        )
    except network.errors as error:
        raise ConfigError(
            f"{model.uri} cannot look at a gray picture ({_shown(error)}): compare input.size and input.layout with "
            "what its authors say"
        ) from error
    network.numbers = _taken(first[:1].reshape(1, -1), model).shape[1]
    return network


class _Graph:
    """An ONNX file."""

    def __init__(self, model: PictureModel, weights: bytes, device: str) -> None:
        try:
            import onnxruntime
            from onnxruntime.capi import onnxruntime_pybind11_state as state
        except ImportError as error:
            raise ConfigError(
                f"{model.uri} is run by onnxruntime, which is not installed ({error}): pip install onnxruntime"
            ) from error
        self.errors: tuple[type[Exception], ...] = (
            *(state.Fail, state.InvalidArgument, state.InvalidGraph, state.InvalidProtobuf, state.NoSuchFile),
            *(state.NotImplemented, state.RuntimeException),
        )
        self.numbers, self.on_gpu = 0, device != "cpu"
        provider = "CPUExecutionProvider" if device == "cpu" else "CUDAExecutionProvider"
        if provider not in (there := onnxruntime.get_available_providers()):
            raise ConfigError(
                f"{model.uri}: this onnxruntime has no {provider} for {device}, it has {', '.join(there)}: pip install "
                "onnxruntime-gpu, or set the model's device to 'cpu'"
            )
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # what it warns of is the exporter's
        if device == "cpu":
            options.intra_op_num_threads = 1  # tasks run side by side
        try:
            session = onnxruntime.InferenceSession(weights, options, providers=[provider])
            sides = session.get_inputs()[0].shape[slice(2, 4) if model.input.layout == "nchw" else slice(1, 3)]
            if model.input.resize == "keep" and any(isinstance(side, int) for side in sides):
                session = onnxruntime.InferenceSession(_with_free_sides(weights), options, providers=[provider])
        except self.errors as error:
            raise ConfigError(f"onnxruntime does not load {model.uri} ({_shown(error)}): export it anew") from error
        if provider not in (used := session.get_providers()):  # it goes on with another where a library is missing
            raise ConfigError(
                f"{model.uri}: onnxruntime cannot use {device} and would take {', '.join(used)}: install the libraries "
                "of CUDA that this onnxruntime-gpu wants, or set the model's device to 'cpu'"
            )
        self._uri, self._session, self._outputs = model.uri, session, [each.name for each in session.get_outputs()]
        (self._input, *others) = session.get_inputs()
        if others or self._input.type != "tensor(float)":
            kinds = ", ".join(f"{each.name} {each.type}" for each in [self._input, *others])
            raise ConfigError(f"{model.uri} takes {kinds}: export it with one input, of float32")
        self.most = self._input.shape[0] if isinstance(self._input.shape[0], int) else 0

    def __call__(self, pictures: Numbers, taken: Sequence[str | None] | None) -> list[Numbers]:
        wanted = self._outputs if taken is None else [name or self._outputs[0] for name in taken]
        if missing := [name for name in wanted if name not in self._outputs]:
            raise ConfigError(f"{self._uri} gives {', '.join(self._outputs)}, and not {', '.join(missing)}")
        found: list[Numbers] = self._session.run(wanted, {self._input.name: pictures})
        return found


def _with_free_sides(weights: bytes) -> bytes:
    """Free the number of pictures and their sides in a graph whose exporter fixed those of its example."""
    try:
        import onnx
    except ImportError as error:
        raise ConfigError(
            f"onnx frees the sides that a graph has fixed, and is not installed ({error}): pip install onnx"
        ) from error
    model = onnx.load_model_from_string(weights)
    weighed = {each.name for each in model.graph.initializer}
    for value in [*model.graph.input, *model.graph.output]:
        if value.name not in weighed:
            for place, dimension in enumerate(value.type.tensor_type.shape.dim):
                dimension.dim_param = f"{value.name}_{place}"
    del model.graph.value_info[:]  # inferred from the sides that were fixed
    freed: bytes = model.SerializeToString()
    return freed


class _Folder:
    """A classifier of pictures, in the files of timm or transformers."""

    most = 0
    errors: tuple[type[Exception], ...] = (RuntimeError, ValueError, AssertionError)

    def __init__(self, model: PictureModel, weights: bytes, device: str) -> None:
        try:
            import torch

            from wukong.curate import classifier_folders
        except ImportError as error:
            raise ConfigError(f"{model.uri} is built by timm and torch; they are not installed ({error})") from error
        config = storage.read_json(storage.join(model.uri, "config.json"))
        if device == "cpu":
            torch.set_num_threads(1)  # tasks run side by side
        self.numbers, self.on_gpu = 0, device != "cpu"
        self._module, self._device = classifier_folders.build(config, weights, model.uri), device
        self._module.eval().to(device)

    def __call__(self, pictures: Numbers, taken: Sequence[str | None] | None) -> list[Numbers]:
        import torch

        if taken and any(taken):
            raise ConfigError("output.name is of an ONNX file: a folder's model has one output, so leave it out")
        with torch.inference_mode():
            scores = self._module(torch.from_numpy(pictures).to(self._device))
        return [scores.float().cpu().numpy()]


def _seen(
    network: _Network, model: PictureModel, images: Sequence[Image.Image], taken: Sequence[str | None] | None
) -> list[tuple[Numbers, ...] | None]:
    """What a network gives for each picture; pictures whose views are of one size are run together."""
    found: list[tuple[Numbers, ...] | None] = [None] * len(images)
    of_size = defaultdict(list)
    for row, image in enumerate(images):
        if max(image.size) <= _MAX_ASPECT_RATIO * min(image.size):
            seen = view(image, model.input)
            of_size[seen.size].append((row, seen))
    for (width, height), rows in of_size.items():
        pixels = _PIXELS_ON_GPU if network.on_gpu else _PIXELS_AT_ONCE
        most = network.most or max(1, pixels // (width * height))
        for start in range(0, len(rows), most):
            batch = rows[start : start + most]
            for row, arrays in zip((row for row, _ in batch), _run(network, model, batch, taken), strict=True):
                found[row] = arrays
    return found


def _run(
    network: _Network, model: PictureModel, batch: Sequence[tuple[int, Image.Image]], taken: Sequence[str | None] | None
) -> list[tuple[Numbers, ...] | None]:
    """Run a batch; if it fails, each of its pictures by itself, to find those that fail."""
    pictures = _stacked([seen for _, seen in batch], model.input)
    if len(batch) < network.most:
        pictures = np.concatenate([pictures, np.zeros((network.most - len(batch), *pictures.shape[1:]), np.float32)])
    try:
        arrays = network(pictures, taken)
    except network.errors as error:
        if any(words in str(error).lower() for words in _OF_MEMORY):
            raise ConfigError(
                f"{model.uri} has too little memory for {len(batch)} pictures of {batch[0][1].width} x "
                f"{batch[0][1].height} pixels ({_shown(error)}): set a smaller input.size, or run fewer tasks at once"
            ) from error
        if len(batch) == 1:
            return [None]
        return [found for each in batch for found in _run(network, model, [each], taken)]
    return [tuple(array[row] for array in arrays) for row in range(len(batch))]


def _stacked(views: Sequence[Image.Image], settings: PictureInput) -> Numbers:
    pixels = np.stack([np.asarray(each, dtype=np.float32) for each in views])
    if settings.channels == "bgr":
        pixels = pixels[..., ::-1]
    mean, std = (np.array(each, np.float32) for each in (settings.mean, settings.std))
    pixels = (pixels * np.float32(settings.scale) - mean) / std
    return np.ascontiguousarray(pixels if settings.layout == "nhwc" else pixels.transpose(0, 3, 1, 2))


def _activated(scores: Numbers, output: PictureOutput) -> Numbers:
    """The scores of [pictures, classes, …] numbers."""
    if output.activation == "softmax":
        powers = np.exp(scores - scores.max(axis=1, keepdims=True))
        scores = powers / powers.sum(axis=1, keepdims=True)
    elif output.activation == "sigmoid":
        scores = 0.5 + 0.5 * np.tanh(0.5 * scores)  # 1 / (1 + exp(-scores)), which overflows
    return scores


def _taken(scores: Numbers, model: PictureModel) -> Numbers:
    """The numbers that the settings take of a model's, [pictures, numbers]."""
    index = model.output.index
    if index is None:
        return scores
    if max(index) >= scores.shape[1]:
        raise ConfigError(
            f"{model.uri} gives {scores.shape[1]} numbers a picture, and output.index names {max(index)}: 0 to "
            f"{scores.shape[1] - 1} are allowed"
        )
    taken: Numbers = scores[:, index].sum(axis=1, keepdims=True)
    return taken


def _refuse_impossible(numbers: Numbers, model: PictureModel, name: str, possible: tuple[float, float] | None) -> None:
    if not np.isfinite(numbers).all():
        raise DataError(
            f"{model.uri} gives a number that is infinite or none for {name}: compare its input with what its authors "
            "say, or export it anew"
        )
    if possible is None:
        return
    least, greatest = possible
    room = _ROUNDING * (greatest - least)
    wrong = numbers[(numbers < least - room) | (numbers > greatest + room)]
    if wrong.size:
        raise DataError(
            f"{model.uri} gives {wrong.flat[0]:.6g} for {name}, and {least:g} to {greatest:g} is expected: set "
            "output.activation if these are no scores yet, or output.range to what its authors say"
        )


def _shown(error: Exception) -> str:
    return textwrap.shorten(f"{type(error).__name__}: {error}", 300, placeholder=" …")
