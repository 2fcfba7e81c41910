"""Images that are files in folders: found, listed by a file, or sorted into one folder a class."""

import os
import re
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path, PurePosixPath

from wukong.errors import DataError
from wukong.evaluate.formats.pictures import Files
from wukong.evaluate.published import Labelled, NotThereError

_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"})


def find(folder: Path, *places: str) -> Path:
    """The first of these places below a folder that is there.

    Args:
        folder: the set's folder.
        places: paths relative to it, in the order in which they are tried.

    Raises:
        NotThereError: none is there.
    """
    for path in places:
        if (folder / path).exists():
            return folder / path
    raise NotThereError(
        f"{places[0]} is not in {folder}" if len(places) == 1 else f"none of {', '.join(places)} is in {folder}"
    )


def lines(path: Path) -> list[str]:
    r"""The lines of a text file in UTF-8 without their ends; lines end with ``\n`` or ``\r\n``, and with nothing else.

    Raises:
        NotThereError: there is no such file.
        DataError: it is not UTF-8.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError as error:
        raise NotThereError(f"{path} is not there") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 at byte {error.start}: download it again") from error
    return [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")] if text else []


def listed(path: Path) -> list[str]:
    """The lines of a list without white space at their ends, and without empty lines.

    Raises:
        NotThereError: there is no such file.
        DataError: it is not UTF-8.
    """
    return [line.strip() for line in lines(path) if line.strip()]


def names_in(folder: Path) -> list[str]:
    """Names of the image files in a folder, sorted; files of macOS (``._x.jpg``) and folders are left out.

    Raises:
        NotThereError: there is no such folder.
    """
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries if not entry.name.startswith(".") and not entry.is_dir()]
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NotThereError(f"the folder {folder} is not there") from error
    return sorted(name for name in names if os.path.splitext(name)[1].lower() in _SUFFIXES)  # noqa: PTH122


def require(root: Path, paths: Sequence[str], source: Path) -> Files:
    """Check that all images of a list are there, each folder being read once.

    Args:
        root: the folder that the paths are relative to.
        paths: the images' paths.
        source: the list, for the message.

    Raises:
        NotThereError: an image is not there.
    """
    there: dict[str, set[str]] = {}
    missing: list[str] = []
    for path in paths:
        folder, _, name = path.rpartition("/")
        if folder not in there:
            place = root / folder
            there[folder] = {each.name for each in os.scandir(place)} if place.is_dir() else set()
        if name not in there[folder]:
            missing.append(path)
    if missing:
        raise NotThereError(
            f"{len(missing)} of the {len(paths)} images that {source} names are not in {root}, the first is "
            f"{missing[0]}"
        )
    return Files(root, paths)


def plain(class_id: str) -> str:
    """A class id without what spellings differ in: case, and which characters stand between words."""
    return re.sub(r"[\W_]+", " ", class_id.casefold()).strip()


def labels_of(
    found: Iterable[str], classes: Sequence[str], source: Path, id_of: Callable[[str], str] = str
) -> dict[str, int]:
    """The label of each class name that the files have.

    Args:
        found: class names as the files have them.
        classes: ids of the classes, in the order of the labels.
        source: where the names are from, for the message.
        id_of: takes from a name or an id what does not count when they are compared, for instance a number before it.

    Raises:
        DataError: a name is no class, or a class is not among the names.
    """
    places = {plain(id_of(each)): label for label, each in enumerate(classes)}
    names = list(dict.fromkeys(found))
    labels = {name: places[key] for name in names if (key := plain(id_of(name))) in places}
    strange = sorted(name for name in names if name not in labels)
    absent = sorted(classes[label] for label in places.values() if label not in set(labels.values()))
    if strange or absent:
        wrong = [f"{len(absent)} missing ({_shown(absent)})"] if absent else []
        wrong += [f"{len(strange)} unknown ({_shown(strange)})"] if strange else []
        raise DataError(f"the classes in {source} are not the {len(classes)} of this set: {'; '.join(wrong)}")
    return labels


def class_folders(
    root: Path,
    classes: Sequence[str],
    *,
    but: Collection[str] = (),
    suffixes: Collection[str] | None = None,
    id_of: Callable[[str], str] = str,
) -> Labelled:
    """Read images that are sorted into one folder a class: classes in label order, files by name.

    Args:
        root: the folder that has the class folders.
        classes: ids of the classes.
        but: folders that are no class.
        suffixes: suffixes of images, lower case; None for all known ones.
        id_of: see ``labels_of``.

    Raises:
        NotThereError: there is no such folder.
        DataError: the folders are not the classes.
    """
    if not root.is_dir():
        raise NotThereError(f"the folder {root} is not there")
    folders = [each.name for each in os.scandir(root) if each.is_dir() and each.name not in but]
    folders = [name for name in folders if not name.startswith(".")]
    labels = labels_of(folders, classes, root, id_of)
    paths: list[str] = []
    found: list[int] = []
    for folder, label in sorted(labels.items(), key=lambda item: item[1]):
        names = names_in(root / folder)
        if suffixes is not None:
            names = [name for name in names if PurePosixPath(name).suffix.lower() in suffixes]
        paths += [f"{folder}/{name}" for name in names]
        found += [label] * len(names)
    return Labelled(paths, found, Files(root, paths))


def _shown(names: Sequence[str]) -> str:
    return ", ".join([*names[:5], *(["…"] if names[5:] else [])])
