"""Files of image features. They are computed once for each image and view, and read in every epoch.

A file holds one view of one shard. ``features`` is [images, width] or [images, tokens, width], in the order of the
shard's table; the keys are in the metadata. With ``dtype: float16`` that is all. With ``dtype: int8`` a vector x is
stored as round(127 x / max|x|), and ``scales``, float32 [images] or [images, tokens], holds max|x| / 127. A component
is then off by at most half a scale. ``crc32`` in the metadata has for each image eight hex digits: the CRC-32 of its
scales, if any, and its features. So rows are checked when they are read, and no others need to be read for it.
"""

import json
import math
import zlib
from collections.abc import Sequence
from typing import IO, NamedTuple

import torch
from torch import Tensor

from wukong.config.features import Dtype
from wukong.errors import DataError
from wukong.store import damage, storage

_LARGEST = 127
_DTYPES = {"F16": torch.float16, "F32": torch.float32, "I8": torch.int8}


class File(NamedTuple):
    """A file of features to compute.

    Attributes:
        tar: URI of the shard's tar.
        view: number of the view.
        target: the URI to write.
        tar_sha256: digest of the tar; empty where nothing says it.
        table_sha256: likewise, of the shard's table.
    """

    tar: str
    view: int
    target: str
    tar_sha256: str = ""
    table_sha256: str = ""


def path_of(split: str, shard: str, view: int) -> str:
    """Return the path of the features of one view of one shard, relative to the stage's output."""
    return f"{split}/{shard}.view{view:02d}.safetensors"


def write(uri: str, keys: Sequence[str], values: Tensor, dtype: Dtype = "float16") -> None:
    """Write one file of features.

    Args:
        uri: URI of the file.
        keys: keys of the images.
        values: features of the images, float16 [images, ...].
        dtype: type of the numbers that are stored.

    Raises:
        DataError: a feature is not finite.
    """
    with storage.open_output(uri) as stream:
        target = Target(stream, keys, dtype)
        target.write(values, uri)
        target.finish()


def table_of(file: File) -> str:
    """Return the URI of the table of the shard whose features a file holds."""
    return f"{file.tar.removesuffix('.tar')}.parquet"


def differs(file: File) -> DataError:
    """Return the error that a shard's tar and table hold other pairs."""
    return DataError(f"{file.tar} has other pictures than {table_of(file)}: {damage.remedy(file.tar)}")


class Target:
    """A file of features that is written piece by piece, as the safetensors library would write it.

    Args:
        stream: the file, opened for writing; it can seek.
        keys: keys of all images.
        dtype: type of the numbers that are stored.
    """

    def __init__(self, stream: IO[bytes], keys: Sequence[str], dtype: Dtype) -> None:
        self._stream, self._keys, self._dtype = stream, keys, dtype
        self._scales = self._features = 0
        self._shape = torch.Size()
        self._sums: list[int] = []

    def write(self, features: Tensor, where: str) -> None:
        """Append the features of the next images, float16 [images, ...]; ``where`` is for messages."""
        if not torch.isfinite(features).all():
            raise DataError(f"the image encoder's output for {where} is not finite: its weights are damaged")
        if not self._features:
            self._shape = features.shape[1:]
            header, sizes = self._header()
            self._stream.write(header)
            self._scales = len(header)
            self._features = len(header) + sum(sizes[:-1])
        parts = []
        if self._dtype == "int8":
            features, scales = quantise(features)
            parts.append(_bytes(scales))
            self._scales = self._write(parts[-1], self._scales)
        parts.append(_bytes(features))
        self._features = self._write(parts[-1], self._features)
        self._sums += _sums(parts, len(features))

    def finish(self) -> None:
        """Write what is known when all images are written: their checksums."""
        self._stream.seek(0)
        self._stream.write(self._header()[0])

    def _header(self) -> tuple[bytes, list[int]]:
        """Return the header, which is as long before all checksums are known, and the bytes of each tensor."""
        images = len(self._keys)
        vectors = images * self._shape[:-1].numel()
        tensors: list[tuple[str, str, list[int], int]] = []
        if self._dtype == "int8":
            tensors.append(("scales", "F32", [images, *self._shape[:-1]], 4 * vectors))
        each = 1 if self._dtype == "int8" else 2
        shape = [images, *self._shape]
        tensors.append(("features", "I8" if each == 1 else "F16", shape, each * vectors * self._shape[-1]))
        sums = "".join(f"{each:08x}" for each in (self._sums + [0] * images)[:images])
        header: dict[str, object] = {"__metadata__": {"crc32": sums, "keys": json.dumps(self._keys)}}
        end = 0
        for name, dtype, size, count in tensors:
            header[name] = {"dtype": dtype, "shape": size, "data_offsets": [end, end + count]}
            end += count
        encoded = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        encoded += b" " * (-len(encoded) % 8)
        return len(encoded).to_bytes(8, "little") + encoded, [count for *_, count in tensors]

    def _write(self, values: bytes, start: int) -> int:
        self._stream.seek(start)
        return start + self._stream.write(values)


def _bytes(values: Tensor) -> bytes:
    return values.contiguous().numpy().tobytes()


def _sums(parts: Sequence[bytes | bytearray], images: int) -> list[int]:
    """Return the CRC-32 of each image's bytes, which are as many in each of some parts."""
    sums = [0] * images
    for part in parts:
        each, view = len(part) // max(images, 1), memoryview(part)
        sums = [zlib.crc32(view[row * each : (row + 1) * each], known) for row, known in enumerate(sums)]
    return sums


def quantise(features: Tensor) -> tuple[Tensor, Tensor]:
    """Return features, [..., width], as int8 [..., width], and the scale of each vector, float32 [...]."""
    values = features.float()
    scales = values.abs().amax(-1) / _LARGEST
    divided = values / scales.where(scales > 0, torch.ones(()))[..., None]
    return divided.round().to(torch.int8), scales


def dequantise(stored: Tensor, scales: Tensor) -> Tensor:
    """Return features, float16 [..., width], from what ``quantise`` returned."""
    return (stored.float() * scales[..., None]).half()


def read(uri: str) -> tuple[list[str], Tensor]:
    """Read one file of features: the images' keys and float16 [images, ...].

    Raises:
        DataError: the file is damaged.
    """
    return read_rows(uri, 0, None)


def read_rows(uri: str, start: int, stop: int | None, at_least: int = 0) -> tuple[list[str], Tensor]:
    """Read consecutive rows of a file of features, and no other rows: their keys and float16 [rows, ...].

    Args:
        uri: URI of the file.
        start: the first row.
        stop: the row after the last; None for all.
        at_least: bytes in memory to fill where the file has more rows than those, which are then read too.

    Raises:
        DataError: the file is damaged, a row that is read was altered, or it has fewer rows.
    """
    try:
        with storage.open_input(uri) as stream:
            return _checked_rows(stream, start, stop, at_least)
    except (ArithmeticError, LookupError, TypeError, ValueError, RuntimeError, MemoryError) as error:
        raise DataError(f"{uri} is damaged ({error}): {damage.remedy(uri)}") from error


def _checked_rows(stream: IO[bytes], start: int, stop: int | None, at_least: int) -> tuple[list[str], Tensor]:
    """Read rows; raise ValueError, or what follows from a header of any content, if they are not what was written."""
    size = stream.seek(0, 2)
    stream.seek(0)
    length = int.from_bytes(stream.read(8), "little")
    if 8 + length > size:
        raise ValueError("it is cut short")
    header = json.loads(stream.read(length))
    rows, sums = header["features"]["shape"][0], header["__metadata__"]["crc32"]
    keys = json.loads(header["__metadata__"]["keys"])
    if not len(keys) == rows == len(sums) // 8 > 0:
        raise ValueError(f"it has {rows} rows, {len(keys)} keys and {len(sums) // 8} checksums")
    row_bytes = 2 * math.prod(header["features"]["shape"][1:])
    stop = rows if stop is None else max(stop, min(rows, start + at_least // row_bytes))
    if stop > rows:
        raise ValueError(f"it has {rows} rows, and row {stop - 1} is asked for")
    names = [name for name in ("scales", "features") if name in header]
    stored = [_rows(stream, header[name], 8 + length, size, start, stop) for name in names]
    known = bytes.fromhex(sums[8 * start : 8 * stop])
    if known != b"".join(each.to_bytes(4, "big") for each in _sums(stored, stop - start)):
        raise ValueError(f"some of the rows {start} to {stop - 1} were altered")
    values = _tensor(stored[-1], header["features"])
    if "scales" in header:
        values = dequantise(values, _tensor(stored[0], header["scales"]))
    return keys[start:stop], values


def _rows(stream: IO[bytes], tensor: dict[str, list[int]], data: int, size: int, start: int, stop: int) -> bytearray:
    """Read rows of one tensor of a safetensors file of ``size`` bytes, whose data begins at ``data``."""
    begin, end = tensor["data_offsets"]
    if not 0 <= begin <= end <= size - data:
        raise ValueError("it is cut short")
    row_bytes = (end - begin) // tensor["shape"][0]
    stream.seek(data + begin + start * row_bytes)
    rows = bytearray(stream.read((stop - start) * row_bytes))
    if len(rows) < (stop - start) * row_bytes:
        raise ValueError("it is cut short")
    return rows


def _tensor(stored: bytearray, tensor: dict[str, list[int]]) -> Tensor:
    return torch.frombuffer(stored, dtype=_DTYPES[str(tensor["dtype"])]).reshape(-1, *tensor["shape"][1:])


def read_views(prefix: str, split: str, shard_names: Sequence[str], views: Sequence[int]) -> tuple[list[str], Tensor]:
    """Read several views of several shards.

    Returns:
        The images' keys, and their features, float16 [views, images, ...].

    Raises:
        DataError: two views of a shard do not hold the same images.
    """
    keys: list[str] = []
    by_shard = []
    for shard in shard_names:
        loaded = [read(storage.join(prefix, path_of(split, shard, view))) for view in views]
        if any(other != loaded[0][0] for other, _ in loaded):
            one = storage.join(prefix, path_of(split, shard, views[0]))
            raise DataError(f"the views of {split}/{shard} differ in their pictures: {damage.remedy(one)}")
        keys += loaded[0][0]
        by_shard.append(torch.stack([features for _, features in loaded]))
    return keys, torch.cat(by_shard, 1)
