"""CIFAR-100, in its owner's binary version: rows of a coarse and a fine label and 32 x 32 pixels."""

from collections.abc import Sequence
from pathlib import Path

from wukong.evaluate.data_set import Classification, HowToGet
from wukong.evaluate.formats import byte_rows
from wukong.evaluate.formats.folders import find, labels_of, listed
from wukong.evaluate.published import Labelled


def _read(folder: Path, split: str, classes: Sequence[str]) -> Labelled:
    source = find(folder, "cifar-100-binary", "test.bin")
    source = source if source.is_dir() else source.parent
    names = source / "fine_label_names.txt"
    order = listed(names)
    byte_rows.require_order(labels_of(order, classes, names), order, names)
    return byte_rows.read(source, [f"{split}.bin"], labels=2, label=1, classes=len(classes))


SET = Classification(
    name="cifar100",
    title="CIFAR100",
    picture_bytes=3_000,
    splits={"train": 50_000, "test": 10_000},
    note="The owner's test part and the 100 fine labels, which all others measure too.",
    how_to_get=HowToGet(
        ("cifar-100-binary.tar.gz of https://www.cs.toronto.edu/~kriz/cifar.html (the Python version is pickles)",),
        "cifar-100-binary/test.bin and fine_label_names.txt",
        "none stated",
    ),
    read_published=_read,
)
