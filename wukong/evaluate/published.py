"""What the readers of published files give: images, labels and captions, in their owner's order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from wukong.errors import DataError, reading
from wukong.runtime.language import message

if TYPE_CHECKING:
    from PIL import Image


class NotThereError(DataError):
    """A file or folder of a set is not where it should be."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


@contextmanager
def reading_file(path: Path, what: str) -> Iterator[None]:
    """As ``wukong.errors.reading``, for a file that a set is made of.

    Raises:
        NotThereError: there is no such file.
        DataError: it is not what it should be.
    """
    with reading(what, message("Download it again")):
        try:
            yield
        except FileNotFoundError as error:
            raise NotThereError(f"{path} is not there") from error


class Images(Protocol):
    """Images that are decoded when they are asked for."""

    def __len__(self) -> int: ...

    def image(self, i: int) -> Image.Image:
        """Decode image ``i`` to RGB.

        Raises:
            DataError: it cannot be read or decoded.
        """
        ...

    def digest(self, i: int) -> str | None:
        """SHA-256 of the file of image ``i``; None if it is no file.

        Raises:
            DataError: it cannot be read.
        """
        ...


class Labelled(NamedTuple):
    """What the reader of a classification set finds: an id, a label and an image each, in the owner's order.

    Attributes:
        ids: the id of each image.
        labels: the class of each image.
        images: the images.
        names: the Chinese name of each class, where only the owner's files have them.
    """

    ids: Sequence[str]
    labels: Sequence[int] | npt.NDArray[np.int64]
    images: Images
    names: Sequence[str] = ()


class Caption(NamedTuple):
    """One published caption or query.

    Attributes:
        text: the published text, without white space at its ends.
        images: numbers of the images that are right for it; none where the owner keeps the answers.
    """

    text: str
    images: tuple[int, ...]


class Captioned(NamedTuple):
    """What the reader of a retrieval set finds: images and captions, in the owner's order."""

    image_ids: Sequence[str]
    captions: Sequence[Caption]
    images: Images


class Paired(NamedTuple):
    """What the reader of a set of word order finds, see ``wukong.evaluate.data_set.WordOrderData``."""

    pair_ids: Sequence[str]
    image_ids: Sequence[str]
    captions: Sequence[Caption]
    images: Images
