"""ImageNet-V2: three new test parts for ImageNet's classes, one folder a class named by its number."""

from collections.abc import Sequence
from pathlib import Path

from wukong.evaluate.data_set import Classification, HowToGet
from wukong.evaluate.formats.folders import class_folders, find
from wukong.evaluate.published import Labelled

_FOLDERS = {
    "matched-frequency": "imagenetv2-matched-frequency-format-val",
    "threshold-0.7": "imagenetv2-threshold0.7-format-val",
    "top-images": "imagenetv2-top-images-format-val",
}


def _read(folder: Path, split: str, classes: Sequence[str]) -> Labelled:
    # Folder 10 is class 10; sorted as text, as torchvision's ImageFolder sorts, it would be class 2.
    return class_folders(find(folder, _FOLDERS[split]), [str(label) for label in range(len(classes))])


SET = Classification(
    name="imagenet-v2",
    title="ImageNet-V2",
    splits=dict.fromkeys(_FOLDERS, 10_000),
    split="matched-frequency",
    note=(
        "Not in the paper. matched-frequency is what others measure, among them FG-CLIP 2 and CLIP_benchmark, which "
        "calls it test. The classes and their Chinese names are ImageNet's."
    ),
    how_to_get=HowToGet(
        ("imagenetv2-matched-frequency.tar.gz of https://huggingface.co/datasets/vaishaal/ImageNetV2",),
        "imagenetv2-matched-frequency-format-val/0/ and 999 folders more",
        "MIT (the code); the images are used as those of ImageNet: research only",
    ),
    read_published=_read,
    webdataset={"matched-frequency": 10_000},
    webdataset_folders={"matched-frequency": "test"},
    named_as="imagenet",
)
