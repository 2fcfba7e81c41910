"""Read IDX files, the arrays of MNIST and of sets like it."""

import gzip
import struct
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt

from wukong.errors import DataError
from wukong.evaluate.published import NotThereError

_UNSIGNED_BYTES = 8


def read(path: Path, dimensions: int) -> npt.NDArray[np.uint8]:
    """Read an array of unsigned bytes; a packed file (``.gz``) is unpacked in memory.

    Args:
        path: the file.
        dimensions: number of dimensions that it must have.

    Raises:
        NotThereError: there is no such file.
        DataError: it is no such array, or is truncated.
    """
    try:
        data = path.read_bytes()
        if path.suffix == ".gz":
            data = gzip.decompress(data)
        zero, kind, found = struct.unpack_from(">HBB", data)
        if (zero, kind, found) != (0, _UNSIGNED_BYTES, dimensions):
            raise DataError(f"{path} is no IDX file of bytes in {dimensions} dimensions: download it again")
        shape = struct.unpack_from(f">{dimensions}I", data, 4)
        return np.frombuffer(data, np.uint8, int(np.prod(shape)), 4 + 4 * dimensions).reshape(shape)
    except FileNotFoundError as error:
        raise NotThereError(f"{path} is not there") from error
    except (OSError, EOFError, zlib.error, struct.error, ValueError) as error:
        raise DataError(f"{path} is no complete IDX file ({error}): download it again") from error
