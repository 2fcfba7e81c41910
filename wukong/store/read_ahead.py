"""An object that is read once, from its start to its end: the next pieces of it are asked for while one is used."""

import io
import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import IO

from wukong.store import storage

_PIECE_BYTES = 8 << 20
_AHEAD = 3
"""Pieces that are asked for beside the one that is used; the one before it is kept for a step back."""


@contextmanager
def opened(uri: str, size: int) -> Iterator[IO[bytes]]:
    """Open an object as a seekable stream with some pieces in memory; what is passed over is read too.

    Args:
        uri: URI of the object.
        size: its bytes.

    Raises:
        StorageError: it cannot be read.
    """
    with ThreadPoolExecutor(_AHEAD + 1) as pool, io.BufferedReader(_Pieces(uri, size, pool), 1 << 20) as stream:
        yield stream


class _Pieces(io.RawIOBase):
    def __init__(self, uri: str, size: int, pool: ThreadPoolExecutor) -> None:
        self._uri, self._size, self._pool = uri, size, pool
        self._coming: dict[int, Future[bytes]] = {}
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        return self._at

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # typeshed has any buffer
        number, passed = divmod(self._at, _PIECE_BYTES)
        if self._at >= self._size:
            return 0
        for piece in range(number, min(number + _AHEAD, (self._size - 1) // _PIECE_BYTES) + 1):
            if piece not in self._coming:
                self._coming[piece] = self._pool.submit(self._read, piece * _PIECE_BYTES)
        for piece in [each for each in self._coming if each < number - 1]:
            del self._coming[piece]
        data = self._coming[number].result()[passed : passed + len(buffer)]
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

    def _read(self, start: int) -> bytes:
        with storage.open_input(self._uri) as stream:
            stream.seek(start)
            return stream.read(min(_PIECE_BYTES, self._size - start))
