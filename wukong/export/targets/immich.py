"""immich: the folder that the machine-learning server of Immich, a server for one's own photographs, opens.

Its source (2.7.5: ``machine-learning/immich_ml/models/clip``, ``server/src/constants.ts``) decides the layout. It takes
models by the names that it knows, and each name has a width, with which its database keeps vectors. A narrower vector
is filled up with zeros, which changes no cosine. A folder that is there already is not downloaded.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from tokenizers import Tokenizer
from torch import Tensor, nn

from wukong.errors import DataError
from wukong.export import graphs, measure, parts
from wukong.export.target import Check, Options, Target
from wukong.model.dual import Texts
from wukong.model.saved_model import SavedModel
from wukong.runtime.language import _

NAMES = {
    512: (
        "XLM-Roberta-Base-ViT-B-32__laion5b_s13b_b90k",
        *("RN101__openai", "RN101__yfcc15m", "ViT-B-16__laion400m_e31", "ViT-B-16__laion400m_e32", "ViT-B-16__openai"),
        *("ViT-B-32__laion2b-s34b-b79k", "ViT-B-32__laion2b_e16", "ViT-B-32__laion400m_e31"),
        *("ViT-B-32__laion400m_e32", "ViT-B-32__openai"),
    ),
    640: ("RN50x4__openai", "ViT-B-16-plus-240__laion400m_e31", "ViT-B-16-plus-240__laion400m_e32"),
    768: (
        "ViT-B-16-SigLIP-i18n-256__webli",
        *("RN50x16__openai", "ViT-B-16-SigLIP-256__webli", "ViT-B-16-SigLIP-384__webli", "ViT-B-16-SigLIP-512__webli"),
        *("ViT-B-16-SigLIP__webli", "ViT-L-14-336__openai", "ViT-L-14-quickgelu__dfn2b"),
        *("ViT-L-14__laion2b-s32b-b82k", "ViT-L-14__laion400m_e31", "ViT-L-14__laion400m_e32", "ViT-L-14__openai"),
        *("ViT-B-16-SigLIP2__webli", "ViT-B-32-SigLIP2-256__webli"),
    ),
    1024: (
        "XLM-Roberta-Large-ViT-H-14__frozen_laion5b_s13b_b90k",
        *("RN50__cc12m", "RN50__openai", "RN50__yfcc15m", "RN50x64__openai", "ViT-H-14-378-quickgelu__dfn5b"),
        *("ViT-H-14-quickgelu__dfn5b", "ViT-H-14__laion2b-s32b-b79k", "ViT-L-16-SigLIP-256__webli"),
        *("ViT-L-16-SigLIP-384__webli", "ViT-g-14__laion2b-s12b-b42k", "ViT-L-16-SigLIP2-256__webli"),
        *("ViT-L-16-SigLIP2-384__webli", "ViT-L-16-SigLIP2-512__webli"),
    ),
    1152: (
        "ViT-SO400M-14-SigLIP-384__webli",
        *("ViT-SO400M-14-SigLIP2__webli", "ViT-SO400M-14-SigLIP2-378__webli", "ViT-SO400M-16-SigLIP2-256__webli"),
        *("ViT-SO400M-16-SigLIP2-384__webli", "ViT-SO400M-16-SigLIP2-512__webli"),
    ),
    1536: ("ViT-gopt-16-SigLIP2-256__webli", "ViT-gopt-16-SigLIP2-384__webli"),
}
"""The names by their width, of models whose tokenizer is read from a file and gets no language before a text."""
LEAST_COSINE = 0.95
"""Of a picture's vector there and here, where the picture is cut to the square in its middle."""
_BY = "immich_ml 2.7.5"
_PICTURES = 16


class _Filled(nn.Module):
    """A tower whose vectors are filled up with zeros to a width."""

    def __init__(self, tower: nn.Module, missing: int) -> None:
        super().__init__()
        self.tower, self.missing = tower, missing

    def forward(self, inputs: Tensor) -> Tensor:
        return F.pad(self.tower(inputs), (0, self.missing))


def refuse(saved: SavedModel, options: Options) -> str | None:
    """Give the reason why a model cannot be exported; None if it can."""
    if why := parts.refuse_token_wise(saved):
        return why
    width = saved.model.width
    if width > max(NAMES):
        return (
            f"its vectors have {width:,} numbers, and the widest that Immich keeps have {max(NAMES):,}: train a model "
            "with a smaller `model.embedding`"
        )
    if options.name != Options.name and _width_of(options.name) < width:
        known = ", ".join(names[0] for wide, names in NAMES.items() if wide >= width)
        return (
            f"Immich knows no model {options.name!r} whose vectors have {width:,} numbers or more: leave --name out, "
            f"or give a name such as {known}"
        )
    if saved.model.settings.image.view == "whole" and options.measure_on is None:
        return (
            "it was trained to see whole pictures (`model.image.view: whole`), and Immich cuts pictures to the square "
            "in their middle: pass --measure-on DATA to export it all the same, with its loss measured, or train a "
            "model with `model.image.view: crop`"
        )
    return None


def write(saved: SavedModel, folder: Path, options: Options) -> list[Check]:
    """Write ``clip/NAME`` with ``config.json``, ``textual`` and ``visual``, as it lies in the server's model cache.

    ``textual/model.onnx`` maps ``text``, int32 [captions, tokens], to vectors, ``visual/model.onnx`` maps ``image``,
    float32 [images, 3, size, size], to vectors of the same width.

    Raises:
        DataError: the outputs differ from torch's, or pictures cut to a square in the middle get other vectors.
    """
    name = _name(saved, options)
    place = folder / "clip" / name
    visual, textual = place / "visual", place / "textual"
    visual.mkdir(parents=True)
    textual.mkdir()
    settings, tokenizer = saved.model.settings, saved.tokenizer
    image = graphs.Normalised(saved.model)
    width = _width_of(name)
    batch = {0: torch.export.Dim("batch")}
    size = settings.image.image_size
    pixels = torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(0))
    ids = F.pad(tokenizer(["一只猫", "红色的苹果和绿色的苹果", "雪"]), (0, tokenizer.max_tokens), value=tokenizer.pad)
    missing = width - saved.model.width
    checks = [
        graphs.write(_Filled(image, missing), {"image": pixels}, ["vectors"], [batch], visual / "model.onnx"),
        graphs.write(
            _Filled(graphs.Captions(saved.model, tokenizer), missing),
            {"text": ids[:, : tokenizer.max_tokens].int()},
            ["vectors"],
            [batch],
            textual / "model.onnx",
        ),
    ]
    checks = [replace(each, of=f"{kind}/{each.of}") for each, kind in zip(checks, ("visual", "textual"), strict=True)]
    parts.write_tokenizer(tokenizer, textual)
    text = {"context_length": tokenizer.max_tokens, "vocab_size": len(tokenizer)}
    config = {"embed_dim": width, "vision_cfg": {"image_size": size}, "text_cfg": text}
    parts.write_json(place / "config.json", config)
    preprocessing = {
        "size": [size, size],
        "mode": "RGB",
        "mean": image.tower.mean.flatten().tolist(),
        "std": image.tower.std.flatten().tolist(),
        "interpolation": "bicubic",
        "resize_mode": "shortest",
        "fill_color": 0,
    }
    parts.write_json(visual / "preprocess_cfg.json", preprocessing)
    there = Server(saved, place)
    if options.measure_on is not None:
        checks += measure.loss(saved, measure.Exported(saved, there.pictures, there.captions), options.measure_on, _BY)
    if settings.image.view == "crop":
        checks.append(_cosine(saved, there))
    return checks


class Server:
    """What the server makes of pictures and captions, by its own rules.

    Args:
        saved: the model.
        place: the folder ``clip/NAME``.
    """

    def __init__(self, saved: SavedModel, place: Path) -> None:
        self._image = graphs.Normalised(saved.model)
        self._size, self._width = saved.model.settings.image.image_size, saved.model.width
        self._visual = graphs.session(place / "visual" / "model.onnx")
        self._textual = graphs.session(place / "textual" / "model.onnx")
        self._tokenizer = Tokenizer.from_file(str(place / "textual" / "tokenizer.json"))
        longest = saved.tokenizer.max_tokens
        self._tokenizer.enable_padding(length=longest, pad_token="[PAD]", pad_id=saved.tokenizer.pad)  # noqa: S106
        self._tokenizer.enable_truncation(longest)

    def square(self, picture: Image.Image) -> Image.Image:
        """Cut the square in the middle of a picture that was resized by its shorter side."""
        size, (width, height) = self._size, picture.size
        # transforms.py, resize_pil
        scaled = (size, int(height / width * size)) if width < height else (int(width / height * size), size)
        resized = picture.resize(scaled, Image.Resampling.BICUBIC)
        # transforms.py, crop_pil
        left, top = int(resized.width / 2 - size / 2), int(resized.height / 2 - size / 2)
        return resized.crop((left, top, left + size, top + size))

    def ids(self, captions: Sequence[str]) -> Tensor:
        """Return the token ids of each caption, int32 [captions, tokens]."""
        cleaned = [" ".join(caption.split()) for caption in captions]  # transforms.py, clean_text
        return torch.tensor([each.ids for each in self._tokenizer.encode_batch(cleaned)], dtype=torch.int32)

    def pictures(self, pictures: Sequence[Image.Image]) -> Tensor:
        """Encode RGB pictures; the zeros that fill a vector up are left out."""
        pixels = torch.from_numpy(np.stack([np.asarray(self.square(each)) for each in pictures])).permute(0, 3, 1, 2)
        vectors = self._visual.run(None, {"image": self._image.normalise(pixels).numpy()})[0]
        return torch.from_numpy(vectors[:, : self._width])

    def captions(self, captions: Sequence[str]) -> Texts:
        """Encode captions; the zeros that fill a vector up are left out."""
        ids = self.ids(captions)
        vectors = self._textual.run(None, {"text": ids.numpy()})[0]
        return Texts(torch.from_numpy(vectors[:, : self._width]), torch.ones_like(ids, dtype=torch.bool))


def _cosine(saved: SavedModel, there: Server) -> Check:
    pictures = parts.sample_pictures(_PICTURES)
    lowest = float((there.pictures(pictures) * saved.encode_image(pictures)).sum(1).min())
    if lowest < LEAST_COSINE:
        raise DataError(f"the vectors of pictures there and here have a cosine of only {lowest:.4f}: do not use it")
    return Check(
        _("vectors of {pictures} pictures of many sizes").format(pictures=_PICTURES), _("lowest cosine"), lowest, _BY
    )


def _width_of(name: str) -> int:
    """Return the width of a name; 0 if it is not known."""
    return next((width for width, names in NAMES.items() if name in names), 0)


def _name(saved: SavedModel, options: Options) -> str:
    if options.name != Options.name:
        return options.name
    return next(names[0] for width, names in NAMES.items() if width >= saved.model.width)


TARGET = Target(
    name="immich",
    about="the folder clip/NAME of the model cache of Immich's machine-learning server",
    needs=("onnx", "onnxruntime", "onnxscript"),
    refuse=refuse,
    write=write,
)
