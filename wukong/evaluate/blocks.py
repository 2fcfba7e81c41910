"""The work on a task in blocks: each encodes some images or texts, or scores some of both, and leaves files.

So a task is done by many processes, and one that was killed goes on after the blocks that are done. How a task is
divided changes its numbers by no more than the rounding of products of other shapes.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import isqrt
from pathlib import Path
from typing import Any, Literal, NamedTuple

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from wukong.errors import DataError
from wukong.evaluate.model import Model
from wukong.evaluate.protocol import Protocol
from wukong.store import damage, fence, storage

FLOPS = 1.2e13
"""Floating-point operations of a block on a processor: five minutes of a core that does 40 GFLOP/s."""
_MOST_IMAGES, _STEP = 1024, 64
_TILE_BYTES = 2**29
"""Bytes of the images' vectors of a block of scores, which are in memory."""
_SIDE_STEP, _LARGEST_SIDE = 2048, 65_536


class Block(NamedTuple):
    """A piece of the work on a task.

    Attributes:
        kind: what it makes.
        role: the model whose texts or scores it makes; empty for images, which all models see.
        rows: the first text, class or image, and the one after the last; of scores the texts.
        columns: of scores, the images.
        direction: of scores for the rule ``topk``, which needs whole rows: what is searched.
    """

    kind: Literal["texts", "images", "scores"]
    role: str
    rows: tuple[int, int]
    columns: tuple[int, int] = (0, 0)
    direction: Literal["both", "text_to_image", "image_to_text"] = "both"

    @property
    def name(self) -> str:
        """What its files and its record are called; another division has other names."""
        ranges = "-".join(f"{edge:07d}" for edge in (*self.rows, *(self.columns if self.kind == "scores" else ())))
        turned = "" if self.direction == "both" else f"-{self.direction}"
        return f"{self.kind}/{self.role or 'all'}/{ranges}{turned}"


@dataclass(frozen=True)
class Sizes:
    """How a task is divided.

    Attributes:
        images: number of images of a block.
        side: number of images, and of texts, of a block of scores.
        texts: number of its texts, where they are not as many as the images.
    """

    images: int = _MOST_IMAGES
    side: int = _SIDE_STEP
    texts: int | None = None

    @classmethod
    def of(cls, image_flops: float, pair_flops: float, image_bytes: int, *, gpu: bool = False) -> "Sizes":
        """Return sizes with which a block takes a core some minutes; on a GPU blocks are as large as memory allows.

        Args:
            image_flops: floating-point operations for one image, by all models together.
            pair_flops: those of the similarity of an image and a text.
            image_bytes: bytes of an image's vectors of one model.
            gpu: whether a GPU does the work.
        """
        images = _MOST_IMAGES if gpu else min(_MOST_IMAGES, int(FLOPS / max(image_flops, 1.0)))
        side = min(_LARGEST_SIDE, _TILE_BYTES // image_bytes, *(() if gpu else (isqrt(int(FLOPS / pair_flops)),)))
        return cls(max(_STEP, images // _STEP * _STEP), max(_SIDE_STEP, side // _SIDE_STEP * _SIDE_STEP))


class Files:
    """Files of tensors in a folder. A file that is there is complete.

    Args:
        folder: its path or URI.
        fenced: whether it is of a stage, where a newer attempt may have begun (``wukong.store.fence``).
    """

    def __init__(self, folder: Path | str, *, fenced: bool = False) -> None:
        self.uri = storage.from_path(folder) if isinstance(folder, Path) else folder
        self._fenced = fenced

    def below(self, name: str) -> "Files":
        """Return a folder in this folder."""
        return Files(storage.join(self.uri, name), fenced=self._fenced)

    def has(self, name: str) -> bool:
        """Return whether there is a file of this name."""
        return storage.exists(self._of(name))

    def read(self, name: str) -> dict[str, Tensor]:
        """Read a file.

        Raises:
            DataError: it is damaged.
            StorageError: it is not there.
        """
        try:
            tensors: dict[str, Tensor] = load(storage.read_bytes(self._of(name)))
        except SafetensorError as error:
            raise DataError(f"{self._of(name)} is damaged ({error}): {damage.remedy(self._of(name))}") from error
        return tensors

    def read_in_turn(self, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
        """Read files one after the other, each while the one before is in use; at most three are in memory.

        Raises:
            DataError: for this and the other errors see ``read``.
        """
        with ThreadPoolExecutor(1) as ahead:
            coming = None
            for name in names:
                following = ahead.submit(self.read, name)
                if coming is not None:
                    yield coming.result()
                coming = following
            if coming is not None:
                yield coming.result()

    def write(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Write a file.

        Raises:
            FencedError: a newer attempt at the stage has begun.
            StorageError: it cannot be written, for instance because the disk is full.
        """
        data = save({key: value.contiguous() for key, value in tensors.items()})
        (fence.publish_bytes if self._fenced else storage.write_bytes)(self._of(name), data)

    def _of(self, name: str) -> str:
        return storage.join(self.uri, f"{name}.safetensors")


class InMemory(Files):
    """Files of tensors in this process's memory.

    Args:
        tensors: the tensors of each file.
        folder: what stands before the names.
    """

    def __init__(self, tensors: dict[str, dict[str, Tensor]] | None = None, folder: str = "") -> None:
        self.tensors, self._folder = {} if tensors is None else tensors, folder

    def below(self, name: str) -> "InMemory":
        """Return a folder in this folder."""
        return InMemory(self.tensors, f"{self._folder}{name}/")

    def has(self, name: str) -> bool:
        """Return whether there is a file of this name."""
        return f"{self._folder}{name}" in self.tensors

    def read(self, name: str) -> dict[str, Tensor]:
        """Return a file's tensors."""
        return self.tensors[f"{self._folder}{name}"]

    def write(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Keep the tensors of a file."""
        self.tensors[f"{self._folder}{name}"] = dict(tensors)


@dataclass(frozen=True)
class Work:
    """A task, the models that are measured on it, and what its blocks have left.

    Attributes:
        data: the set or hold-out.
        protocol: how it is measured.
        models: the models by their roles.
        encode: encodes some images, by each model: unit vectors, float32 [images, (tokens,) d].
        files: the files of its blocks.
        classes: embedded classes, which other tasks and runs may share.
        sizes: how it is divided.
        examples: whether a search of all images finds examples for the report.
    """

    data: Any
    protocol: Protocol
    models: Mapping[str, Model]
    encode: Callable[[slice], Mapping[str, Tensor]]
    files: Files
    classes: Files
    sizes: Sizes = Sizes()
    examples: bool = True


def cut(size: int, step: int) -> list[tuple[int, int]]:
    """Divide a number of items into ranges of at most ``step``."""
    return [(start, min(start + step, size)) for start in range(0, size, step)]
