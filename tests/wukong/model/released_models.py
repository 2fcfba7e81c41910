"""Tiny models with the architectures that the authors released; their weights and inputs follow formulas.

``released.json`` has what the authors' own code computes with the same weights and inputs.
"""

import functools
import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from wukong.model.released import Architecture, ReleasedModel, Swin, Transformer, ViT

RECORDED: dict[str, Any] = json.loads(Path(__file__).with_name("released.json").read_text("utf-8"))
TEXTS = ("一只猫坐在垫子上。", "Bicycle 与 iPod，２０２２年", "山" * 40)

_text, _vit = Transformer(width=128, layers=2), ViT(width=128, layers=2, patch=32)
_swin = Swin(width=16, layers=(2, 2), heads=(1, 2))
TINY = {
    "vit_g": Architecture(image=_vit, text=_text, width=8, token_wise=False, image_size=64),
    "vit_f": Architecture(image=_vit, text=_text, width=8, image_size=64),
    "vit": Architecture(image=_vit, text=_text, width=8, tokens=3, image_size=64),
    "swin_g": Architecture(image=_swin, text=_text, width=8, token_wise=False, image_size=56),
    "swin_f": Architecture(image=_swin, text=_text, width=8, image_size=56),
    "swin": Architecture(image=_swin, text=_text, width=8, tokens=3, image_size=56),
}


@functools.cache
def value(name: str, shape: tuple[int, ...]) -> Tensor:
    drawn = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape).astype(np.float32)
    drawn = 0.1 * drawn + name.endswith("weight") if len(shape) == 1 else 0.2 * drawn
    return torch.from_numpy(drawn.astype(np.float32))


def checkpoint(name: str) -> dict[str, Tensor]:
    """The weights of a tiny model, by the names of the released checkpoints."""
    with torch.device("meta"):
        model = ReleasedModel(TINY[name])
    return {each: value(each, tuple(size.shape)) for each, size in model.released_weights().items()}


def picture(number: int) -> Image.Image:
    drawn = np.random.RandomState(number).randint(0, 256, (70 + 10 * number, 90, 3))
    return Image.fromarray(drawn.astype(np.uint8))
