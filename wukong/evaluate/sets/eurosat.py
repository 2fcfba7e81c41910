"""EuroSAT (RGB): one folder a class, without a split."""

from collections.abc import Sequence
from pathlib import Path

from wukong.evaluate.data_set import Classification, HowToGet
from wukong.evaluate.formats.folders import class_folders, find
from wukong.evaluate.published import Labelled


def _read(folder: Path, _split: str, classes: Sequence[str]) -> Labelled:
    return class_folders(find(folder, "2750", "EuroSAT_RGB", "eurosat/2750"), classes)


SET = Classification(
    name="eurosat",
    title="EuroSAT",
    picture_bytes=3_300,
    splits={"all": 27_000},
    split="all",
    note=(
        "The owner has no split and the paper names none: all images, as in torchvision. CLIP and ELEVATER measure "
        "5,000 images drawn at random, CLIP_benchmark's WebDataset form has the last fifth of TensorFlow Datasets."
    ),
    how_to_get=HowToGet(
        (
            "EuroSAT.zip of https://github.com/phelber/EuroSAT, or EuroSAT_RGB.zip of https://zenodo.org/records/7711810",
        ),
        "2750/AnnualCrop/AnnualCrop_1.jpg or EuroSAT_RGB/AnnualCrop/AnnualCrop_1.jpg",
        "MIT",
    ),
    read_published=_read,
    webdataset={"train": 16_200, "val": 5_400, "test": 5_400},
)
