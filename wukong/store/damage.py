"""Files that are damaged, or of another version: how a reader notices one, and what a person does about it."""

import hashlib
import io
import re
from collections.abc import Mapping
from typing import IO, TYPE_CHECKING, Any

from wukong.errors import DataError, StorageError

if TYPE_CHECKING:
    import pyarrow as pa

_OUTPUT = re.compile(r"(.+/[^/]+/[0-9a-f]{16})/.+")
_MANIFESTS = ("manifest.json", "failed.json")
"""A crawl may have either, or both."""
_READ_BYTES = 1 << 20


def output_of(uri: str) -> str:
    """Return the prefix of the stage's output that a file is of; empty if it is of none."""
    found = _OUTPUT.fullmatch(uri)
    return found[1] if found else ""


def remedy(uri: str) -> str:
    """Say what a person does about a damaged file, so that it is there again and nothing whole is made anew.

    Args:
        uri: URI of the file: a stage's, or one that somebody else put there.
    """
    output = output_of(uri)
    if not output:
        return "put a whole copy of it there"
    if uri.removeprefix(f"{output}/") in _MANIFESTS:
        return "delete it and run its stage again: what is whole is used"
    if output.split("/")[-2] == "crawl":
        return (
            f"delete it, and {output}/manifest.json and {output}/failed.json if they are there, and run its stage "
            "again: what is whole is used"
        )
    return f"delete it, and {output}/manifest.json if that is there, and run its stage again: what is whole is used"


def refuse_other_format(value: Mapping[str, Any], number: int, name: str) -> None:
    """Refuse what another version of Wukong stored.

    Args:
        value: the JSON value that was read.
        number: the ``format`` that this version reads.
        name: what messages call it, for instance its URI.

    Raises:
        DataError: it has another ``format``, or none.
    """
    if value.get("format") != number:
        raise DataError(
            f"{name} was written by another version of Wukong, which this one does not read: use another storage, or "
            "delete it and run again"
        )


def compare(uri: str, data: "bytes | pa.Buffer", sha256: str) -> None:
    """Check that a file is the one that its manifest lists.

    Args:
        uri: URI of the file.
        data: its content.
        sha256: its digest in the manifest; empty where none is known.

    Raises:
        StorageError: it has another digest.
    """
    if sha256:
        _refuse_other(uri, hashlib.sha256(data).hexdigest(), sha256)


def _refuse_other(uri: str, found: str, expected: str) -> None:
    if found != expected:
        raise StorageError(
            f"{uri} is not the file that its stage wrote: it was altered or replaced. Put it back; or {remedy(uri)}"
        )


class Compared(io.RawIOBase):
    """A stream of a file that is digested while it is read, from its start; what is skipped is read for that.

    Args:
        stream: the file.
        uri: its URI.
        sha256: the digest that it must have.
    """

    def __init__(self, stream: IO[bytes], uri: str, sha256: str) -> None:
        self._stream, self._uri, self._expected = stream, uri, sha256
        self._sha, self._place = hashlib.sha256(), 0

    def readable(self) -> bool:
        """Return that it can be read."""
        return True

    def seekable(self) -> bool:
        """Return that it can be moved forward."""
        return True

    def tell(self) -> int:
        """Return the place of the next byte."""
        return self._place

    def readinto(self, buffer: Any) -> int:
        """Read into a buffer; return the number of bytes."""
        size: int = self._stream.readinto(buffer)  # type: ignore[attr-defined]
        self._sha.update(memoryview(buffer)[:size])
        self._place += size
        return size

    def seek(self, place: int, whence: int = io.SEEK_SET) -> int:
        """Read on up to a place; return the place."""
        while (left := None if whence == io.SEEK_END else place - self._place) is None or left > 0:
            if not self.read(_READ_BYTES if left is None else min(left, _READ_BYTES)):
                break
        return self._place

    def finish(self) -> None:
        """Read what is left.

        Raises:
            StorageError: the file has another digest.
        """
        self.seek(0, io.SEEK_END)
        _refuse_other(self._uri, self._sha.hexdigest(), self._expected)
