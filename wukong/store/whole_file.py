"""A local file that appears whole: no reader sees a part of it, and no writer that is killed leaves one."""

import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


@contextmanager
def whole_file(
    path: Path, *, synced: bool = True, mode: int = 0o666, place: Callable[[Path, Path], object] = Path.replace
) -> Iterator[IO[bytes]]:
    """Open a file for writing; it appears under its name only if the block ends without an error.

    Args:
        path: the file; its folder is created.
        synced: whether it must be complete under its name even if the machine loses its power.
        mode: who may read and write it, less what the process's mask takes away.
        place: gives what was written, which lies beside the file, its name.

    Raises:
        OSError: it cannot be written.
    """
    partial = Path(f"{path}.{uuid.uuid4().hex}.partial")
    partial.parent.mkdir(parents=True, exist_ok=True)
    try:
        with open(partial, "xb", opener=lambda name, flags: os.open(name, flags, mode)) as stream:
            yield stream
            stream.flush()
            if synced:
                os.fsync(stream.fileno())
        place(partial, path)
    finally:
        partial.unlink(missing_ok=True)
