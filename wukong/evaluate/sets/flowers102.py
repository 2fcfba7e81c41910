"""Oxford Flowers-102: numbered images, labels and splits in MATLAB files."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from wukong.errors import DataError
from wukong.evaluate.data_set import Classification, HowToGet
from wukong.evaluate.formats import matlab
from wukong.evaluate.formats.folders import find, require
from wukong.evaluate.published import Labelled

_VARIABLES = {"train": "trnid", "val": "valid", "test": "tstid"}


def _read(folder: Path, split: str, classes: Sequence[str]) -> Labelled:
    lists = find(folder, "setid.mat", "flowers-102/setid.mat")
    numbers = np.atleast_1d(matlab.variable(lists, _VARIABLES[split])).astype(np.int64)
    labels = np.atleast_1d(matlab.variable(lists.parent / "imagelabels.mat", "labels")).astype(np.int64)
    if numbers.min() < 1 or numbers.max() > len(labels) or labels.min() < 1 or labels.max() > len(classes):
        raise DataError(f"{lists} and imagelabels.mat beside it do not belong together: download both again")
    names = [f"jpg/image_{number:05d}.jpg" for number in numbers.tolist()]
    return Labelled(names, labels[numbers - 1] - 1, require(lists.parent, names, lists))


SET = Classification(
    name="flowers102",
    title="Flowers",
    picture_bytes=42_000,
    splits={"train": 1_020, "val": 1_020, "test": 6_149},
    note="The owner's test part, which all others measure too.",
    how_to_get=HowToGet(
        ("102flowers.tgz, imagelabels.mat and setid.mat of https://www.robots.ox.ac.uk/~vgg/data/flowers/102/",),
        "jpg/image_00001.jpg, imagelabels.mat and setid.mat",
        "none stated",
    ),
    read_published=_read,
)
