"""A model whose vectors are drawn at random, by what it is given: no two things are alike, so a ranking has no ties."""

import hashlib
from pathlib import Path
from typing import Any

import colours
import numpy as np
import torch
import torch.nn.functional as F

from wukong.evaluate.model import OwnModel
from wukong.model.dual import Texts
from wukong.model.saved_model import SavedModel, open_picture
from wukong.store.manifest import Manifest

QUERIES = [
    f"{left}{right}的{what}" for left in "红绿蓝黄黑" for right in "大小" for what in ("猫", "狗", "山", "海", "花")
]
PATCHES = colours.SIDE**2
WIDTH = 8


class Drawn(SavedModel):
    def encode_image(self, pictures: Any, batch_size: int = 32, *, pool: bool = True) -> torch.Tensor:
        vectors = torch.stack([drawn(open_picture(picture).tobytes(), PATCHES) for picture in pictures])
        return vectors if self.model.token_wise else vectors[:, 0]

    def encode_text(self, captions: Any, batch_size: int = 256, strict: bool = True) -> Texts:
        ids = self.tokenizer(captions)
        vectors = torch.stack([drawn(caption.encode(), ids.shape[1]) for caption in captions])
        counted = (ids != self.tokenizer.pad) & (ids != self.tokenizer.cls)
        return Texts(vectors if self.model.token_wise else vectors[:, 0], counted)


def drawn(content: bytes, count: int) -> torch.Tensor:
    """Unit vectors, [count, WIDTH]; fewer of the same content are the first ones."""
    seed = int.from_bytes(hashlib.sha256(content).digest()[:8], "big")
    vectors = np.random.default_rng(seed).standard_normal((count, WIDTH), np.float32)
    return F.normalize(torch.from_numpy(vectors), dim=-1)


def model(similarity: str = "global") -> OwnModel:
    made = colours.model(similarity).saved
    return OwnModel(Drawn(made.model, made.tokenizer), f"drawn, {similarity}")


def pictures(root: Path, count: int = 150, shards: int = 2) -> Manifest:
    """The output of a filter: pictures of noise in shards of one size."""
    numbers = np.random.default_rng(0)
    rows = []
    for number in range(count):
        image = colours.picture("红", size=(8, 8))
        image.frombytes(numbers.integers(0, 256, 8 * 8 * 3, np.uint8).tobytes())
        data = colours.encoded(image, "JPEG", quality=95)
        rows.append((f"{number:020d}", f"第{number}张图片", data, str(number)))
    each = count // shards
    return colours.stage(root, {f"train/{n:05d}": rows[n * each : (n + 1) * each] for n in range(shards)})
