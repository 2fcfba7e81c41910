"""CIFAR-10, in its owner's binary version: rows of a label and 32 x 32 pixels."""

from collections.abc import Sequence
from pathlib import Path

from wukong.evaluate.data_set import Classification, HowToGet
from wukong.evaluate.formats import byte_rows
from wukong.evaluate.formats.folders import find, labels_of, listed
from wukong.evaluate.published import Labelled

_FILES = {"train": [f"data_batch_{number}.bin" for number in range(1, 6)], "test": ["test_batch.bin"]}


def _read(folder: Path, split: str, classes: Sequence[str]) -> Labelled:
    source = find(folder, "cifar-10-batches-bin", "test_batch.bin")
    source = source if source.is_dir() else source.parent
    names = source / "batches.meta.txt"
    order = listed(names)
    byte_rows.require_order(labels_of(order, classes, names), order, names)
    return byte_rows.read(source, _FILES[split], labels=1, label=0, classes=len(classes))


SET = Classification(
    name="cifar10",
    title="CIFAR10",
    picture_bytes=3_000,
    splits={"train": 50_000, "test": 10_000},
    note="The owner's test part, which all others measure too.",
    how_to_get=HowToGet(
        ("cifar-10-binary.tar.gz of https://www.cs.toronto.edu/~kriz/cifar.html (the Python version is pickles)",),
        "cifar-10-batches-bin/test_batch.bin and batches.meta.txt",
        "none stated",
    ),
    read_published=_read,
)
