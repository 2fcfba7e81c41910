"""The images of a set that lies in an object store, copied into tables of a block of images each.

The readers of sets need a set's files on a disk. So one process copies them there, and writes the images to tables, of
which the process that encodes a block reads one.
"""

from collections.abc import Callable, Sequence
from functools import cached_property, lru_cache

import pyarrow as pa
from PIL import Image

from wukong.evaluate.blocks import cut
from wukong.evaluate.formats.pictures import Encoded
from wukong.store import storage


class Packed(Encoded):
    """Images in tables.

    Args:
        folder: URI of the tables' folder.
        digests: SHA-256 of each image's file; None where an image was no file.
        rows: number of images of a table.
        decode: decodes an image file.
    """

    def __init__(
        self, folder: str, digests: Sequence[str | None], rows: int, decode: Callable[[bytes, str], Image.Image]
    ) -> None:
        self._folder, self._digests, self._rows, self._decode = folder, digests, rows, decode

    def __len__(self) -> int:
        return len(self._digests)

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in self.__dict__.items() if name != "_table"}

    def file(self, i: int) -> tuple[bytes, str]:
        """Read the file of an image; with its name for messages."""
        row = self._table(i // self._rows).slice(i % self._rows, 1).to_pylist()[0]
        return row["file"], row["name"]

    def image(self, i: int) -> Image.Image:
        """Decode image ``i`` to RGB, as its set does."""
        return self._decode(*self.file(i))

    def digest(self, i: int) -> str | None:
        """SHA-256 of the file of image ``i`` as it was in the set; None if it was no file."""
        return self._digests[i]

    @cached_property
    def _table(self) -> Callable[[int], pa.Table]:
        return lru_cache(maxsize=1)(lambda number: storage.read_table(_uri(self._folder, number)))


def pack(images: Encoded, folder: str, rows: int) -> Packed:
    """Copy images to tables; those that are there are left as they are.

    Args:
        images: the images of a set.
        folder: URI of the tables' folder.
        rows: number of images of a table.

    Raises:
        DataError: an image cannot be read.
    """
    there = {*storage.list_files(folder, ".parquet")}
    digests: list[str | None] = []
    for number, (first, last) in enumerate(cut(len(images), rows)):
        digests += [images.digest(i) for i in range(first, last)]
        if _uri(folder, number) not in there:
            files, names = zip(*(images.file(i) for i in range(first, last)), strict=True)
            table = pa.table({"file": pa.array(files, pa.large_binary()), "name": names})
            storage.write_table(_uri(folder, number), table)
    return Packed(folder, digests, rows, type(images).decode)


def _uri(folder: str, number: int) -> str:
    return storage.join(folder, f"{number:05d}.parquet")
