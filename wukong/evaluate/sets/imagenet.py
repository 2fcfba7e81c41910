"""ImageNet-1k (ILSVRC 2012), validation: in one folder a class, or flat with the labels in a file."""

from collections.abc import Sequence
from pathlib import Path

from wukong.errors import DataError
from wukong.evaluate.data_set import Classification, HowToGet
from wukong.evaluate.formats import matlab
from wukong.evaluate.formats.folders import class_folders, find, labels_of, lines, listed, names_in
from wukong.evaluate.formats.pictures import Files
from wukong.evaluate.published import Labelled

_TRUTH = "ILSVRC2012_validation_ground_truth.txt"
_KAGGLE = "LOC_val_solution.csv"


def _read(folder: Path, split: str, classes: Sequence[str]) -> Labelled:
    root = find(folder, split, f"ILSVRC/Data/CLS-LOC/{split}", f"ILSVRC2012_img_{split}")
    names = names_in(root)
    if not names:
        return class_folders(root, classes)
    wnids = _kaggle(folder / _KAGGLE) if (folder / _KAGGLE).exists() else _devkit(folder, names)
    source = folder / _KAGGLE if (folder / _KAGGLE).exists() else folder
    without = [name for name in names if Path(name).stem not in wnids]
    if without:
        raise DataError(f"{len(without)} images of {root} have no label, the first is {without[0]}")
    labels = labels_of(wnids.values(), classes, source)
    return Labelled(names, [labels[wnids[Path(name).stem]] for name in names], Files(root, names))


def _devkit(folder: Path, names: Sequence[str]) -> dict[str, str]:
    """The WordNet id of each image, from the development kit: line n of its list is the class of image n by name."""
    data = find(folder, "ILSVRC2012_devkit_t12/data", "data")
    synsets = matlab.variable(data / "meta.mat", "synsets")
    wnid_of = dict(zip(synsets["ILSVRC2012_ID"], synsets["WNID"], strict=True))
    truth = listed(data / _TRUTH)
    if len(truth) != len(names) or not all(line.isdecimal() and int(line) in wnid_of for line in truth):
        raise DataError(f"{data / _TRUTH} has {len(truth)} labels for {len(names)} images, or others than meta.mat has")
    return {Path(name).stem: wnid_of[int(line)] for name, line in zip(names, truth, strict=True)}


def _kaggle(path: Path) -> dict[str, str]:
    """The WordNet id of each image, from Kaggle's table: ``ImageId,PredictionString``, the id being its first word."""
    rows = [line.partition(",") for line in lines(path)[1:] if line.strip()]
    return {image: boxes.split(" ", 1)[0] for image, _, boxes in rows}


SET = Classification(
    name="imagenet",
    title="ImageNet",
    splits={"val": 50_000},
    split="val",
    note="The validation part, as everywhere; the labels of the test part are secret. CLIP_benchmark calls it test.",
    how_to_get=HowToGet(
        (
            "ILSVRC2012_img_val.tar and ILSVRC2012_devkit_t12.tar.gz of https://image-net.org (with an account), or "
            "Kaggle's imagenet-object-localization-challenge",
        ),
        "val/n01440764/ and 999 folders more, or val/ILSVRC2012_val_00000001.JPEG with ILSVRC2012_devkit_t12/data/ or "
        "LOC_val_solution.csv",
        "research only, see https://image-net.org/download",
    ),
    read_published=_read,
    webdataset={"val": 50_000},
    webdataset_folders={"val": "test"},
)
