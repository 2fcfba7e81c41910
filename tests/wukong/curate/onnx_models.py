"""Small ONNX models that tests make, and the settings that name them."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from PIL import Image, ImageDraw
from sklearn.linear_model import LogisticRegression

Shape = Sequence[int | str]
PICTURES: Shape = ("n", 3, "height", "width")


def settings(file: Path, **further: Any) -> dict[str, Any]:
    """The settings of a model in a file; of a folder, those of its weights."""
    weights = file / "model.safetensors" if file.is_dir() else file
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    return {"uri": file.absolute().as_uri(), "sha256": digest, "licence": "made by a test", **further}


def write(
    file: Path,
    nodes: Sequence[onnx.NodeProto],
    *,
    constants: dict[str, npt.NDArray[Any]] | None = None,
    input_shape: Shape = PICTURES,
    outputs: dict[str, Shape] | None = None,
) -> Path:
    """Write a graph from ``x`` to ``y``, or to other outputs."""
    given = {name: numpy_helper.from_array(value, name) for name, value in (constants or {}).items()}
    graph = helper.make_graph(
        list(nodes),
        "test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, input_shape)],
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
            for name, shape in (outputs or {"y": ("n", "k")}).items()
        ],
        list(given.values()),
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, file)
    return file


def channel_means(file: Path, axes: Sequence[int] = (2, 3), **further: Any) -> Path:
    """A model that gives the mean of each channel of its input."""
    return write(file, [helper.make_node("ReduceMean", ["x"], ["y"], axes=list(axes), keepdims=0)], **further)


def watermarked(image: Image.Image, seed: int) -> Image.Image:
    """A copy of a picture with pale letters over it, somewhere."""
    random = np.random.default_rng(seed)
    mark = Image.new("L", image.size)
    at = (int(random.integers(image.width // 3)), int(random.integers(image.height // 2)))
    ImageDraw.Draw(mark).text(at, "SAMPLE", fill=140, font_size=image.height // 6)
    return Image.composite(Image.new("RGB", image.size, "white"), image, mark)


def smooth_picture(seed: int, side: int = 96) -> Image.Image:
    """A picture of soft colours, without edges."""
    colours = np.random.default_rng(seed).integers(0, 200, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(colours).resize((side, side), Image.Resampling.BICUBIC)


def train_classifier(file: Path, pictures: Sequence[Image.Image], labels: Sequence[int], side: int = 96) -> Path:
    """Train a classifier of pictures and write it: a regression on how much edge and colour an eighth of them has."""
    edge = np.zeros((6, 3, 3, 3), np.float32)
    for channel in range(3):
        edge[channel, channel] = [[-1, -1, -1], [-1, 8, -1], [-1, -1, -1]]
        edge[3 + channel, channel, 1, 1] = 1
    area = side // 8
    nodes = [
        helper.make_node("Conv", ["x", "edge"], ["edges"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        helper.make_node("Abs", ["edges"], ["sizes"]),
        helper.make_node("AveragePool", ["sizes"], ["areas"], kernel_shape=[area, area], strides=[area, area]),
        helper.make_node("Flatten", ["areas"], ["features"]),
    ]
    pixels = np.stack([np.asarray(each.resize((side, side)), np.float32) for each in pictures])
    pixels = pixels.transpose(0, 3, 1, 2) / 255
    features = write(file, nodes, constants={"edge": edge}, outputs={"features": ("n", 384)})
    seen = onnxruntime.InferenceSession(features).run(None, {"x": pixels})[0]
    fitted = LogisticRegression(C=10, max_iter=1000).fit(seen, labels)
    further = [
        helper.make_node("Gemm", ["features", "weight", "bias"], ["sums"]),
        helper.make_node("Sigmoid", ["sums"], ["y"]),
    ]
    weight = {"weight": fitted.coef_.T.astype(np.float32), "bias": fitted.intercept_.astype(np.float32)}
    return write(file, [*nodes, *further], constants={"edge": edge, **weight})
