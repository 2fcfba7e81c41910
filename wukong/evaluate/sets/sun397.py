"""SUN397: one folder a class, some of them nested; ten official partitions in text files of their own."""

import re
from collections.abc import Sequence
from pathlib import Path

from wukong.evaluate.data_set import Classification, HowToGet
from wukong.evaluate.formats.folders import find, labels_of, listed, names_in, require
from wukong.evaluate.formats.pictures import Files
from wukong.evaluate.published import Labelled

_PARTITIONS = [f"{number:02d}" for number in range(1, 11)]
_FILES = {"train": "Training", "test": "Testing"}


def _without_letter(name: str) -> str:
    """``/a/apartment_building/outdoor``, as the owner has it, as torchvision has it: without the first letter."""
    return re.sub(r"^/?[a-z]/", "", name)


def _read(folder: Path, split: str, classes: Sequence[str]) -> Labelled:
    names = find(folder, "SUN397/ClassName.txt", "ClassName.txt")
    folders = listed(names)
    labels = labels_of(folders, classes, names, _without_letter)
    if split == "all":
        paths = [f"{each[1:]}/{name}" for each in folders for name in names_in(names.parent / each[1:])]
        own_labels = [labels[f"/{path.rpartition('/')[0]}"] for path in paths]
        return Labelled(paths, own_labels, Files(names.parent, paths))
    part, _, number = split.partition("-")
    file = f"{_FILES[part]}_{number or _PARTITIONS[0]}.txt"
    source = find(folder, f"Partitions/{file}", f"SUN397/{file}", file)
    paths = [line.removeprefix("/") for line in listed(source)]
    known = {each: labels[each] for each in folders}
    own = [known.get(f"/{path.rpartition('/')[0]}") for path in paths]
    strange = [f"/{path.rpartition('/')[0]}" for path, label in zip(paths, own, strict=True) if label is None]
    if strange:
        labels_of(strange, classes, source, _without_letter)
    return Labelled(paths, [label for label in own if label is not None], require(names.parent, paths, source))


SET = Classification(
    name="sun397",
    title="SUN397",
    picture_bytes=340_000,
    splits={"test": 19_850, "train": 19_850, "all": 108_754}
    | {f"{part}-{number}": 19_850 for part in ("test", "train") for number in _PARTITIONS},
    note=(
        "The owner publishes ten partitions of 50 training and 50 test images a class. The paper names none: the test "
        "part of the first, as CLIP has it; test-01 to test-10 are all of them. torchvision has no split, so "
        "CLIP_benchmark's test part is the whole set, here all."
    ),
    how_to_get=HowToGet(
        ("SUN397.tar.gz and Partitions.zip of https://vision.princeton.edu/projects/2010/SUN/",),
        "SUN397/ClassName.txt, SUN397/a/abbey/ and Partitions/Testing_01.txt",
        "research only",
    ),
    read_published=_read,
    webdataset={"all": 108_754},
    webdataset_folders={"all": "test"},
)
