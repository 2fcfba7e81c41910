"""The folders that hold published evaluation sets: ``ROOT/NAME`` for each, on a disk or in an object store.

Nothing here imports a set, which needs Pillow, so that the checks before a run and the key of the evaluate stage can
ask for it in any installation.
"""

import hashlib
import json
import pkgutil
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from urllib.parse import unquote, urlsplit

from wukong.errors import DataError
from wukong.evaluate.formats import archives
from wukong.store import contents, storage
from wukong.store.local_paths import local_path

NAMES = tuple(module.name.replace("_", "-") for module in pkgutil.iter_modules([str(Path(__file__).with_name("sets"))]))
"""The names of all evaluation sets, those of ``wukong.evaluate.sets.REGISTRY``."""

_PICTURES = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"}
_ARCHIVES = {".tar", ".tsv"}
_MOST_BYTES = 64 * 2**20
_LARGEST_LIST = 256 * 2**20
REQUESTS = 32
"""Files of a set that a process asks an object store for at a time."""


def digest_of(root: str, name: str) -> str:
    """Compute what identifies the files of a set: SHA-256 over their names and sizes, and over lists and captions.

    Pictures, and files of more than 64 MiB, go in by name and size alone; of all others the content goes in, because
    labels and captions can be mended without changing a size.

    Args:
        root: URI of the folder that holds the sets.
        name: the set's name.

    Raises:
        DataError: there is no file.
        StorageError: the store cannot be read.
    """
    folder = storage.join(root, name)

    def entry(file: tuple[str, int]) -> list[str | int | None]:
        uri, size = file
        read = PurePosixPath(uri).suffix.lower() not in _PICTURES and size <= _MOST_BYTES
        return [uri[len(folder) :].lstrip("/"), size, contents.sha256(uri) if read else None]

    with ThreadPoolExecutor(REQUESTS) as requests:
        entries = list(requests.map(entry, sorted(_files(folder).items())))
    if not entries:
        raise DataError(
            f"evaluate.tasks: the set {name} is not at {folder}; docs/evaluation-sets.md says what to download, and "
            "evaluate.sets names the folder that holds a folder for each set"
        )
    return hashlib.sha256(json.dumps(entries, ensure_ascii=False).encode()).hexdigest()


def bytes_of(root: str, names: Iterable[str]) -> dict[str, int]:
    """Return the bytes of the files of each set that has any.

    Raises:
        StorageError: the store cannot be read.
    """
    sizes = {name: sum(_files(storage.join(root, name)).values()) for name in names}
    return {name: size for name, size in sizes.items() if size}


@contextmanager
def local(root: str, name: str, take: archives.Take | None = None) -> Iterator[Path]:
    """Give the folder of a set as a path. Of a set in an object store it is a copy of its lists, deleted afterwards.

    The copy has an empty file for each picture and each archive, so that the set's reader finds it. The reader reads
    archives in the store.

    Args:
        root: URI of the folder that holds the sets.
        name: the set's name.
        take: takes the images in archives of an object store.

    Raises:
        StorageError: the store cannot be read.
        DataError: the name of a file leads out of the set's folder.
    """
    folder = storage.join(root, name)
    if folder.startswith("file://"):
        yield Path(unquote(urlsplit(folder).path))
        return
    with TemporaryDirectory(prefix=f"wukong-{name}-") as scratch:
        lists, elsewhere = list[str](), dict[Path, tuple[str, int]]()
        for uri, size in _files(folder).items():
            file = uri[len(folder) :].lstrip("/")
            if PurePosixPath(file).suffix.lower() not in _PICTURES | _ARCHIVES and size <= _LARGEST_LIST:
                lists.append(file)
                continue
            empty = local_path(Path(scratch), file, uri)
            empty.parent.mkdir(parents=True, exist_ok=True)
            empty.touch()
            elsewhere[empty] = uri, size
        with ThreadPoolExecutor(REQUESTS) as requests:
            list(requests.map(lambda file: storage.download(storage.join(folder, file), Path(scratch), file), lists))
        with archives.elsewhere(elsewhere, take):
            yield Path(scratch)


def _files(folder: str) -> dict[str, int]:
    return {uri: size for uri, size in storage.sizes(folder).items() if uri != folder}
