"""Decode images of evaluation sets from files, from parts of larger files, and from arrays."""

from __future__ import annotations

import hashlib
import io
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from wukong.data.decoding import DECODER_ERRORS, FORMATS
from wukong.errors import DataError


def decode(data: bytes, name: str) -> Image.Image:
    """Decode an image to RGB as torchvision, CLIP_benchmark and Chinese-CLIP do, so that all see the same pixels.

    The EXIF orientation is not applied and transparency is ignored. 16-bit gray is scaled to 8 bits, where those would
    cut off all values above 255.

    Args:
        data: the bytes of an image file.
        name: name of the image in error messages.

    Raises:
        DataError: the bytes are not an image, or are truncated.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as opened:
            opened.load()
            if opened.mode.startswith("I"):
                wide = np.asarray(opened).astype(np.int64)
                return Image.fromarray((wide >> 8).clip(0, 255).astype(np.uint8)).convert("RGB")
            return opened.convert("RGB")
    except DECODER_ERRORS as error:
        raise DataError(f"{name} cannot be decoded ({error}): download the set again") from error


class Encoded(ABC):
    """Images that are image files, each in a place of its own."""

    @staticmethod
    def decode(data: bytes, name: str) -> Image.Image:
        """Decode the bytes of an image; see ``decode`` of this module."""
        return decode(data, name)

    @abstractmethod
    def __len__(self) -> int:
        """Number of images."""

    @abstractmethod
    def file(self, i: int) -> tuple[bytes, str]:
        """Read the file of image ``i``; with its name for messages.

        Raises:
            DataError: it cannot be read.
        """

    def image(self, i: int) -> Image.Image:
        """Decode image ``i`` to RGB.

        Raises:
            DataError: it cannot be read or decoded.
        """
        return self.decode(*self.file(i))

    def digest(self, i: int) -> str | None:
        """SHA-256 of the file of image ``i``.

        Raises:
            DataError: it cannot be read.
        """
        return hashlib.sha256(self.file(i)[0]).hexdigest()

    def source(self, _i: int) -> Path | None:
        """The file that image ``i`` is alone in, or is a part of with some others; None if there is no such file."""
        return None


@dataclass(frozen=True)
class Files(Encoded):
    """Images that are files of their own.

    Attributes:
        root: the folder they are in.
        paths: path of each image, relative to the folder.
    """

    root: Path
    paths: Sequence[str]

    def __len__(self) -> int:
        return len(self.paths)

    def file(self, i: int) -> tuple[bytes, str]:
        """Read the file of an image; with its name for messages."""
        path = self.source(i)
        try:
            return path.read_bytes(), str(path)
        except OSError as error:
            raise DataError(f"{path} cannot be read ({error.strerror}): download the set again") from error

    def source(self, i: int) -> Path:
        """The file of image ``i``."""
        return self.root / self.paths[i]


@dataclass(frozen=True)
class Crops(Encoded):
    """Parts of pictures. What lies outside of a picture is black.

    Attributes:
        pictures: the picture of each part.
        boxes: left, upper, right and lower edge of each part, in pixels.
    """

    pictures: Encoded
    boxes: Sequence[tuple[int, int, int, int]]

    def __len__(self) -> int:
        return len(self.boxes)

    def image(self, i: int) -> Image.Image:
        """Decode a picture to RGB and cut part ``i`` out."""
        return self.pictures.image(i).crop(self.boxes[i])

    def file(self, i: int) -> tuple[bytes, str]:
        """Make a PNG file of part ``i``."""
        return png(self.image(i)), f"part {self.boxes[i]} of {self.pictures.file(i)[1]}"

    def digest(self, i: int) -> str | None:
        """SHA-256 of the file of the whole picture."""
        return self.pictures.digest(i)

    def source(self, i: int) -> Path | None:
        """The file of the whole picture."""
        return self.pictures.source(i)


@dataclass(frozen=True)
class Parts(Encoded):
    """Images that are parts of larger files: members of tars, or fields of a table.

    Attributes:
        files: the larger files.
        of: int64 [images, 3]: number of the file, offset and length in bytes.
        unpack: makes an image file of the bytes, for instance from base64; None where they are one.
    """

    files: Sequence[Path]
    of: npt.NDArray[np.int64]
    unpack: Callable[[bytes], bytes] | None = None

    def __len__(self) -> int:
        return len(self.of)

    def file(self, i: int) -> tuple[bytes, str]:
        """Read the file of an image; with its name for messages."""
        number, offset, length = self.of[i].tolist()
        path = self.files[number]
        name = name_in(path, offset, i)
        with path.open("rb") as file:
            file.seek(offset)
            data = file.read(length)
        if len(data) != length:
            raise DataError(f"{name} is truncated: download the set again")
        return (data if self.unpack is None else unpacked(data, self.unpack, name)), name


@dataclass(frozen=True)
class Arrays(Encoded):
    """Images that are arrays of pixels, for instance rows of a file that is mapped into memory.

    Attributes:
        pixels: one or more arrays, uint8 [images, height, width] or [images, 3, height, width].
    """

    pixels: Sequence[npt.NDArray[np.uint8]]

    def __len__(self) -> int:
        return sum(len(each) for each in self.pixels)

    def image(self, i: int) -> Image.Image:
        """Image ``i`` as RGB."""
        for each in self.pixels:
            if i < len(each):
                pixels = np.array(each[i])
                return Image.fromarray(pixels if pixels.ndim == 2 else pixels.transpose(1, 2, 0).copy()).convert("RGB")
            i -= len(each)
        raise IndexError(i)

    def file(self, i: int) -> tuple[bytes, str]:
        """Make a PNG file of image ``i``."""
        return png(self.image(i)), f"image {i}"

    def digest(self, i: int) -> None:
        """None: an array of pixels is no file."""


def name_in(path: Path, offset: int, i: int) -> str:
    """The name of an image in a larger file, for messages."""
    return f"image {i} (byte {offset} of {path})"


def unpacked(data: bytes, unpack: Callable[[bytes], bytes], name: str) -> bytes:
    """Make an image file of what stands in a larger file.

    Raises:
        DataError: it cannot be made; ``name`` says where it stands.
    """
    try:
        return unpack(data)
    except ValueError as error:
        raise DataError(f"{name} is damaged ({error}): download the set again") from error


def png(image: Image.Image) -> bytes:
    """Make a PNG file, fast and not small."""
    made = io.BytesIO()
    image.save(made, "PNG", compress_level=1)
    return made.getvalue()
