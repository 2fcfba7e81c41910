"""Pairs in files: shards as the filter stage writes them, and the pairs that a training reads from them."""

import io
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from wukong.config.model import ImageEncoder
from wukong.config.training import Training
from wukong.data.tokenizer import Tokenizer, packaged_vocabulary
from wukong.store import storage
from wukong.train.corpus import Corpus, count_rows
from wukong.train.picture_pairs import PicturePairs

COUNT, SIZE = 7, 24
TOWER = ImageEncoder(image_size=SIZE)
TOKENIZER = Tokenizer(packaged_vocabulary())


def encoded(number: int) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (30, 40, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG")
    return stream.getvalue()


def seven_pairs(folder: Path) -> str:
    """Write two shards of pairs, as the filter stage does; return the URI of the folder."""
    (folder / "train").mkdir()
    for shard, numbers in (("00000", range(4)), ("00001", range(4, COUNT))):
        rows = [
            {"key": f"k{n}", "url": f"http://x/{n % 2}/{n}.jpg", "caption": f"图{n}", "sha256": str(n)} for n in numbers
        ]
        pq.write_table(pa.Table.from_pylist(rows), folder / "train" / f"{shard}.parquet")
        with tarfile.open(folder / "train" / f"{shard}.tar", "w") as tar:
            for number in numbers:
                for suffix, content in (("jpg", encoded(number)), ("txt", f"图{number}".encode())):
                    entry = tarfile.TarInfo(f"k{number}.{suffix}")
                    entry.size = len(content)
                    tar.addfile(entry, io.BytesIO(content))
    return storage.from_path(folder)


def corpus(prefix: str, sources: tuple[str, ...] = ("*",), names: tuple[str, ...] = ("00000", "00001")) -> Corpus:
    rows = count_rows(prefix, "train", names, sources)
    return Corpus(prefix, names, tuple(rows), "digest", sources)


def pictures(prefix: str, tower: ImageEncoder = TOWER, data: Corpus | None = None, **settings: object) -> PicturePairs:
    training = Training.model_validate({"lock": "none", "loader_workers": 0, **settings})
    return PicturePairs(data or corpus(prefix), TOKENIZER, tower, training)


def write(folder: Path, members: dict[str, bytes], keys: Sequence[str]) -> PicturePairs:
    """One shard with a table of some pairs and a tar of some images."""
    (folder / "train").mkdir(exist_ok=True)
    rows = [{"key": key, "url": "http://x/1.jpg", "caption": key, "sha256": "0"} for key in keys]
    pq.write_table(pa.Table.from_pylist(rows), folder / "train" / "00000.parquet")
    with tarfile.open(folder / "train" / "00000.tar", "w") as tar:
        for key, content in members.items():
            entry = tarfile.TarInfo(f"{key}.jpg")
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    prefix = storage.from_path(folder)
    return pictures(prefix, data=corpus(prefix, names=("00000",)))
