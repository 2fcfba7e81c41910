"""Reading the shards that the filter stage writes: pairs from the Parquet file, pictures from the tar."""

import tarfile
from collections.abc import Iterator

from wukong import storage
from wukong.errors import DataError

_READ_BYTES = 1 << 20


def pictures(tar_uri: str) -> Iterator[tuple[str, bytes]]:
    """Stream a shard's pictures as (key, encoded bytes), in the tar's order.

    Raises:
        DataError: the tar is truncated or is none.
    """
    try:
        with storage.open_input(tar_uri) as stream, tarfile.open(fileobj=stream, mode="r|", bufsize=_READ_BYTES) as tar:
            for member in tar:
                key, _, suffix = member.name.rpartition(".")
                content = tar.extractfile(member) if suffix == "jpg" else None
                if content is not None:
                    yield key, content.read()
    except tarfile.TarError as error:
        raise DataError(
            f"{tar_uri} is not a complete tar ({error}): delete its stage's output and run that stage again"
        ) from error
