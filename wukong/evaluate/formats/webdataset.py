"""CLIP_benchmark's WebDataset form: ``SPLIT/N.tar`` with an image and a label (``.cls``) for each key.

Beside them are ``SPLIT/nshards.txt``, the number of tars, and ``classnames.txt``, one English name a line in the order
of the labels.
"""

import os
import re
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import IO

import numpy as np

from wukong.errors import DataError
from wukong.evaluate.formats import archives
from wukong.evaluate.formats.folders import find, listed, plain
from wukong.evaluate.formats.pictures import Parts
from wukong.evaluate.published import Labelled, NotThereError, reading_file

_MOST_DIGITS = 18
_IMAGES = frozenset({"jpg", "jpeg", "png", "webp"})


def is_here(folder: Path) -> bool:
    """Whether a folder has this form."""
    return any(folder.glob("*/nshards.txt")) or any(folder.glob("*/0.tar"))


def read(folder: Path, split: str, classes: int) -> Labelled:
    """Read a split; the tars' headers are read, and the labels, but no image of a tar on this machine.

    Args:
        folder: the set's folder.
        split: name of the split.
        classes: number of classes.

    Returns:
        Ids are the keys; labels are as in the files.

    Raises:
        NotThereError: a tar is missing.
        DataError: a tar is truncated, a key has no label or no image, or the number of classes is another.
    """
    names = folder / "classnames.txt"
    if names.exists() and (named := len(listed(names))) != classes:
        raise DataError(f"{names} has {named} class names where this set has {classes}: it is another set or version")
    part = find(folder, split)
    tars = _tars(part)
    ids: list[str] = []
    labels: list[int] = []
    parts: list[tuple[int, int, int]] = []
    for number, tar in enumerate(tars):
        images: dict[str, tuple[int, int, int]] = {}
        classed: dict[str, int] = {}
        with archives.opened(tar) as (file, take):
            for name, offset, size in _members(tar, file):
                base = PurePosixPath(name).name
                if base.startswith("."):
                    continue
                key, _, suffix = base.partition(".")
                if suffix.lower() in _IMAGES:
                    images[key] = (number, offset, size)
                    if take is not None:
                        file.seek(offset)
                        take(offset, file.read(size))
                elif suffix == "cls":
                    file.seek(offset)
                    classed[key] = _label(file.read(min(size, _MOST_DIGITS + 2)), f"{tar}: {name}", classes)
        if images.keys() != classed.keys():
            key = min(images.keys() ^ classed.keys())
            raise DataError(f"{key} in {tar} has an image or a label, but not both: download the file again")
        ids += images
        labels += [classed[key] for key in images]
        parts += images.values()
    return Labelled(ids, labels, Parts(tars, np.array(parts, np.int64).reshape(-1, 3)))


def relabelled(found: Labelled, order: Sequence[str], classes: Sequence[str]) -> Labelled:
    """Change labels to another order of the classes; images whose class is not among them are left out.

    Args:
        found: images, which are ``Parts``, with labels that are places in ``order``.
        order: class ids in the order of the labels that are there.
        classes: class ids in the order of the labels that are wanted.
    """
    places = {plain(each): label for label, each in enumerate(classes)}
    new = np.array([places.get(plain(each), -1) for each in order])[np.asarray(found.labels, np.int64)]
    kept = np.flatnonzero(new >= 0)
    images = found.images
    if not isinstance(images, Parts):
        raise TypeError("only labels of this form can have another order")
    return Labelled([found.ids[i] for i in kept.tolist()], new[kept], Parts(images.files, images.of[kept]))


def _tars(place: Path) -> list[Path]:
    """The tars of a split: 0.tar, 1.tar and so on, as many as nshards.txt says."""
    stated = place / "nshards.txt"
    there = {name for each in place.glob("*.tar") if re.fullmatch(r"0|[1-9]\d{,17}", name := each.stem, re.ASCII)}
    if stated.exists():
        text = " ".join(listed(stated))
        if len(text) > _MOST_DIGITS or not text.isdecimal():
            raise DataError(f"{stated} has no number of tars but {text[:40]!r}: download it again")
        count = int(text)
    else:
        count = len(there)
    if missing := count - len([name for name in there if int(name) < count]):
        first = next(number for number in range(count) if str(number) not in there)
        raise NotThereError(f"{missing} of {count} tars are not in {place}, the first is {first}.tar")
    return [place / f"{number}.tar" for number in range(count)]


def _members(tar: Path, file: IO[bytes]) -> Iterator[tuple[str, int, int]]:
    """Name, offset and size in bytes of each file in an open tar, which may be read elsewhere meanwhile.

    Raises:
        DataError: it is truncated or no tar.
    """
    length = file.seek(0, os.SEEK_END)
    file.seek(0)
    with reading_file(tar, f"{tar} is not a complete tar"), tarfile.open(fileobj=file, mode="r:") as opened:
        for entry in opened:
            if entry.offset_data + entry.size > length:
                raise tarfile.ReadError("its end is missing")
            if entry.isfile():
                yield entry.name, entry.offset_data, entry.size


def _label(data: bytes, name: str, classes: int) -> int:
    text = data.decode("ascii", "replace").strip()
    if len(text) > _MOST_DIGITS or not text.isdecimal() or int(text) >= classes:
        raise DataError(f"{name} is no label below {classes} but {text[:40]!r}: it is another set or version")
    return int(text)
