"""Sports, of Kaggle: one folder a class below each of train, valid and test."""

from collections.abc import Sequence
from pathlib import Path

from wukong.evaluate.data_set import Classification, HowToGet
from wukong.evaluate.formats.folders import class_folders, find
from wukong.evaluate.published import Labelled


def _read(folder: Path, split: str, classes: Sequence[str]) -> Labelled:
    return class_folders(find(folder, split, f"archive/{split}"), classes)


SET = Classification(
    name="sports",
    title="Sports",
    splits={"train": 13_493, "valid": 500, "test": 500},
    note=(
        "The owner's test part, five images a class. The paper names neither source nor number of classes; the owner "
        "has enlarged the set from version to version (73 classes at first, 100 later), and it is in no other "
        "evaluation. These are the numbers of the 100 classes."
    ),
    how_to_get=HowToGet(
        ("https://www.kaggle.com/datasets/gpiosenka/sports-classification",),
        "test/air hockey/1.jpg, train/ and valid/",
        "CC0",
    ),
    read_published=_read,
)
