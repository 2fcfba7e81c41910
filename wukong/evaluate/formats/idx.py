"""Read IDX files, the arrays of MNIST and of sets like it."""

import gzip
import math
import struct
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from wukong.errors import DataError
from wukong.evaluate.published import reading_file

_UNSIGNED_BYTES = 8
_MOST_BYTES = 1 << 28  # five times the set that is read


def read(path: Path, dimensions: int) -> npt.NDArray[np.uint8]:
    """Read an array of unsigned bytes; a packed file (``.gz``) is unpacked.

    Args:
        path: the file.
        dimensions: number of dimensions that it must have.

    Raises:
        NotThereError: there is no such file.
        DataError: it is no such array, or is truncated.
    """
    with reading_file(path, f"{path} is no complete IDX file"):
        with path.open("rb") as packed:
            stream: Any = gzip.GzipFile(fileobj=packed) if path.suffix == ".gz" else packed
            zero, kind, found = struct.unpack(">HBB", stream.read(4))
            if (zero, kind, found) != (0, _UNSIGNED_BYTES, dimensions):
                raise DataError(f"{path} is no IDX file of bytes in {dimensions} dimensions: download it again")
            shape = struct.unpack(f">{dimensions}I", stream.read(4 * dimensions))
            if (size := math.prod(shape)) > _MOST_BYTES:
                raise ValueError(f"it says that {size:,} bytes follow")
            data = stream.read(size)
            stream.read(1)  # the checksum is behind the last byte
        return np.frombuffer(data, np.uint8).reshape(shape)
