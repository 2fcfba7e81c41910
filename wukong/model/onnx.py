"""Export a saved model to ONNX: one file for each tower, for batches of any size, with vocabulary and settings."""

import json
import logging
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from wukong.errors import ConfigError, DataError
from wukong.model.dual import DualEncoder
from wukong.model.saved_model import SavedModel
from wukong.runtime.installed import command_for

IMAGE, TEXT = "image.onnx", "text.onnx"
TOLERANCE = 1e-4
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


def export(saved: SavedModel, folder: Path) -> dict[str, float]:
    """Write both towers with their heads, run them with onnxruntime, and compare the outputs with torch's.

    ``image.onnx`` maps ``pixels``, uint8 [images, 3, size, size], to ``vectors``, float32 [images, (tokens,) d].
    ``text.onnx`` maps ``ids``, int64 [captions, tokens], padded with the tokenizer's ``pad``, to ``vectors``, float32
    [captions, (tokens,) d], and ``counted``, bool [captions, tokens]: the tokens that count in a token-wise similarity.
    The numbers of images, captions and tokens may vary.

    Args:
        saved: the model, on the CPU.
        folder: where the files are written; it is created.

    Returns:
        The largest difference from torch's output, for each file.

    Raises:
        ConfigError: onnx, onnxscript or onnxruntime is not installed.
        DataError: the outputs differ by more than ``TOLERANCE``.
    """
    try:
        import onnxruntime
        import onnxscript  # noqa: F401 - torch's exporter needs it
    except ModuleNotFoundError as error:
        raise ConfigError(f"{error.name} is not installed: run `{command_for('onnx')}`") from error

    if saved.model.image is None:
        raise ValueError("this model holds no image tower: load it with wukong.load")
    size, longest = saved.model.settings.image.image_size, saved.tokenizer.max_tokens
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (3, 3, size, size), generator=generator, dtype=torch.uint8)
    # Captions of different lengths, all shorter than the maximum.
    ids = saved.tokenizer(["一只猫", "红色的苹果和绿色的苹果", "雪"])
    folder.mkdir(parents=True, exist_ok=True)
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
    differences = {}
    for file, tower, example, name, outputs, free in towers:
        _write(tower.eval(), example, folder / file, name, outputs, free)
        session = onnxruntime.InferenceSession(folder / file, providers=["CPUExecutionProvider"])
        with torch.no_grad():
            expected = tower(example)
        found = session.run(None, {name: example.numpy()})
        wanted = expected if isinstance(expected, tuple) else (expected,)
        differences[file] = max(
            (torch.from_numpy(theirs).float() - ours.float()).abs().max().item()
            for theirs, ours in zip(found, wanted, strict=True)
        )
        if not differences[file] <= TOLERANCE:
            raise DataError(f"{folder / file} differs from torch by {differences[file]:.1e}: do not use it")
    (folder / "vocab.txt").write_text(saved.tokenizer.vocabulary, encoding="utf-8", newline="\n")
    settings = json.dumps(saved.model.settings.model_dump(mode="json"), ensure_ascii=False, indent=2, sort_keys=True)
    (folder / "config.json").write_text(settings + "\n", encoding="utf-8")
    return differences


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
