"""ONNX graphs of towers in int8: a fourth of the size, and faster; not the same vectors."""

import io
import logging
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import redirect_stdout
from itertools import islice
from pathlib import Path
from typing import Any

import numpy.typing as npt
from torch import Tensor

from wukong.export import measure, parts
from wukong.export.target import Options
from wukong.model.saved_model import SavedModel

PICTURES = 64
"""By which the ranges of an image tower's activations are found."""
_BATCH = 16
_EXACT = 3
"""Convolutions at the start that stay in float32: they take no time, and cost most of the accuracy (EfficientNet)."""


def pixels(saved: SavedModel, options: Options) -> Iterator[Tensor]:
    """Iterate over batches of what the image tower sees of pictures for calibration, uint8 [images, 3, size, size].

    They are of ``Options.measure_on``, but not those that are measured; made-up ones where it is None.
    """
    if options.measure_on is None:
        pictures = iter(parts.sample_pictures(PICTURES))
    else:
        pictures = measure.calibration(options.measure_on, PICTURES)
    while batch := list(islice(pictures, _BATCH)):
        yield parts.seen(saved, batch)


def write_captions(source: Path, path: Path) -> None:
    """Write a text tower with int8 weights; activations are quantised as they come (dynamically)."""
    _quietly(lambda quantise: quantise.quantize_dynamic(source, path, per_channel=True))


def write_images(source: Path, path: Path, inputs: Iterable[Mapping[str, npt.NDArray[Any]]]) -> None:
    """Write an image tower in int8.

    A transformer's products of matrices are quantised as they come (dynamically), which costs almost nothing. A
    convolution done so is slower than in float32 and gives other vectors, so convolutions get ranges of activations
    that are known beforehand (statically): those of the inputs.

    Args:
        source: the tower in float32.
        path: where it is written.
        inputs: batches of the tower's inputs, by which a network of convolutions is calibrated.
    """
    import onnx

    kinds = Counter(node.op_type for node in onnx.load(source).graph.node)
    if kinds["MatMul"] > kinds["Conv"]:
        _quietly(
            lambda quantise: quantise.quantize_dynamic(
                source, path, op_types_to_quantize=["MatMul", "Gemm"], per_channel=True
            )
        )
        return

    def quantise(module: Any) -> None:
        class Reader(module.CalibrationDataReader):  # type: ignore[misc]
            def __init__(self) -> None:
                self.batches = iter(inputs)

            def get_next(self) -> Mapping[str, npt.NDArray[Any]] | None:
                return next(self.batches, None)

        with tempfile.TemporaryDirectory() as scratch:
            prepared = Path(scratch, "prepared.onnx")
            module.quant_pre_process(source, prepared, skip_symbolic_shape=True)
            convolutions = [node.name for node in onnx.load(prepared).graph.node if node.op_type == "Conv"]
            module.quantize_static(
                prepared,
                path,
                Reader(),
                nodes_to_exclude=convolutions[:_EXACT],
                per_channel=True,
                activation_type=module.QuantType.QUInt8,
                weight_type=module.QuantType.QInt8,
            )

    _quietly(quantise)


def _quietly(quantise: Callable[[Any], None]) -> None:
    """Quantise with onnxruntime's module, which warns on the root logger of what it would like better."""
    from onnxruntime import quantization

    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        with redirect_stdout(io.StringIO()):
            quantise(quantization)
    finally:
        root.setLevel(level)
