"""transformers.js: the folder that `@huggingface/transformers` opens in a browser, in Node, Deno or Bun.

Its source (4.3.2: ``models/modeling_utils.js``, ``models/clip``, ``image_processors_utils.js``) decides the layout. Its
classes know nothing of a model's layers: a model of the type ``clip`` is ONNX files with these names of inputs and
outputs, so a tower of any kind can stand behind them.

Its image processor pads after it has normalised, with zeros, right of the picture and below it. A picture's own pixel
is never 0 in all channels, unless the mean is 0; so ``wukong.export.graphs.Normalised`` finds the padding, moves the
picture to the middle and makes the rest white. A picture on a square, without padding, passes through as it is.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from wukong.export import graphs, int8, measure, parts
from wukong.export.target import Check, Options, Target
from wukong.model.dual import Texts
from wukong.model.saved_model import SavedModel

MODEL, TEXT, VISION = "model", "text_model", "vision_model"
_LANCZOS = 1
"""In Node the other kernels do not look at all pixels of a large picture (``utils/image.js``)."""


class _Text(nn.Module):
    def __init__(self, saved: SavedModel) -> None:
        super().__init__()
        self.captions = graphs.Captions(saved.model, saved.tokenizer)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        vectors: Tensor = self.captions(input_ids.where(attention_mask.bool(), self.captions.pad))
        return vectors


def refuse(saved: SavedModel, options: Options) -> str | None:
    """Give the reason why a model cannot be exported; None if it can."""
    if _is_padded(saved) and not graphs.Normalised(saved.model).tower.mean.any():
        return (
            "its pictures are normalised with the mean 0, so that black is 0, which stands for padding there: train a "
            "model with `model.image.view: crop`, or export this one to onnx"
        )
    return parts.refuse_token_wise(saved)


def write(saved: SavedModel, folder: Path, options: Options) -> list[Check]:
    """Write the ONNX files in float32 and, with ``_quantized`` in their names, in int8; tokenizer and processor.

    ``onnx/text_model.onnx`` maps ``input_ids`` and ``attention_mask`` to ``text_embeds``, ``onnx/vision_model.onnx``
    maps ``pixel_values`` to ``image_embeds``, and ``onnx/model.onnx`` does both and gives the logits of every picture
    and caption. With ``Options.measure_on`` the R@1 of the files in int8, which browsers take, is measured; pictures
    are shown to them as this project does, because the other's processor is no Python.

    Raises:
        DataError: the outputs differ from torch's.
    """
    tower, tokenizer = graphs.Normalised(saved.model, centre=_is_padded(saved)), saved.tokenizer
    images, captions = torch.export.Dim("images"), torch.export.Dim("captions")
    tokens = torch.export.Dim("tokens", min=2, max=tokenizer.max_tokens)
    ids = tokenizer(["一只猫", "红色的苹果和绿色的苹果", "雪"])
    size = saved.model.settings.image.image_size
    pixels = torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(0))
    if tower.centre:
        pixels[0, :, size // 2 :] = 0
        pixels[1, :, :, size // 3 :] = 0
    (folder / "onnx").mkdir()
    text, vision, both = (folder / "onnx" / f"{name}.onnx" for name in (TEXT, VISION, MODEL))
    checks = [
        graphs.write(
            _Text(saved),
            {"input_ids": ids, "attention_mask": (ids != tokenizer.pad).long()},
            ["text_embeds"],
            [{0: captions, 1: tokens}] * 2,
            text,
        ),
        graphs.write(tower, {"pixel_values": pixels}, ["image_embeds"], [{0: images}], vision),
    ]
    small_text, small_vision, small_both = (file.with_stem(f"{file.stem}_quantized") for file in (text, vision, both))
    int8.write_captions(text, small_text)
    shown = ({"pixel_values": tower.normalise(batch).numpy()} for batch in int8.pixels(saved, options))
    int8.write_images(vision, small_vision, shown)
    graphs.join(text, vision, both, float(saved.model.scale))
    graphs.join(small_text, small_vision, small_both, float(saved.model.scale))
    parts.write_tokenizer(tokenizer, folder)
    parts.write_json(folder / "config.json", _config(saved))
    parts.write_json(folder / "preprocessor_config.json", _processor(saved, tower))
    if options.measure_on is not None:
        checks += measure.loss(saved, _exported(saved, tower, small_text, small_vision), options.measure_on, "int8")
    return checks


def _is_padded(saved: SavedModel) -> bool:
    return saved.model.settings.image.view == "whole"


def _config(saved: SavedModel) -> dict[str, Any]:
    """``config.json``: transformers.js reads ``model_type`` alone, which says what the ONNX files are called."""
    text, image, tokenizer = saved.model.settings.text, saved.model.settings.image, saved.tokenizer
    return {
        "model_type": "clip",
        "architectures": ["CLIPModel"],
        "projection_dim": saved.model.width,
        "text_config": {
            "model_type": "clip_text_model",
            "vocab_size": len(tokenizer),
            "hidden_size": text.width,
            "num_hidden_layers": text.layers,
            "num_attention_heads": text.heads,
            "max_position_embeddings": text.max_tokens,
            "pad_token_id": tokenizer.pad,
        },
        "vision_config": {"model_type": "clip_vision_model", "image_size": image.image_size},
    }


def _processor(saved: SavedModel, tower: graphs.Normalised) -> dict[str, Any]:
    """``preprocessor_config.json``: resized by the longer side and padded, or by the shorter one and cut."""
    size = saved.model.settings.image.image_size
    square = {"height": size, "width": size}
    view: dict[str, Any] = (
        {"size": {"shortest_edge": size, "longest_edge": size}, "do_pad": True, "pad_size": square}
        if tower.centre
        else {"size": {"shortest_edge": size}, "do_center_crop": True, "crop_size": square}
    )
    return {
        **view,
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "resample": _LANCZOS,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": tower.tower.mean.flatten().tolist(),
        "image_std": tower.tower.std.flatten().tolist(),
    }


def _exported(saved: SavedModel, tower: graphs.Normalised, text: Path, vision: Path) -> measure.Exported:
    captions, images = graphs.session(text), graphs.session(vision)

    def encode_pictures(pictures: Sequence[Image.Image]) -> Tensor:
        shown = parts.seen(saved, pictures)
        return torch.from_numpy(images.run(None, {"pixel_values": tower.normalise(shown).numpy()})[0])

    def encode_captions(texts: Sequence[str]) -> Texts:
        ids = saved.tokenizer(texts)
        mask = ids != saved.tokenizer.pad
        vectors = captions.run(None, {"input_ids": ids.numpy(), "attention_mask": mask.long().numpy()})[0]
        return Texts(torch.from_numpy(vectors), mask)

    return measure.Exported(saved, encode_pictures, encode_captions)


TARGET = Target(
    name="transformers.js",
    about="the folder that @huggingface/transformers opens in a browser, in Node, Deno or Bun",
    needs=("onnx", "onnxruntime", "onnxscript"),
    refuse=refuse,
    write=write,
)
