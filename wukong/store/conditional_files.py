"""Writes of local files that happen only if a file is as it was seen: what ``conditional_store`` is for objects.

A new file is linked to its name, which only one can do. A file that is there is replaced under a lock of its folder.
"""

import fcntl
import hashlib
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO

from wukong.store import patient_store
from wukong.store.conditional_store import ChangedError
from wukong.store.whole_file import whole_file

_LOCK_SECONDS = 60.0


def version(path: Path) -> str | None:
    """Return what identifies the present content of a file, its SHA-256; None if there is no file."""
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except FileNotFoundError:
        return None


def read(path: Path) -> tuple[bytes, str] | None:
    """Return the content of a file and its ``version``, which belong together; None if there is no file."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    return data, hashlib.sha256(data).hexdigest()


def write(target: Path, data: bytes | IO[bytes], expected: str | None) -> None:
    """Write a whole file atomically, if it is as it was seen; if not, it stays.

    Args:
        target: the file; its folder is created.
        data: its whole content, or a stream of it that can be read again from its start.
        expected: from ``version``; None to write a file that was not there.

    Raises:
        ChangedError: it is not as it was seen.
        OSError: it cannot be written.
    """
    with whole_file(target, place=_linked if expected is None else partial(_replaced, expected)) as stream:
        if isinstance(data, bytes):
            stream.write(data)
        else:
            data.seek(0)
            shutil.copyfileobj(data, stream, patient_store.COPY_BYTES)


def _linked(written: Path, target: Path) -> None:
    try:
        os.link(written, target)
    except FileExistsError as error:
        raise ChangedError(f"{target} was written by somebody else") from error


def _replaced(expected: str, written: Path, target: Path) -> None:
    with _locked(target.parent):
        if version(target) != expected:
            raise ChangedError(f"{target} was written by somebody else")
        written.replace(target)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder; a process that is stopped while it holds it is not waited for without end."""
    descriptor, until = os.open(folder, os.O_RDONLY), time.monotonic() + _LOCK_SECONDS
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > until:
                    raise
                time.sleep(0.01)
        yield
    finally:
        os.close(descriptor)
