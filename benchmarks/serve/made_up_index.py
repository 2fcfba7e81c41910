"""An index of many made-up pictures, made as any index is made of stored features, over a folder with one picture."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from PIL import Image
from torch import Tensor

from wukong.evaluate.model import OwnModel
from wukong.serve import collection, encode, stored_features
from wukong.serve.collection import ROWS, Collection, Piece, Place
from wukong.store import storage
from wukong.store.manifest import Manifest

Halves = npt.NDArray[np.float16]
Draw = Callable[[int, int], Halves]
"""Gives the vectors of a piece by its number and how many there are."""

PIECE = 65_536


@dataclass(frozen=True)
class Drawn:
    """Stands in the place of a file of features."""

    draw: Draw
    number: int
    rows: int
    stage: str = "made-up vectors"

    def read(self) -> "_Rows":
        return _Rows(self.draw(self.number, self.rows))


class _Rows:
    def __init__(self, halves: Halves) -> None:
        self._vectors = iter(torch.from_numpy(halves))

    def of(self, _key: str) -> Tensor:
        vector: Tensor = next(self._vectors)
        return vector


class MadeUp(OwnModel):
    """A model whose features are its vectors."""

    def encode_features(self, features: Tensor) -> Tensor:
        return features.float()


class _OnePicture(Collection):
    """Pictures that all have one file."""

    def read_piece(self, _piece: Piece, keys: object = None) -> Iterator[tuple[str, Place, Callable[[], bytes]]]:
        place = Place(storage.join(self.uri, "one.jpg"))
        assert isinstance(keys, dict)
        for key in keys:
            yield key, place, bytes


def folder_of(work: Path) -> Path:
    """Return a folder with one picture, which is what the server is told to search."""
    folder = work / "pictures"
    if not (folder / "one.jpg").exists():
        folder.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(0).integers(0, 256, (256, 256, 3), np.uint8)
        (folder / "one.txt").write_text("红色的猫", encoding="utf-8")
        Image.fromarray(pixels).save(folder / "one.jpg")
    return folder


def build(
    work: Path, model: OwnModel, pictures: int, captions: Sequence[str], draw: Draw, piece: int = PIECE
) -> Manifest:
    """Make an index below ``work/indexes``, which a server of this model and of ``folder_of`` opens.

    Args:
        work: the folder; what is complete there is not made again.
        model: the model.
        pictures: how many there are; their keys are their numbers.
        captions: the distinct captions; the pictures have them in turn.
        draw: gives the vectors.
        piece: pictures of a piece.
    """
    one = collection.of(str(folder_of(work)))
    pieces = []
    for number, start in enumerate(range(0, pictures, piece)):
        count = min(piece, pictures - start)
        rows = partial(_rows, start, count, captions)
        pieces.append(Piece(f"made-up-{number:05d}", f"{number} {count}", count, rows, tar=f"{number}.tar"))
    found = _OnePicture(one.uri, one.digest, partial(tuple, pieces))
    drawn = {piece.tar: Drawn(draw, number, piece.pictures) for number, piece in enumerate(pieces)}
    with mock.patch.object(stored_features, "find", lambda *_: drawn):
        return encode.build(found, MadeUp(model.saved, model.name), storage.from_path(work / "indexes"))


def _rows(start: int, count: int, captions: Sequence[str]) -> pa.Table:
    rows = range(start, start + count)
    known = {
        "key": [f"{row:020d}" for row in rows],
        "captions": [[captions[row % len(captions)]] for row in rows],
        "source": [f"host{row % 997}.test" for row in rows],
        "width": [200 + row % 1800 for row in rows],
        "height": [200 + row % 1100 for row in rows],
    }
    return pa.table([pa.array(known.get(field.name, [None] * count), field.type) for field in ROWS], ROWS)
