"""Stanford Dogs: one folder a breed, splits in MATLAB files."""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from wukong.errors import DataError
from wukong.evaluate.data_set import Classification, HowToGet
from wukong.evaluate.formats import matlab
from wukong.evaluate.formats.folders import find, labels_of, require
from wukong.evaluate.published import Labelled


def _wnid(name: str) -> str:
    """``n02085620-Chihuahua`` without the breed, so that only the WordNet id is compared."""
    match = re.match(r"n[0-9]{8}", name)
    return match.group() if match else name


def _read(folder: Path, split: str, classes: Sequence[str]) -> Labelled:
    source = find(folder, f"{split}_list.mat", f"lists/{split}_list.mat")
    paths = [str(path) for path in np.atleast_1d(matlab.variable(source, "file_list"))]
    numbers = np.atleast_1d(matlab.variable(source, "labels")).astype(np.int64)
    labels = labels_of((path.split("/")[0] for path in paths), classes, source, _wnid)
    labels_of_paths = np.array([labels[path.split("/")[0]] for path in paths], np.int64)
    if len(labels_of_paths) != len(numbers) or (labels_of_paths != numbers - 1).any():
        raise DataError(f"the labels in {source} are not those of the folders' names: download the lists again")
    return Labelled(paths, labels_of_paths, require(find(folder, "Images"), paths, source))


SET = Classification(
    name="dogs",
    title="Dogs",
    picture_bytes=37_000,
    splits={"train": 12_000, "test": 8_580},
    note="The owner's test part.",
    how_to_get=HowToGet(
        ("images.tar and lists.tar of http://vision.stanford.edu/aditya86/ImageNetDogs/",),
        "Images/n02085620-Chihuahua/ and test_list.mat",
        "that of ImageNet: research only",
    ),
    read_published=_read,
)
