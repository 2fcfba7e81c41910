"""Describable Textures (DTD): one folder a class, ten official partitions in text files."""

from collections.abc import Sequence
from pathlib import Path

from wukong.evaluate.data_set import Classification, HowToGet
from wukong.evaluate.formats.folders import find, labels_of, listed, require
from wukong.evaluate.published import Labelled


def _read(folder: Path, split: str, classes: Sequence[str]) -> Labelled:
    part, _, number = split.partition("-")
    source = find(folder, *(f"{prefix}labels/{part}{int(number or 1)}.txt" for prefix in ("dtd/", "", "dtd/dtd/")))
    paths = listed(source)
    labels = labels_of((path.split("/")[0] for path in paths), classes, source)
    root = source.parent.parent / "images"
    return Labelled(paths, [labels[path.split("/")[0]] for path in paths], require(root, paths, source))


SET = Classification(
    name="dtd",
    title="DTD",
    splits=dict.fromkeys(("test", "train", "val"), 1880)
    | {f"{part}-{number:02d}": 1_880 for part in ("test", "train", "val") for number in range(1, 11)},
    note=(
        "The owner publishes ten partitions. The paper names none: the test part of the first, as torchvision, "
        "CLIP_benchmark and ELEVATER have it; test-01 to test-10 are all of them."
    ),
    how_to_get=HowToGet(
        ("dtd-r1.0.1.tar.gz of https://www.robots.ox.ac.uk/~vgg/data/dtd/",),
        "dtd/images/banded/ and dtd/labels/test1.txt",
        "research only",
    ),
    read_published=_read,
)
