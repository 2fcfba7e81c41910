"""Reading shards: pairs from the Parquet file, pictures and the rest from the tar, a member at a time."""

import io
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from wukong import storage
from wukong.errors import DataError

_READ_BYTES = 1 << 20
_BLOCK = tarfile.BLOCKSIZE


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
            if stream.seek(0, io.SEEK_END) < end + 2 * _BLOCK:
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
