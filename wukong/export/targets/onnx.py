"""ONNX: one file for each tower, for batches of any size, with vocabulary and settings."""

import json
import logging
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from wukong.errors import DataError
from wukong.export.target import Check, Options, Target, always
from wukong.model.dual import DualEncoder
from wukong.model.saved_model import SavedModel

IMAGE, TEXT = "image.onnx", "text.onnx"
TOLERANCE = 1e-5
_OPSET = 18


class _ImageTower(nn.Module):
    def __init__(self, model: DualEncoder) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> Tensor:
        return self.model.embed_pixels(pixels)


class _TextTower(nn.Module):
    def __init__(self, model: DualEncoder) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        vectors, counted = self.model.embed_text(ids)
        return vectors, counted


def write(saved: SavedModel, folder: Path, options: Options | None = None) -> list[Check]:
    """Write both towers with their heads, run them with onnxruntime, and compare the outputs with torch's.

    ``image.onnx`` maps ``pixels``, uint8 [images, 3, size, size], to ``vectors``, float32 [images, (tokens,) d].
    ``text.onnx`` maps ``ids``, int64 [captions, tokens], padded with the tokenizer's ``pad``, to ``vectors``, float32
    [captions, (tokens,) d], and ``counted``, bool [captions, tokens]: the tokens that count in a token-wise similarity.
    The numbers of images, captions and tokens may vary.

    Args:
        saved: the model, on the CPU.
        folder: an empty folder.
        options: unused.

    Raises:
        DataError: the outputs differ by more than ``TOLERANCE``.
    """
    import onnxruntime

    size, longest = saved.model.settings.image.image_size, saved.tokenizer.max_tokens
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (3, 3, size, size), generator=generator, dtype=torch.uint8)
    # Captions of different lengths, all shorter than the maximum.
    ids = saved.tokenizer(["一只猫", "红色的苹果和绿色的苹果", "雪"])
    batch = torch.export.Dim("batch")
    towers: list[tuple[str, nn.Module, Tensor, str, list[str], dict[int, object]]] = [
        (IMAGE, _ImageTower(saved.model), pixels, "pixels", ["vectors"], {0: batch}),
        (
            TEXT,
            _TextTower(saved.model),
            ids,
            "ids",
            ["vectors", "counted"],
            {0: batch, 1: torch.export.Dim("tokens", min=2, max=longest)},
        ),
    ]
    checks = []
    for file, tower, example, name, outputs, free in towers:
        _write(tower.eval(), example, folder / file, name, outputs, free)
        session = onnxruntime.InferenceSession(folder / file, providers=["CPUExecutionProvider"])
        with torch.no_grad():
            expected = tower(example)
        found = session.run(None, {name: example.numpy()})
        wanted = expected if isinstance(expected, tuple) else (expected,)
        difference = max(
            (torch.from_numpy(theirs).float() - ours.float()).abs().max().item()
            for theirs, ours in zip(found, wanted, strict=True)
        )
        if not difference <= TOLERANCE:
            raise DataError(f"{file} differs from torch by {difference:.1e}: do not use it")
        checks.append(Check(file, "largest difference", difference, f"onnxruntime {onnxruntime.__version__}"))
    (folder / "vocab.txt").write_text(saved.tokenizer.vocabulary, encoding="utf-8", newline="\n")
    settings = json.dumps(saved.model.settings.model_dump(mode="json"), ensure_ascii=False, indent=2, sort_keys=True)
    (folder / "config.json").write_text(settings + "\n", encoding="utf-8")
    return checks


def _write(
    tower: nn.Module, example: Tensor, path: Path, name: str, outputs: list[str], free: dict[int, object]
) -> None:
    """Export one tower; ``free`` names the axes of the input whose size may vary."""
    level = logging.getLogger("torch.onnx").level
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it logs each of its steps
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch warns about its own code
            torch.onnx.export(
                tower,
                (example,),
                path,
                input_names=[name],
                output_names=outputs,
                dynamic_shapes=(free,),
                opset_version=_OPSET,
                dynamo=True,
                external_data=False,
                verbose=False,
            )
    finally:
        logging.getLogger("torch.onnx").setLevel(level)


TARGET = Target(
    name="onnx",
    about="image.onnx and text.onnx for onnxruntime, with vocab.txt and config.json",
    needs=("onnx", "onnxruntime", "onnxscript"),  # torch's exporter imports onnxscript
    refuse=always,
    write=write,
)
