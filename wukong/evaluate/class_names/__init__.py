"""The class names of the 17 classification sets of Table 5, in Chinese and English (section 5.2).

One file ``SET.tsv`` a set, in the order of the set's labels. docs/class-names.md says where each list comes from, and
where and why names differ from the authors' own.
"""

import functools
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, cast, get_args

from wukong.errors import DataError

Mark = Literal["official", "derived", "ours"]
"""Where a Chinese name comes from: ``official``, the list that the paper's authors published; ``derived``, an official
or another published Chinese list, the note says how; ``ours``, translated by this project."""

SETS = (
    "cifar10",
    "cifar100",
    "caltech101",
    "caltech256",
    "sports",
    "flowers102",
    "food101",
    "pets",
    "sun397",
    "imagenet",
    "imagenet-r",
    "imagenet-a",
    "imagenet-sketch",
    "dtd",
    "dogs",
    "eurosat",
    "aircraft",
)
"""The sets, in the order of Table 5."""

_FOLDER = Path(__file__).parent
_COLUMNS = ("label", "id", "english", "chinese", "mark", "note")
_CORRECTED = "corrected"  # the column after the others, where a set has it; empty where the name needs no correction


@dataclass(frozen=True)
class ClassName:
    """A class of a set.

    Attributes:
        label: the class's number in the set, from 0.
        id: the name that the owner of the set gives the class: its folder, its WordNet id, or its line in the owner's
            list.
        english: the English name.
        chinese: the Chinese name, which takes the place of ``{}`` in a prompt.
        mark: where the Chinese name comes from, see ``Mark``.
        note: how the name was derived, or what is unusual about it; may be empty.
    """

    label: int
    id: str
    english: str
    chinese: str
    mark: Mark
    note: str = ""


def of(set_name: str, names: str = "authors") -> list[ClassName]:
    """Return the classes of a set, in the order of its labels.

    Args:
        set_name: one of ``SETS``.
        names: one of ``lists(set_name)``. ``authors``: the authors' names where they are public, this project's where
            not. ``corrected``, for ImageNet and the sets made from it: the authors' names, those replaced that are
            wrong, ambiguous, or the same as another's for a model.

    Raises:
        DataError: there is no such set or list, or the packaged file is damaged.
    """
    rows = _rows(set_name)
    if names not in (known := lists(set_name)):
        raise DataError(f"{set_name} has no class names {names!r}; there are: {', '.join(known)}")
    if names == "authors":
        return [name for name, _ in rows]
    return [replace(name, chinese=better, mark="ours") if better else name for name, better in rows]


def lists(set_name: str) -> tuple[str, ...]:
    """Return the lists of Chinese names that a set has, see ``of``.

    Raises:
        DataError: there is no such set, or the packaged file is damaged.
    """
    return ("authors", _CORRECTED) if any(better for _, better in _rows(set_name)) else ("authors",)


@functools.cache
def _rows(set_name: str) -> tuple[tuple[ClassName, str], ...]:
    """Read a set's file: each class, and its corrected name, empty if there is none."""
    if set_name not in SETS:
        raise DataError(f"there are no class names of {set_name!r}; the sets are: {', '.join(SETS)}")
    return _parse(_FOLDER / f"{set_name}.tsv")


def _parse(path: Path) -> tuple[tuple[ClassName, str], ...]:
    header, *lines = path.read_text(encoding="utf-8").splitlines()
    columns = tuple(header.split("\t"))
    if columns not in (_COLUMNS, (*_COLUMNS, _CORRECTED)):
        raise DataError(f"{path}, line 1: the columns are {columns}, not {_COLUMNS}; install the package again")
    rows = []
    for label, line in enumerate(lines):
        fields = line.split("\t")
        if len(fields) != len(columns) or fields[0] != str(label) or fields[4] not in get_args(Mark):
            raise DataError(f"{path}, line {label + 2}: this is not class {label}: {line!r}; install the package again")
        _, identifier, english, chinese, mark, note, *corrected = fields
        rows.append((ClassName(label, identifier, english, chinese, cast("Mark", mark), note), "".join(corrected)))
    return tuple(rows)
