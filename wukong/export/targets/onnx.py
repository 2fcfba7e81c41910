"""ONNX: one file for each tower, for batches of any size, with vocabulary and settings."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from wukong.export import graphs, int8, measure, parts
from wukong.export.target import Check, Options, Target, always
from wukong.model.dual import DualEncoder, Texts
from wukong.model.saved_model import SavedModel

IMAGE, TEXT = "image.onnx", "text.onnx"
IMAGE_INT8, TEXT_INT8 = "image_int8.onnx", "text_int8.onnx"


class _TextTower(nn.Module):
    def __init__(self, model: DualEncoder) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        vectors, counted = self.model.embed_text(ids)
        return vectors, counted


def write(saved: SavedModel, folder: Path, options: Options) -> list[Check]:
    """Write both towers with their heads, run them with onnxruntime, and compare the outputs with torch's.

    ``image.onnx`` maps ``pixels``, uint8 [images, 3, size, size], to ``vectors``, float32 [images, (tokens,) d].
    ``text.onnx`` maps ``ids``, int64 [captions, tokens], padded with the tokenizer's ``pad``, to ``vectors``, float32
    [captions, (tokens,) d], and ``counted``, bool [captions, tokens]: the tokens that count in a token-wise similarity.
    The numbers of images, captions and tokens may vary.

    Args:
        saved: the model, on the CPU.
        folder: an empty folder.
        options: with ``int8`` also ``image_int8.onnx`` and ``text_int8.onnx`` are written; with ``measure_on`` the R@1
            of the smallest files is measured.

    Raises:
        DataError: the outputs differ by more than ``TOLERANCE``.
    """
    size, longest = saved.model.settings.image.image_size, saved.tokenizer.max_tokens
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (3, 3, size, size), generator=generator, dtype=torch.uint8)
    # Captions of different lengths, all shorter than the maximum.
    ids = saved.tokenizer(["一只猫", "红色的苹果和绿色的苹果", "雪"])
    batch, tokens = torch.export.Dim("batch"), torch.export.Dim("tokens", min=2, max=longest)
    checks = [
        graphs.write(graphs.Pixels(saved.model), {"pixels": pixels}, ["vectors"], [{0: batch}], folder / IMAGE),
        graphs.write(
            _TextTower(saved.model), {"ids": ids}, ["vectors", "counted"], [{0: batch, 1: tokens}], folder / TEXT
        ),
    ]
    (folder / "vocab.txt").write_text(saved.tokenizer.vocabulary, encoding="utf-8", newline="\n")
    settings = json.dumps(saved.model.settings.model_dump(mode="json"), ensure_ascii=False, indent=2, sort_keys=True)
    (folder / "config.json").write_text(settings + "\n", encoding="utf-8")
    image, text = folder / IMAGE, folder / TEXT
    if options.int8:
        image, text = folder / IMAGE_INT8, folder / TEXT_INT8
        int8.write_images(folder / IMAGE, image, ({"pixels": each.numpy()} for each in int8.pixels(saved, options)))
        int8.write_captions(folder / TEXT, text)
    if options.measure_on is not None:
        checks += measure.loss(saved, _exported(saved, image, text), options.measure_on, f"{image.name}, {text.name}")
    return checks


def _exported(saved: SavedModel, image: Path, text: Path) -> measure.Exported:
    images, captions = graphs.session(image), graphs.session(text)

    def encode_pictures(pictures: Sequence[Image.Image]) -> Tensor:
        shown = parts.seen(saved, pictures)
        return torch.from_numpy(images.run(None, {"pixels": shown.numpy()})[0])

    def encode_captions(texts: Sequence[str]) -> Texts:
        vectors, counted = captions.run(None, {"ids": saved.tokenizer(texts).numpy()})
        return Texts(torch.from_numpy(vectors), torch.from_numpy(counted))

    return measure.Exported(saved, encode_pictures, encode_captions)


TARGET = Target(
    name="onnx",
    about="image.onnx and text.onnx for onnxruntime, with vocab.txt and config.json",
    needs=("onnx", "onnxruntime", "onnxscript"),  # torch's exporter imports onnxscript
    refuse=always,
    write=write,
)
