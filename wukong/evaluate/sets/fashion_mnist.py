"""Fashion-MNIST, as Debian's package dataset-fashion-mnist installs it or as its owner publishes it (IDX files)."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from wukong.errors import DataError
from wukong.evaluate.data_set import Classification, HowToGet
from wukong.evaluate.formats import idx
from wukong.evaluate.formats.folders import find
from wukong.evaluate.formats.pictures import Arrays
from wukong.evaluate.published import Labelled

_PARTS = {"train": "train", "test": "t10k"}


def _read(folder: Path, split: str, classes: Sequence[str]) -> Labelled:
    name = f"{_PARTS[split]}-images-idx3-ubyte"
    places = ("", "data/fashion/", "fashion/", "fashion-mnist/")
    source = find(folder, *(f"{prefix}{name}{suffix}" for prefix in places for suffix in (".gz", "")))
    pixels = idx.read(source, 3)
    labels = idx.read(source.with_name(source.name.replace("images-idx3", "labels-idx1")), 1).astype(np.int64)
    if len(pixels) != len(labels) or (len(labels) and labels.max() >= len(classes)):
        raise DataError(f"{source} and the labels beside it do not belong together: download both again")
    return Labelled([f"{split}#{number}" for number in range(len(labels))], labels, Arrays([pixels]))


SET = Classification(
    name="fashion-mnist",
    title="Fashion-MNIST",
    picture_bytes=800,
    splits={"train": 60_000, "test": 10_000},
    note="Not in the paper. The owner's test part; the images are gray, 28 x 28, white on black.",
    how_to_get=HowToGet(
        (
            "Debian's package dataset-fashion-mnist, which installs to /usr/share/datasets/fashion-mnist, or the "
            "four files in data/fashion of https://github.com/zalandoresearch/fashion-mnist",
        ),
        "t10k-images-idx3-ubyte.gz and t10k-labels-idx1-ubyte.gz",
        "MIT",
    ),
    read_published=_read,
    names=(
        ("T-shirt/top", "T-shirt", "T恤"),
        ("Trouser", "trousers", "裤子"),
        ("Pullover", "pullover", "套头衫"),
        ("Dress", "dress", "连衣裙"),
        ("Coat", "coat", "外套"),
        ("Sandal", "sandal", "凉鞋"),
        ("Shirt", "shirt", "衬衫"),
        ("Sneaker", "sneaker", "运动鞋"),
        ("Bag", "bag", "包"),
        ("Ankle boot", "ankle boot", "短靴"),
    ),
)
