"""Oxford-IIIT Pets: images named by their class, splits in text files."""

from collections.abc import Sequence
from pathlib import Path

from wukong.errors import DataError
from wukong.evaluate.data_set import Classification, HowToGet
from wukong.evaluate.formats.folders import find, listed, plain, require
from wukong.evaluate.published import Labelled


def _read(folder: Path, split: str, classes: Sequence[str]) -> Labelled:
    source = find(folder, f"annotations/{split}.txt", f"oxford-iiit-pet/annotations/{split}.txt")
    names: list[str] = []
    labels: list[int] = []
    for line in listed(source):
        # image, class from 1, cat or dog, breed among these
        fields = line.split()
        label = int(fields[1]) - 1 if len(fields) == 4 and fields[1].isdecimal() else -1
        if not 0 <= label < len(classes) or plain(fields[0].rpartition("_")[0]) != plain(classes[label]):
            raise DataError(f"{source} has the line {line!r}, which is no image of one of the {len(classes)} classes")
        names.append(f"{fields[0]}.jpg")
        labels.append(label)
    return Labelled(names, labels, require(source.parent.parent / "images", names, source))


SET = Classification(
    name="pets",
    title="Pets",
    splits={"trainval": 3_680, "test": 3_669},
    note="The owner's test part, which all others measure too.",
    how_to_get=HowToGet(
        ("images.tar.gz and annotations.tar.gz of https://www.robots.ox.ac.uk/~vgg/data/pets/",),
        "images/Abyssinian_1.jpg and annotations/test.txt",
        "CC BY-SA 4.0",
    ),
    read_published=_read,
    webdataset={"train": 3_680, "test": 3_669},
)
