"""Caltech-256: one numbered folder a class, without a split; 257.clutter is the last class."""

import re
from collections.abc import Sequence
from pathlib import Path

from wukong.evaluate.data_set import Classification, HowToGet
from wukong.evaluate.formats.folders import class_folders, find
from wukong.evaluate.formats.pictures import Files
from wukong.evaluate.published import Labelled

_CLUTTER = "257.clutter"


def _without_number(name: str) -> str:
    return re.sub(r"^[0-9]{3}\.", "", name)


def _read(folder: Path, split: str, classes: Sequence[str]) -> Labelled:
    root = find(folder, "256_ObjectCategories", "caltech256/256_ObjectCategories")
    # Only *.jpg: 056.dog has a folder "greg" and 198.spider a file "RENAME2".
    labelled = class_folders(root, classes, suffixes={".jpg"}, id_of=_without_number)
    if split == "without-clutter":
        kept = [i for i, path in enumerate(labelled.ids) if not path.startswith(f"{_CLUTTER}/")]
        paths = [labelled.ids[i] for i in kept]
        return Labelled(paths, [int(labelled.labels[i]) for i in kept], Files(root, paths))
    return labelled


SET = Classification(
    name="caltech256",
    title="Caltech256",
    picture_bytes=40_000,
    splits={"all": 30_607, "without-clutter": 29_780},
    split="all",
    note=(
        "The owner has no split and the paper names none: all images with 257.clutter as a class, as in torchvision. "
        "The split without-clutter has the images of the 256 objects; the class names stay 257."
    ),
    how_to_get=HowToGet(
        ("256_ObjectCategories.tar of https://data.caltech.edu/records/nyy15-4j048",),
        "256_ObjectCategories/001.ak47/001_0001.jpg",
        "CC BY 4.0",
    ),
    read_published=_read,
    webdataset={"all": 30_607},
    webdataset_folders={"all": "test"},
)
