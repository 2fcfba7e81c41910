"""A model whose answers are plain: a patch is its mean colour, a character the colour that it names."""

import io
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F
from PIL import Image

from wukong.config.model import Model as Settings
from wukong.data import images
from wukong.data.tokenizer import Tokenizer, packaged_vocabulary
from wukong.evaluate.model import OwnModel
from wukong.model.dual import DualEncoder, Texts
from wukong.model.image_encoder import ImageEncoder
from wukong.model.saved_model import SavedModel, open_picture
from wukong.store import storage
from wukong.store.manifest import Manifest, Stage

COLOURS = {"红": (255, 0, 0), "绿": (0, 255, 0), "蓝": (0, 0, 255), "黄": (255, 255, 0), "黑": (0, 0, 0)}
SIDE = 4


class Seeing(SavedModel):
    """4 x 4 patches; characters that name no colour have a direction of their own."""

    def encode_image(self, pictures: Any, batch_size: int = 32, *, pool: bool = True) -> torch.Tensor:
        found = []
        for picture in pictures:
            square = images.evaluation_view(open_picture(picture), 16 * SIDE)
            cells = np.asarray(square, np.float32).reshape(SIDE, 16, SIDE, 16, 3).mean((1, 3)) / 127.5 - 1
            found.append(F.pad(torch.from_numpy(cells.reshape(SIDE * SIDE, 3)), (0, 5)))
        vectors = F.normalize(torch.stack(found), dim=-1)
        return vectors if self.model.token_wise else F.normalize(vectors.mean(1), dim=-1)

    def encode_text(self, captions: Any, batch_size: int = 256, strict: bool = True) -> Texts:
        ids = self.tokenizer([captions] if isinstance(captions, str) else list(captions))
        entries = self.tokenizer.vocabulary.split("\n")
        vectors = torch.zeros(*ids.shape, 8)
        for row, each in enumerate(ids.tolist()):
            for place, number in enumerate(each):
                colour = COLOURS.get(entries[number])
                vectors[row, place, :3] = torch.tensor(colour) / 127.5 - 1 if colour else 0.0
                vectors[row, place, 3 if number > 200 else 4] = 0.0 if colour else 1.0
        vectors = F.normalize(vectors, dim=-1)
        counted = (ids != self.tokenizer.pad) & (ids != self.tokenizer.cls)
        if self.model.token_wise:
            return Texts(vectors, counted)
        weight = (counted & (ids != self.tokenizer.sep))[..., None]
        return Texts(F.normalize((vectors * weight).sum(1), dim=-1), counted)


def model(similarity: str = "token") -> OwnModel:
    torch.manual_seed(0)
    settings = Settings.model_validate(
        {
            "image": {"name": "resnet18", "weights": "random", "image_size": 64},
            "text": {"layers": 1, "heads": 2, "width": 16},
            "embedding": 8,
            "similarity": similarity,
        }
    )
    tokenizer = Tokenizer(packaged_vocabulary())
    dual = DualEncoder(settings, tokenizer, ImageEncoder(settings.image, with_weights=False)).eval()
    dual.image.token_count = SIDE * SIDE  # type: ignore[union-attr]
    return OwnModel(Seeing(dual, tokenizer), f"colours, {similarity}")


def picture(left: str, right: str | None = None, size: tuple[int, int] = (64, 64)) -> Image.Image:
    """A picture of one colour, or of two halves."""
    made = Image.new("RGB", size, COLOURS[left])
    if right:
        made.paste(COLOURS[right], (size[0] // 2, 0, *size))
    return made


def encoded(image: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    target = io.BytesIO()
    image.save(target, form, **options)
    return target.getvalue()


def folder(root: Path, captions: Mapping[str, Sequence[str]], pictures: Mapping[str, bytes]) -> str:
    """A folder of pictures with captions beside them."""
    root.mkdir(parents=True, exist_ok=True)
    for name, data in pictures.items():
        (root / name).write_bytes(data)
        if captions.get(name):
            (root / name).with_suffix(".txt").write_text("\n".join(captions[name]), encoding="utf-8")
    return storage.from_path(root)


def every_pair(root: Path) -> str:
    """20 pictures: each pair of different colours, left and right, with both characters as the caption."""
    names = {f"{a}{b}.png": (a, b) for a in COLOURS for b in COLOURS if a != b}
    captions = {name: [f"{a}色和{b}色"] for name, (a, b) in names.items()}
    return folder(root, captions, {name: encoded(picture(a, b)) for name, (a, b) in names.items()})


def stage(root: Path, shards: Mapping[str, Sequence[tuple[str, str, bytes, str]]], name: str = "filter") -> Manifest:
    """A stage with shards; each pair is its key, its caption, its picture's file and the digest of the original."""
    root.mkdir(parents=True, exist_ok=True)
    made = Stage(storage.from_path(root), name, {"pairs": [pair[0] for pairs in shards.values() for pair in pairs]})
    parts = []
    for path, pairs in shards.items():
        target = root / "shard.tar"
        with tarfile.open(target, "w", format=tarfile.USTAR_FORMAT) as tar:
            for key, caption, data, _ in pairs:
                for suffix, content in ("jpg", data), ("txt", caption.encode()):
                    info = tarfile.TarInfo(f"{key}.{suffix}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
        storage.upload(target, made.path(f"{path}.tar"))
        columns = {name: [pair[place] for pair in pairs] for name, place in (("key", 0), ("caption", 1), ("sha256", 3))}
        columns["url"] = [f"http://site.test/{pair[0]}.jpg" for pair in pairs]
        table = pa.table({column: pa.array(values, pa.string()) for column, values in columns.items()})
        storage.write_table(made.path(f"{path}.parquet"), table)
        parts += [made.describe(f"{path}.{suffix}", len(pairs)) for suffix in ("tar", "parquet")]
    return made.commit(parts)
