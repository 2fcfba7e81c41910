"""What earlier indexes by the same model have of pictures and captions, so that no vector is computed twice.

A picture is known by the digest of its file (``collection.ROWS``) and the size of what is stored of it, a caption by
the form that the model reads.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import torch

from wukong.serve.approximate import Before
from wukong.serve.collection import Piece, Place
from wukong.serve.index import Index, TokenVectors, open_shard
from wukong.store import manifest, storage

PIECES = "pieces.json"
"""Part of a shard: the digest of each tar that its pictures are in, by the tar's path."""

Halves = npt.NDArray[np.float16]
Numbers = npt.NDArray[np.int64]


class Earlier:
    """Some shards of earlier indexes.

    Args:
        uris: URIs of the shards.

    Raises:
        DataError: one is damaged.
        StorageError: one was altered.
    """

    def __init__(self, uris: Sequence[str]) -> None:
        made = [manifest.load(uri).model_copy(update={"uri": uri}) for uri in uris]
        self.shards: list[Index] = [open_shard(each, each.uri, is_compared=True) for each in made]
        self._tars: list[dict[str, str]] = [storage.read_json(*each.file(PIECES)) for each in made]
        digests = [shard.digests for shard in self.shards]
        self._starts = np.cumsum([0, *map(len, digests)])
        self._digests = pa.chunked_array([chunk for each in digests for chunk in each.chunks], pa.binary(16))
        known = self._digests.is_valid().to_numpy()
        heads = _heads(self._digests)
        self._rows = np.flatnonzero(known)[np.argsort(heads[known], kind="stable")]
        self._heads = heads[self._rows]

    def find(self, digests: pa.ChunkedArray) -> Numbers:
        """Return for each digest the number of a picture that has it, or -1."""
        numbers = np.full(len(digests), -1, np.int64)
        if len(self._heads):
            at = np.minimum(np.searchsorted(self._heads, _heads(digests)), len(self._heads) - 1)
            found = self._rows[at]
            same = pc.equal(self._digests.take(pa.array(found)), digests).fill_null(False).to_numpy()
            numbers[same] = found[same]
        return numbers

    def place(self, number: int) -> Place:
        """Return where the file of a picture was."""
        shard, row = self._at(number)
        return self.shards[shard].places[row]

    def places(self, piece: Piece, numbers: Numbers) -> list[Place] | None:
        """Return where all pictures of a piece are, if its tar is one that was read before; else None."""
        if not piece.tar or (numbers < 0).any():
            return None
        found = []
        for number in numbers.tolist():
            shard, row = self._at(number)
            place = self.shards[shard].places[row]
            if place.file != piece.tar or self._tars[shard].get(piece.tar) != piece.tar_digest:
                return None
            found.append(place)
        return found

    def vectors(self, numbers: Numbers) -> Halves:
        """Read the vectors of pictures, float16 [pictures, d]."""
        return self._gathered(numbers, lambda shard, rows: shard.picture_vectors.halves(rows))

    def tokens(self, numbers: Numbers) -> Halves:
        """Read the token vectors of pictures, float16 [pictures, tokens, d]."""
        return self._gathered(numbers, lambda shard, rows: _tokens(shard.picture_tokens, rows))

    def caption_forms(self) -> pl.DataFrame:
        """Return the forms of captions, ``form``, with the shard and the row of each, ``shard`` and ``row``."""
        tables = [
            pl.DataFrame({"form": pl.Series(shard.forms, dtype=pl.String)}).with_columns(
                pl.lit(number, pl.Int64).alias("shard"), pl.int_range(pl.len(), dtype=pl.Int64).alias("row")
            )
            for number, shard in enumerate(self.shards)
        ]
        return pl.concat(tables).unique("form", keep="first")

    def captions(self, shard: int, rows: Numbers, *, tokens: bool) -> Halves:
        """Read the vectors of captions of a shard, or their token vectors."""
        if tokens:
            return _tokens(self.shards[shard].caption_tokens, rows)
        return self.shards[shard].caption_vectors.halves(rows)

    def candidates(self, numbers: Numbers) -> Before | None:
        """Return the approximate index of the shard that most of some pictures were in; None if it has none."""
        of = np.searchsorted(self._starts, numbers[numbers >= 0], side="right") - 1
        if not len(of):
            return None
        shard = int(np.bincount(of).argmax())
        candidates = self.shards[shard].picture_candidates
        rows = numbers - self._starts[shard]
        there = (numbers >= self._starts[shard]) & (numbers < self._starts[shard + 1])
        return None if candidates is None else Before(candidates, np.where(there, rows, -1))

    def _at(self, number: int) -> tuple[int, int]:
        shard = int(np.searchsorted(self._starts, number, side="right")) - 1
        return shard, number - int(self._starts[shard])

    def _gathered(self, numbers: Numbers, read: Callable[[Index, Numbers], Halves]) -> Halves:
        """Read something of pictures that may be in several shards, in their order."""
        of = np.searchsorted(self._starts, numbers, side="right") - 1
        gathered: Halves | None = None
        for shard in np.unique(of).tolist():
            mine = np.flatnonzero(of == shard)
            values = read(self.shards[shard], numbers[mine] - self._starts[shard])
            if gathered is None:
                gathered = np.empty((len(numbers), *values.shape[1:]), np.float16)
            gathered[mine] = values
        if gathered is None:
            raise ValueError("no pictures are asked for")
        return gathered


@lru_cache(maxsize=2)
def opened(uris: tuple[str, ...]) -> Earlier:
    """Open shards once in a process, for the pieces that it encodes one after the other."""
    return Earlier(uris)


def _tokens(vectors: TokenVectors | None, rows: Numbers) -> Halves:
    if vectors is None:
        raise ValueError("a global model has no tokens")
    return vectors.read(torch.from_numpy(rows)).numpy().astype(np.float16)


def _heads(digests: pa.ChunkedArray) -> npt.NDArray[np.uint64]:
    """The first eight bytes of each digest as a number; anything for those that are null."""
    numbers = [np.empty(0, np.uint64)]
    for chunk in digests.chunks:
        if len(chunk):
            stored = np.frombuffer(chunk.buffers()[1], np.uint64)
            numbers.append(stored[2 * chunk.offset : 2 * (chunk.offset + len(chunk)) : 2])
    return np.concatenate(numbers)
