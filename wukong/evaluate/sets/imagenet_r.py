"""ImageNet-R: renditions of 200 classes, one folder a class named by its WordNet id."""

from collections.abc import Sequence
from pathlib import Path

from wukong.evaluate.data_set import Classification, HowToGet
from wukong.evaluate.formats.folders import class_folders, find
from wukong.evaluate.published import Labelled


def _read(folder: Path, _split: str, classes: Sequence[str]) -> Labelled:
    return class_folders(find(folder, "imagenet-r"), classes)


SET = Classification(
    name="imagenet-r",
    title="ImageNet-r",
    splits={"test": 30_000},
    note="All images, 200 classes. The scores are over these 200 classes, not over 1,000.",
    how_to_get=HowToGet(
        ("imagenet-r.tar of https://github.com/hendrycks/imagenet-r",),
        "imagenet-r/n01443537/",
        "MIT (the list); the images are of their authors",
    ),
    read_published=_read,
)
