"""A split of a set that lies in an object store: its pictures in tables, of which each process reads its share.

The set's reader needs files on a disk. So one process has it read the set's lists there, asks the store for each
picture once, and writes the pictures to tables and what else was read beside them.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import fields
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from wukong.evaluate import set_folders, sets
from wukong.evaluate.data_set import ClassificationData, Data, RetrievalData, WordOrderData, require_split
from wukong.evaluate.formats.pictures import Encoded, Parts, png
from wukong.evaluate.published import Caption
from wukong.store import storage
from wukong.store.local_paths import local_path
from wukong.store.manifest import Manifest, Part, Stage

ROWS = 64
"""Pictures of a table. Batches, blocks and shares have as many or a multiple, so few tables are read by two."""

_SET, _PICTURES, _TABLES = "set.json", "pictures.parquet", "tables/"
_KINDS: Mapping[str, Callable[..., Data]] = {
    kind.__name__: kind for kind in (ClassificationData, RetrievalData, WordOrderData)
}


class Packed(Encoded):
    """Images in tables.

    Args:
        tables: URI and SHA-256 of each table, by its number.
        rows: the row of each image, counted over all tables.
        digests: SHA-256 of each image's file; None where an image was no file.
    """

    def __init__(
        self, tables: Mapping[int, tuple[str, str]], rows: npt.NDArray[np.int64], digests: Sequence[str | None]
    ) -> None:
        self._tables, self._rows, self._digests = tables, rows, digests
        # Two, because threads that read side by side are at the end of one table and at the start of the next.
        self._table, self._reading = lru_cache(maxsize=2)(self._read), Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return Packed, (self._tables, self._rows, self._digests)

    def __len__(self) -> int:
        return len(self._rows)

    def file(self, i: int) -> tuple[bytes, str]:
        """Read the file of an image; with its name for messages."""
        number, row = divmod(int(self._rows[i]), ROWS)
        with self._reading:
            table = self._table(number)
        read = table.slice(row, 1).to_pylist()[0]
        return read["file"], read["name"]

    def digest(self, i: int) -> str | None:
        """SHA-256 of the file of image ``i`` as it was in the set; None if it was no file."""
        return self._digests[i]

    def _read(self, number: int) -> pa.Table:
        uri, sha256 = self._tables[number]
        return storage.read_table(uri, sha256=sha256)


def data(root: str, name: str, split: str | None, made: Manifest | None) -> Data:
    """Read a split of a set without its images.

    Args:
        root: URI of the folder that holds the sets.
        name: the set's name.
        split: the split; None for the one that is measured where nothing else is said.
        made: the manifest of a packed set; None for a set in a folder of this machine.

    Raises:
        DataError: the set is missing or damaged, or has no such split.
        StorageError: the tables cannot be read, or were altered.
    """
    if made is None:
        with set_folders.local(root, name) as folder:
            return sets.of(name).read(folder, split)
    told = storage.read_json(*made.file(_SET))
    if split is not None:
        require_split(sets.of(name), [told["split"]], split)
    uri, sha256 = made.file(_PICTURES)
    pictures = storage.read_table(uri, sha256=sha256)
    tables = dict(enumerate(map(made.file, made.parts.below(_TABLES).paths)))
    told["images"] = Packed(tables, pictures["row"].to_numpy(), pictures["sha256"].to_pylist())
    if "captions" in told:
        told["captions"] = [Caption(text, tuple(images)) for text, images in told["captions"]]
    if "labels" in told:
        told["labels"] = np.array(told["labels"], np.int64)
    return _KINDS[told.pop("kind")](**told)


def pack(stage: Stage, root: str, name: str, split: str | None) -> list[Part]:
    """Write what ``data`` reads of a set in an object store.

    A picture is on the disk until the table that it is in is written, and until its last part is.

    Args:
        stage: where it is written.
        root: URI of the folder that holds the sets.
        name: the set's name.
        split: the split; None for the one that is measured where nothing else is said.

    Returns:
        What was written.

    Raises:
        DataError: the set is damaged, or an image cannot be read.
        StorageError: the store cannot be read or written.
    """
    if root.startswith("file://"):
        raise ValueError(f"{root} is a folder, which is read in place: here files are deleted when they are packed")
    tables, met = _Writer(stage), dict[tuple[Path, int], int]()

    def uri_of(path: Path) -> str:
        inside = path.relative_to(folder).as_posix()
        local_path(folder, inside, f"{inside}, a picture of {name},")  # a list of the set names it
        return storage.join(root, name, inside)

    def take(archive: Path, offset: int, file: bytes) -> None:
        uri = uri_of(archive)
        name_there = f"byte {offset} of {uri}"
        met[archive, offset] = tables.add(file, name_there, hashlib.sha256(file).hexdigest())

    with set_folders.local(root, name, take) as folder:
        read = sets.of(name).read(folder, split)
        images = read.images
        if isinstance(images, Parts):
            rows = [met[images.files[number], offset] for number, offset, _ in images.of.tolist()]
        else:
            assert isinstance(images, Encoded)  # noqa: S101 - for mypy: what readers of published files give
            rows = [tables.add(*each) for each in _files(images, uri_of)]
    tables.finish()
    told = {field.name: getattr(read, field.name) for field in fields(read) if field.name != "images"}
    if isinstance(read, ClassificationData):
        told["labels"] = read.labels.tolist()
    with stage.output(_SET) as output:
        output.write(storage.json_bytes({"kind": type(read).__name__, **told}))
    digests = pa.array([tables.digests[row] for row in rows], pa.string())
    pictures = stage.write_table(_PICTURES, pa.table({"row": pa.array(rows, pa.int64()), "sha256": digests}))
    return [*tables.parts, output.part(len(read)), pictures]


def _files(images: Encoded, uri_of: Callable[[Path], str]) -> Iterator[tuple[bytes, str, str | None]]:
    """Iterate over the file, name and digest of each image, whose pictures come from the store side by side."""
    sources = [images.source(i) for i in range(len(images))]
    last = {source: i for i, source in enumerate(sources)}
    coming: dict[Path, Future[int]] = {}
    with ThreadPoolExecutor(set_folders.REQUESTS) as requests:
        for i, source in enumerate(sources):
            for ahead in sources[i : i + 2 * ROWS] if i % ROWS == 0 else ():
                if ahead is not None and ahead not in coming:
                    coming[ahead] = requests.submit(
                        lambda path: path.write_bytes(storage.read_bytes(uri_of(path))), ahead
                    )
            if source is None:
                yield *images.file(i), images.digest(i)
                continue
            coming[source].result()
            whole = type(images).decode is Encoded.decode  # another set's own way to decode is not known to the table
            yield images.file(i)[0] if whole else png(images.image(i)), uri_of(source), images.digest(i)
            if last[source] == i:
                source.unlink()
                del coming[source]


class _Writer:
    """Tables that are being written.

    Attributes:
        digests: SHA-256 of the file of each row; None where it was none.
        parts: the tables that are complete.
    """

    def __init__(self, stage: Stage) -> None:
        self.digests: list[str | None] = []
        self.parts: list[Part] = []
        self._stage = stage
        self._files: list[tuple[bytes, str]] = []

    def add(self, file: bytes, name: str, digest: str | None) -> int:
        """Append an image, and return its row."""
        self._files.append((file, name))
        self.digests.append(digest)
        if len(self._files) == ROWS:
            self.finish()
        return len(self.digests) - 1

    def finish(self) -> None:
        """Write the last table."""
        if self._files:
            files, names = zip(*self._files, strict=True)
            table = pa.table({"file": pa.array(files, pa.large_binary()), "name": names})
            self.parts.append(self._stage.write_table(f"{_TABLES}{len(self.parts):05d}.parquet", table))
            self._files = []
