"""Rows of bytes, each a label or two and the pixels of a picture: CIFAR's binary version."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from wukong.errors import DataError
from wukong.evaluate.formats.pictures import Arrays
from wukong.evaluate.published import Labelled, NotThereError

_SIDE = 32


def read(folder: Path, names: Sequence[str], *, labels: int, label: int, classes: int) -> Labelled:
    """Map files of rows into memory; their pixels are read when an image is asked for.

    Args:
        folder: the folder with the files.
        names: the files' names.
        labels: number of labels, one byte each, before the pixels of a row, which are 3 x 32 x 32.
        label: place of the label that is wanted.
        classes: number of classes.

    Returns:
        The id of an image is its file and the number of its row.

    Raises:
        NotThereError: a file is not there.
        DataError: a file has no whole number of rows, or a label that is no class.
    """
    length = labels + 3 * _SIDE**2
    ids: list[str] = []
    blocks = []
    pixels = []
    for name in names:
        path = folder / name
        if not path.exists():
            raise NotThereError(f"{path} is not there")
        if not (size := path.stat().st_size) or size % length:
            raise DataError(f"{path} has {size} bytes, which are no whole number of images: download it again")
        rows = np.memmap(path, np.uint8, "r").reshape(-1, length)
        ids += [f"{name}#{number}" for number in range(len(rows))]
        blocks.append(np.array(rows[:, label], np.int64))
        pixels.append(rows[:, labels:].reshape(-1, 3, _SIDE, _SIDE))
        if blocks[-1].max() >= classes:
            raise DataError(f"{path} has the label {blocks[-1].max()} where there are {classes} classes: it is damaged")
    return Labelled(ids, np.concatenate(blocks), Arrays(pixels))


def require_order(labels: Mapping[str, int], order: Sequence[str], source: Path) -> None:
    """Check that the owner's list has the classes in the order of the labels.

    Args:
        labels: the label of each class name, from ``folders.labels_of``.
        order: the class names as the owner lists them.
        source: the list, for the message.

    Raises:
        DataError: the order is another.
    """
    for index, name in enumerate(order):
        if labels[name] != index:
            raise DataError(f"{source} has {name!r} in place {index}, the class names in place {labels[name]}")
