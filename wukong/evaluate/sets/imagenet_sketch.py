"""ImageNet-Sketch: sketches of the 1,000 classes, one folder a class named by its WordNet id."""

from collections.abc import Sequence
from pathlib import Path

from wukong.evaluate.data_set import Classification, HowToGet
from wukong.evaluate.formats.folders import class_folders, find
from wukong.evaluate.published import Labelled


def _read(folder: Path, _split: str, classes: Sequence[str]) -> Labelled:
    return class_folders(find(folder, "sketch", "ImageNet-Sketch/sketch", "ImageNet-Sketch"), classes)


SET = Classification(
    name="imagenet-sketch",
    title="ImageNet-s",
    splits={"test": 50_889},
    note="All images, 1,000 classes; most have 51, some fewer.",
    how_to_get=HowToGet(
        ("ImageNet-Sketch.zip of https://github.com/HaohanWang/ImageNet-Sketch",),
        "sketch/n01440764/",
        "MIT (the list); the images are of their authors",
    ),
    read_published=_read,
)
