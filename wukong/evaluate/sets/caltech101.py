"""Caltech-101: one folder a class, without a split. Faces and Faces_easy are two classes."""

from collections.abc import Sequence
from pathlib import Path

from wukong.evaluate.data_set import Classification, HowToGet
from wukong.evaluate.formats.folders import class_folders, find
from wukong.evaluate.published import Labelled

_BACKGROUND = "BACKGROUND_Google"


def _read(folder: Path, _split: str, classes: Sequence[str]) -> Labelled:
    root = find(folder, "101_ObjectCategories", "caltech-101/101_ObjectCategories", "caltech101/101_ObjectCategories")
    return class_folders(root, classes, but=(_BACKGROUND,), suffixes={".jpg"})


def _order_of_tensorflow_datasets(classes: Sequence[str]) -> Sequence[str]:
    return sorted({*classes, _BACKGROUND}, key=str.lower)


SET = Classification(
    name="caltech101",
    title="Caltech101",
    picture_bytes=15_000,
    splits={"all": 8_677},
    split="all",
    note=(
        "The owner has no split and the paper names none: all images of the 101 classes, as in torchvision, without "
        "BACKGROUND_Google. CLIP and ELEVATER draw 30 images a class at random for training and measure the other "
        "6,085, with BACKGROUND_Google as class 102; that drawing is in CLIP_benchmark's WebDataset form (from "
        "TensorFlow Datasets), of which the images of BACKGROUND_Google are left out here."
    ),
    how_to_get=HowToGet(
        ("caltech-101.zip of https://data.caltech.edu/records/mzrjq-6wc02, in it 101_ObjectCategories.tar.gz",),
        "101_ObjectCategories/accordion/image_0001.jpg",
        "CC BY 4.0",
    ),
    read_published=_read,
    webdataset={"train": 3_059, "test": 6_085},
    webdataset_order=_order_of_tensorflow_datasets,
)
