"""ImageNet-A: photographs of 200 classes that a ResNet-50 gets wrong, one folder a class named by its WordNet id."""

from collections.abc import Sequence
from pathlib import Path

from wukong.evaluate.data_set import Classification, HowToGet
from wukong.evaluate.formats.folders import class_folders, find
from wukong.evaluate.published import Labelled


def _read(folder: Path, _split: str, classes: Sequence[str]) -> Labelled:
    return class_folders(find(folder, "imagenet-a"), classes)


SET = Classification(
    name="imagenet-a",
    title="ImageNet-a",
    splits={"test": 7_500},
    note="All images, 200 classes. The scores are over these 200 classes, not over 1,000.",
    how_to_get=HowToGet(
        ("imagenet-a.tar of https://github.com/hendrycks/natural-adv-examples",),
        "imagenet-a/n01498041/",
        "MIT (the list); the images are of their authors",
    ),
    read_published=_read,
)
