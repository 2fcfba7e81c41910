"""ONNX graphs of a model's towers: written by torch, and compared with it in onnxruntime."""

import logging
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from wukong.data.tokenizer import Tokenizer
from wukong.errors import DataError
from wukong.export.parts import TOLERANCE
from wukong.export.target import Check
from wukong.model.dual import DualEncoder

OPSET = 18


class Pixels(nn.Module):
    """An image tower with its head: uint8 pixels [images, 3, size, size] to unit vectors."""

    def __init__(self, model: DualEncoder) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> Tensor:
        """Encode images."""
        return self.model.embed_pixels(pixels)


class Normalised(nn.Module):
    """An image tower with its head: float32 pixels, normalised by the tower's mean and deviation, to unit vectors.

    Args:
        model: the model.
        centre: take what is exactly 0 in all channels, right of a picture and below it, for padding: move the picture
            to the middle and make the rest white, as ``ImageOps.pad`` does.
    """

    def __init__(self, model: DualEncoder, *, centre: bool = False) -> None:
        super().__init__()
        if model.image is None:
            raise ValueError("this model holds no image tower")
        self.model, self.tower, self.centre = model, model.image, centre

    def forward(self, pixels: Tensor) -> Tensor:
        """Encode images."""
        seen = self._centred(pixels) if self.centre else pixels
        return self.model.embed_features(self.model.select(self.tower.from_normalised(seen)))

    def normalise(self, pixels: Tensor) -> Tensor:
        """Turn uint8 pixels into the input."""
        return (pixels / 255 - self.tower.mean) / self.tower.std

    def _centred(self, pixels: Tensor) -> Tensor:
        size = self.tower.settings.image_size
        is_picture = (pixels != 0).any(1)
        places, inside = [], []
        for length in (is_picture[:, :, 0].sum(1), is_picture[:, 0, :].sum(1)):
            border = ((size - length) / 2).round().long()  # to the even number, as Python rounds
            place = torch.arange(size, device=pixels.device)[None] - border[:, None]
            inside.append((place >= 0) & (place < length[:, None]))
            places.append(place.clamp(0, size - 1))
        moved = pixels.gather(2, places[0][:, None, :, None].expand(-1, 3, -1, size))
        moved = moved.gather(3, places[1][:, None, None, :].expand(-1, 3, size, -1))
        white = (1 - self.tower.mean) / self.tower.std
        return torch.where(inside[0][:, None, :, None] & inside[1][:, None, None, :], moved, white)


class Captions(nn.Module):
    """A text tower with its head: token ids, integers [captions, tokens], to unit vectors.

    A caption of as many tokens as the model reads ends in [SEP] here, also where a tokenizer has cut it off.
    """

    def __init__(self, model: DualEncoder, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.model = model
        self.pad, self.sep, self.longest = tokenizer.pad, tokenizer.sep, tokenizer.max_tokens

    def forward(self, ids: Tensor) -> Tensor:
        """Encode captions."""
        ids = ids.long()
        is_last = torch.arange(ids.shape[1], device=ids.device) == self.longest - 1
        return self.model.embed_text(ids.where(~is_last | (ids == self.pad), self.sep)).vectors


def write(
    module: nn.Module,
    examples: Mapping[str, Tensor],
    outputs: Sequence[str],
    free: Sequence[Mapping[int, Any]],
    path: Path,
) -> Check:
    """Write a module as an ONNX file, run it with onnxruntime, and compare its outputs with torch's.

    Args:
        module: what is written.
        examples: an example of each input by its name.
        outputs: the names of its outputs.
        free: for each input the axes whose size may vary, and their dimensions.
        path: the file.

    Raises:
        DataError: the outputs differ by more than ``TOLERANCE``.
    """
    import onnxruntime

    level = logging.getLogger("torch.onnx").level
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it logs each of its steps
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch warns about its own code
            warnings.filterwarnings("ignore", "# The axis name")  # two inputs with one axis are meant
            torch.onnx.export(
                module.eval(),
                tuple(examples.values()),
                path,
                input_names=list(examples),
                output_names=list(outputs),
                dynamic_shapes=tuple(free),
                opset_version=OPSET,
                dynamo=True,
                external_data=False,
                verbose=False,
            )
    finally:
        logging.getLogger("torch.onnx").setLevel(level)
    with torch.no_grad():
        expected = module(*examples.values())
    found = session(path).run(None, {name: value.numpy() for name, value in examples.items()})
    wanted = expected if isinstance(expected, tuple) else (expected,)
    difference = max(
        (torch.from_numpy(theirs).float() - ours.float()).abs().max().item()
        for theirs, ours in zip(found, wanted, strict=True)
    )
    if not difference <= TOLERANCE:
        raise DataError(f"{path.name} differs from torch by {difference:.1e}: do not use it")
    return Check(path.name, "largest difference", difference, f"onnxruntime {onnxruntime.__version__}")


def session(path: Path, threads: int = 0) -> Any:
    """Open an ONNX file with onnxruntime on the processor; 0 threads for as many as it has cores."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def join(text: Path, images: Path, path: Path, scale: float) -> None:
    """Write both towers as one graph that also gives the logits of each picture and each caption.

    Args:
        text: a graph with the output ``text_embeds``.
        images: a graph with the output ``image_embeds``.
        path: where it is written.
        scale: the factor on the similarities.
    """
    import onnx
    from onnx import TensorProto, compose, helper, numpy_helper

    # Names of nodes and of what lies between them are each graph's own; those of inputs and outputs stay.
    first, second = (
        compose.add_prefix(onnx.load(file), prefix, rename_inputs=False, rename_outputs=False)
        for file, prefix in ((text, "text/"), (images, "images/"))
    )
    graph = first.graph
    for field in ("node", "initializer", "input", "output", "value_info"):
        getattr(graph, field).extend(getattr(second.graph, field))
    known = {each.domain for each in first.opset_import}
    first.opset_import.extend(each for each in second.opset_import if each.domain not in known)
    graph.initializer.append(numpy_helper.from_array(np.float32(scale), "scale"))
    graph.node.extend(
        [
            helper.make_node("Transpose", ["text_embeds"], ["turned"], "turn", perm=[1, 0]),
            helper.make_node("MatMul", ["image_embeds", "turned"], ["similarities"], "compare"),
            helper.make_node("Mul", ["similarities", "scale"], ["logits_per_image"], "scaled"),
            helper.make_node("Transpose", ["logits_per_image"], ["logits_per_text"], "turn_back", perm=[1, 0]),
        ]
    )
    for name, shape in (("logits_per_image", ["images", "captions"]), ("logits_per_text", ["captions", "images"])):
        graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
    onnx.checker.check_model(first)
    onnx.save(first, path)
