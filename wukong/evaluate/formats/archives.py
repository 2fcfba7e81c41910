"""Archives of a set, which hold many images: tars and tables. One in an object store is passed through, never copied.

Its reader meets each image once, and hands it on: nobody asks the store for it again.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple

from wukong.store import read_ahead

Take = Callable[[Path, int, bytes], None]
"""Takes an image: its archive, the offset of its bytes there, and its file."""


class Archive(NamedTuple):
    """An open archive, and what takes the images in it; None where they stay where they are."""

    file: IO[bytes]
    take: Callable[[int, bytes], None] | None


class _Elsewhere(NamedTuple):
    uri: str
    size: int
    take: Take | None


_ELSEWHERE: dict[Path, _Elsewhere] = {}


@contextmanager
def elsewhere(objects: Mapping[Path, tuple[str, int]], take: Take | None) -> Iterator[None]:
    """Have archives opened in an object store while the block lasts.

    Args:
        objects: URI and bytes of each, by the path at which its reader looks for it.
        take: takes their images.
    """
    _ELSEWHERE.update({path: _Elsewhere(*each, take) for path, each in objects.items()})
    try:
        yield
    finally:
        for path in objects:
            del _ELSEWHERE[path]


@contextmanager
def opened(path: Path) -> Iterator[Archive]:
    """Open an archive, which is to be read from its start to its end.

    Raises:
        OSError: it cannot be opened.
        StorageError: it cannot be read in the object store.
    """
    if (away := _ELSEWHERE.get(path)) is None:
        with path.open("rb") as file:
            yield Archive(file, None)
        return
    with read_ahead.opened(away.uri, away.size) as file:
        take = away.take
        yield Archive(file, None if take is None else lambda offset, data: take(path, offset, data))
