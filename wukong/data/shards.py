"""Read and write the tars of shards, one file at a time."""

import fnmatch
import io
import re
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import PurePosixPath
from typing import IO

from wukong.errors import DataError
from wukong.store import damage, storage
from wukong.store.manifest import Manifest

_READ_BYTES = 1 << 20
_BLOCK = tarfile.BLOCKSIZE

_EMPTY = bytes(_BLOCK)
_EXTENSIONS = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)

END = 2 * _EMPTY
"""The bytes after the last file of a tar."""

# Header fields that are the same for all members (POSIX 1003.1, ustar): mode, owner, group; time; the rest.
_BEFORE_SIZE = b"0000444\0" + b"0000000\0" * 2
_BEFORE_CHECKSUM = b"00000000000\0"
_REST = b"0" + bytes(100) + b"ustar\x0000" + bytes(64 + 16 + 155 + 12)
_CHECKSUM = sum(_BEFORE_SIZE) + sum(_BEFORE_CHECKSUM) + 8 * ord(" ") + sum(_REST)


@dataclass(frozen=True)
class Member:
    """One file of a tar.

    Attributes:
        key: key of the pair that the file belongs to.
        suffix: the type of the content: ``jpg``, ``json`` or ``txt``.
        offset: offset of the content in the tar, in bytes.
        size: size of the content in bytes.
        end: where the next file begins, in bytes.
        read: returns the content; call it before the next member is requested. Raises DataError if the tar ends in it.
    """

    key: str
    suffix: str
    offset: int
    size: int
    end: int
    read: Callable[[], bytes]


def names_of(filtered: Manifest, split: str) -> list[str]:
    """Return the names of a split's shards that have pairs, for instance ``00000``.

    Args:
        filtered: manifest of the filter stage.
        split: ``train`` or a hold-out's name.
    """
    return [PurePosixPath(part.path).stem for part in filtered.parts.below(f"{split}/", ".parquet") if part.rows]


def members(tar_uri: str, start: int = 0, read_bytes: int = _READ_BYTES, sha256: str = "") -> Iterator[Member]:
    """Iterate over the files of a tar; it is read once, in order, up to its end.

    Args:
        tar_uri: URI of the tar.
        start: where to begin, in bytes: 0, or the ``end`` of a member.
        read_bytes: bytes of one request.
        sha256: digest that the file must have, if it is read from its start; empty for any.

    Raises:
        DataError: the file is truncated or is not a tar, or has headers that this project does not write.
        StorageError: at its end: it was altered.
    """
    try:
        with storage.open_input(tar_uri, sha256) as stream:
            stream.seek(start)
            buffered = io.BufferedReader(stream, read_bytes)  # type: ignore[type-var]
            end = start
            while (block := buffered.read(_BLOCK)) != _EMPTY:
                name, size, is_file = _parsed(block)
                offset, end = end + _BLOCK, end + _BLOCK + -(-size // _BLOCK) * _BLOCK
                if is_file:
                    key, _, suffix = name.rpartition(".")
                    yield Member(key, suffix, offset, size, end, partial(_whole, buffered, offset, size, name, tar_uri))
                buffered.seek(end)
            # A tar truncated between two members can be recognised only by the missing two empty blocks at its end.
            if stream.seek(0, io.SEEK_END) < end + len(END):
                raise tarfile.ReadError("its end is missing")
    except tarfile.TarError as error:
        raise _incomplete(tar_uri, str(error)) from error


def _parsed(block: bytes) -> tuple[str, int, bool]:
    """Return a header's name and size, and whether it is that of a regular file."""
    try:
        name, size = block[:100].rstrip(b"\0").decode("ascii"), int(block[124:135], 8)
        if block == header(name, size):  # of this project's own, most of all: tarfile takes five times as long
            return name, size, True
    except ValueError:
        pass
    entry = tarfile.TarInfo.frombuf(block, "ascii", "strict")
    if entry.type in _EXTENSIONS:
        raise tarfile.ReadError(f"a header of the type {entry.type.decode()!r}, which the stages do not write")
    return entry.name, entry.size, entry.isreg()


def _whole(stream: IO[bytes], offset: int, size: int, name: str, tar_uri: str) -> bytes:
    """Return the content of a regular file, all of it."""
    stream.seek(offset)
    data = stream.read(size)
    if len(data) < size:
        raise _incomplete(tar_uri, f"{name} has {len(data)} of its {size} bytes")
    return data


def _incomplete(tar_uri: str, why: str) -> DataError:
    return DataError(f"{tar_uri} is not a complete tar ({why}): {damage.remedy(tar_uri)}")


def pictures(tar_uri: str, sha256: str = "") -> Iterator[tuple[str, bytes]]:
    """Iterate over the images of a shard as (key, bytes of the image file), in the tar's order; see ``members``."""
    return ((member.key, member.read()) for member in members(tar_uri, sha256=sha256) if member.suffix == "jpg")


def packed(name: str, data: bytes) -> bytes:
    """Return one file as in a tar: header, content and padding. Equal files give equal bytes."""
    return b"%b%b%b" % (header(name, len(data)), data, bytes(-len(data) % _BLOCK))


def header(name: str, size: int) -> bytes:
    """Return a USTAR header without time and owner, so that it is the same in every run.

    ``tarfile`` writes the same bytes, but its time would be noticeable beside that for the images.

    Args:
        name: name of the member, at most 100 ASCII characters.
        size: size of the member in bytes, below 8 GiB.
    """
    label, digits = name.encode("ascii").ljust(100, b"\0"), b"%011o\0" % size
    checksum = _CHECKSUM + sum(label) + sum(digits)
    return b"%b%b%b%b%06o\0 %b" % (label, _BEFORE_SIZE, digits, _BEFORE_CHECKSUM, checksum, _REST)


def matching(urls: Sequence[str], patterns: Sequence[str]) -> list[bool]:
    """Return, for each URL, whether it matches one of the shell patterns."""
    match = re.compile("|".join(map(fnmatch.translate, patterns))).match
    return [match(url) is not None for url in urls]
