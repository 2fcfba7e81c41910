"""Reading and writing the tars of shards, a file at a time."""

import io
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from wukong import storage
from wukong.errors import DataError

_READ_BYTES = 1 << 20
_BLOCK = tarfile.BLOCKSIZE

END = bytes(2 * _BLOCK)
"""What stands behind the last file of a tar."""

# The fields of a header that are the same for all members (POSIX 1003.1, ustar): mode, owner, group; time; the rest.
_BEFORE_SIZE = b"0000444\0" + b"0000000\0" * 2
_BEFORE_CHECKSUM = b"00000000000\0"
_REST = b"0" + bytes(100) + b"ustar\x0000" + bytes(64 + 16 + 155 + 12)
_CHECKSUM = sum(_BEFORE_SIZE) + sum(_BEFORE_CHECKSUM) + 8 * ord(" ") + sum(_REST)


@dataclass(frozen=True)
class Member:
    """One file of a tar.

    Attributes:
        key: the pair it belongs to.
        suffix: what it holds: ``jpg``, ``json`` or ``txt``.
        offset: bytes from the tar's start to its content.
        size: bytes of its content.
        read: gives the content; only until the next member is asked for.
    """

    key: str
    suffix: str
    offset: int
    size: int
    read: Callable[[], bytes]


def members(tar_uri: str) -> Iterator[Member]:
    """Stream the files of a tar in their order, reading it once from start to end.

    Raises:
        DataError: the tar is truncated or is none.
    """
    try:
        with storage.open_input(tar_uri) as stream, tarfile.open(fileobj=stream, mode="r|", bufsize=_READ_BYTES) as tar:
            end = 0
            for entry in tar:
                end = entry.offset_data + -(-entry.size // _BLOCK) * _BLOCK
                content = tar.extractfile(entry)
                if content is not None:
                    key, _, suffix = entry.name.rpartition(".")
                    yield Member(key, suffix, entry.offset_data, entry.size, content.read)
            # A tar cut between two members looks like a shorter one, but for the two empty blocks at its end.
            if stream.seek(0, io.SEEK_END) < end + len(END):
                raise tarfile.ReadError("its end is missing")
    except tarfile.TarError as error:
        raise DataError(
            f"{tar_uri} is not a complete tar ({error}): delete its stage's output and run that stage again"
        ) from error


def pictures(tar_uri: str) -> Iterator[tuple[str, bytes]]:
    """Stream a shard's pictures as (key, encoded bytes), in the tar's order.

    Raises:
        DataError: the tar is truncated or is none.
    """
    return ((member.key, member.read()) for member in members(tar_uri) if member.suffix == "jpg")


def packed(name: str, data: bytes) -> bytes:
    """One file as it stands in a tar: header, content, padding; equal files give equal bytes."""
    return b"%b%b%b" % (header(name, len(data)), data, bytes(-len(data) % _BLOCK))


def header(name: str, size: int) -> bytes:
    """A USTAR header that is the same in every run: no time, no owner.

    ``tarfile`` writes the same bytes, but takes a time that shows beside that of the pictures.

    Args:
        name: the member's name, at most 100 ASCII characters.
        size: the member's size in bytes, below 8 GiB.
    """
    label, digits = name.encode("ascii").ljust(100, b"\0"), b"%011o\0" % size
    checksum = _CHECKSUM + sum(label) + sum(digits)
    return b"%b%b%b%b%06o\0 %b" % (label, _BEFORE_SIZE, digits, _BEFORE_CHECKSUM, checksum, _REST)
