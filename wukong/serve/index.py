"""The stored vectors of a collection, in memory and on the disk; ``wukong.serve.encode`` makes them.

An index is an output like that of a stage (``wukong.store.manifest``): its key is a digest of the model's and the
data's digests, finished pieces have markers, and the manifest is written last. It holds

- ``pictures/PIECE-NNN.safetensors``: float32 ``vectors`` [pictures, d], beside a Parquet file with one row a picture;
- ``captions/NNNNN.safetensors``: float32 ``vectors`` [captions, d] of the distinct captions, beside a Parquet file;
- for a token-wise model, ``tokens`` of the same names: float16 [items, tokens, d], and ``vectors`` is the mean of each
  item's tokens, for the first pass of a search;
- ``calibration.json``: see ``wukong.serve.calibration``.
"""

import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
import pyarrow as pa
import torch
from safetensors.torch import load as load_tensors
from torch import Tensor

from wukong.errors import DataError
from wukong.evaluate.model import OwnModel
from wukong.model.dual import Texts
from wukong.serve.collection import Place
from wukong.serve.query import search_forms
from wukong.store import storage
from wukong.store.manifest import Manifest, Part

CALIBRATION = "calibration.json"
PLACES = pa.schema(
    [
        ("key", pa.string()),
        ("file", pa.string()),
        ("offset", pa.int64()),
        ("size", pa.int64()),
        ("captions", pa.list_(pa.string())),
    ]
)
CAPTIONS = pa.schema([("caption", pa.string()), ("form", pa.string()), ("counted", pa.int32())])


@dataclass(frozen=True)
class Index:
    """An index in memory; of a token-wise model the token vectors stay on the disk.

    Attributes:
        uri: where it lies.
        keys: the key of each picture.
        places: where each picture's file is.
        captions: the distinct captions, as they are shown.
        captions_of: for each picture the rows of its captions.
        pictures_of: for each caption the rows of its pictures.
        picture_vectors: float32 [pictures, d].
        caption_vectors: float32 [captions, d].
        picture_tokens: the token vectors of pictures, [pictures, tokens, d]; None for a global model.
        caption_tokens: the token vectors of captions; None for a global model.
        counted: int64 [captions], how many of a caption's tokens count, from its second on.
        calibration: what ``calibration.json`` holds; empty where there is none.
        columns: what pictures are filtered by, as far as the data have it, each [pictures]: ``source``, ``width``,
            ``height``, ``date`` (days since 1970, -1 where it is unknown), ``licence``, and ``group``, the row of the
            first of its near-duplicates in the collection.
    """

    uri: str
    keys: tuple[str, ...]
    places: tuple[Place, ...]
    captions: tuple[str, ...]
    captions_of: tuple[tuple[int, ...], ...]
    pictures_of: tuple[tuple[int, ...], ...]
    picture_vectors: Tensor
    caption_vectors: Tensor
    picture_tokens: "TokenVectors | None"
    caption_tokens: "TokenVectors | None"
    counted: Tensor
    calibration: dict[str, Any] = field(default_factory=dict)
    columns: Mapping[str, Any] = field(default_factory=dict)

    def caption_texts(self, rows: Tensor) -> Texts:
        """Read the token vectors of some captions, float32 [rows, tokens, d], and which of them count."""
        if self.caption_tokens is None:
            raise ValueError("a global model has one vector for a caption")
        vectors = self.caption_tokens.read(rows)
        places = torch.arange(vectors.shape[1])
        return Texts(vectors, (places > 0) & (places <= self.counted[rows][:, None]))


class TokenVectors:
    """Token vectors in files, float16 [items, tokens, d]. Rows are read from the disk; no page of it is mapped.

    Args:
        files: the files in the order of the items, each with a tensor ``tokens``.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self._files: list[int] = []
        starts, offsets = [0], []
        self.shape: tuple[int, int] = (0, 0)
        for file in files:
            descriptor = os.open(file, os.O_RDONLY)
            self._files.append(descriptor)
            # The format of safetensors: the header's length in 8 bytes, the header in JSON, the data.
            length = int.from_bytes(os.pread(descriptor, 8, 0), "little")
            tensor = json.loads(os.pread(descriptor, length, 8))["tokens"]
            if tensor["dtype"] != "F16":
                raise DataError(f"{file} holds tokens of type {tensor['dtype']}: delete the index, it is made anew")
            rows, *shape = tensor["shape"]
            self.shape = (shape[0], shape[1])
            starts.append(starts[-1] + rows)
            offsets.append(8 + length + tensor["data_offsets"][0])
        self._starts, self._offsets = np.array(starts), offsets

    def __len__(self) -> int:
        return int(self._starts[-1])

    def read(self, rows: Tensor) -> Tensor:
        """Read some items, float32 [rows, tokens, d]."""
        wanted = rows.numpy()
        vectors = np.empty((len(wanted), *self.shape), np.float16)
        each = vectors[0].nbytes if len(wanted) else 0
        blocks = np.searchsorted(self._starts, wanted, side="right") - 1
        for row in np.argsort(wanted).tolist():
            block = int(blocks[row])
            offset = self._offsets[block] + (int(wanted[row]) - int(self._starts[block])) * each
            if os.preadv(self._files[block], [memoryview(vectors[row]).cast("B")], offset) != each:
                raise DataError("a file of token vectors is cut short: delete the index, it is made anew")
        return torch.from_numpy(vectors).float()

    def close(self) -> None:
        """Close the files."""
        while self._files:
            os.close(self._files.pop())


def open_index(found: Manifest, model: OwnModel) -> Index:
    """Open a finished index.

    Args:
        found: its manifest.
        model: the model that it was made with.

    Raises:
        DataError: the index is damaged.
    """
    return open_parts(found.uri, found.parts, model)


def calibration_of(found: Manifest) -> dict[str, Any]:
    """Read the calibration of a finished index; empty where there is none."""
    return _calibration(found.uri, found.parts)


def open_parts(uri: str, parts: Sequence[Part], model: OwnModel) -> Index:
    """Open an index whose manifest is not written yet, by its parts; see ``open_index``."""
    width = model.saved.model.width
    pictures = _tables(uri, parts, "pictures/", PLACES)
    captions = _tables(uri, parts, "captions/", CAPTIONS)
    row_of = {form: row for row, form in enumerate(captions["form"].to_pylist())}
    shown = pictures["captions"].to_pylist()
    forms = iter(search_forms([caption for each in shown for caption in each]))
    captions_of: list[tuple[int, ...]] = []
    pictures_of: list[list[int]] = [[] for _ in row_of]
    for picture, each in enumerate(shown):
        rows = tuple(dict.fromkeys(row_of[form] for form in (next(forms) for _ in each) if form))
        captions_of.append(rows)
        for row in rows:
            pictures_of[row].append(picture)
    return Index(
        uri=uri,
        keys=tuple(pictures["key"].to_pylist()),
        places=tuple(map(Place, *(pictures[name].to_pylist() for name in ("file", "offset", "size")))),
        captions=tuple(captions["caption"].to_pylist()),
        captions_of=tuple(captions_of),
        pictures_of=tuple(map(tuple, pictures_of)),
        picture_vectors=_vectors(uri, parts, "pictures/", width),
        caption_vectors=_vectors(uri, parts, "captions/", width),
        picture_tokens=_token_files(uri, parts, "pictures/") if model.token_wise else None,
        caption_tokens=_token_files(uri, parts, "captions/") if model.token_wise else None,
        counted=torch.tensor(captions["counted"].to_pylist(), dtype=torch.int64),
        calibration=_calibration(uri, parts),
    )


def _calibration(uri: str, parts: Sequence[Part]) -> dict[str, Any]:
    there = any(part.path == CALIBRATION for part in parts)
    return storage.read_json(storage.join(uri, CALIBRATION)) if there else {}


def _of_kind(parts: Sequence[Part], prefix: str, suffix: str) -> Iterator[Part]:
    """The parts of a kind in the order of the index, which is that of their paths."""
    mine = [part for part in parts if part.path.startswith(prefix) and part.path.endswith(suffix)]
    return iter(sorted(mine, key=lambda part: part.path.partition(".")[0]))


def _tables(uri: str, parts: Sequence[Part], prefix: str, schema: pa.Schema) -> pa.Table:
    tables = [storage.read_table(storage.join(uri, part.path)) for part in _of_kind(parts, prefix, ".parquet")]
    return pa.concat_tables([schema.empty_table(), *tables])


def _vectors(uri: str, parts: Sequence[Part], prefix: str, width: int) -> Tensor:
    """Read all vectors into one matrix, float32 [items, d]; one block is in memory twice."""
    blocks = [part for part in _of_kind(parts, prefix, ".safetensors") if not part.path.endswith(".tokens.safetensors")]
    vectors = torch.empty(sum(part.rows for part in blocks), width)
    start = 0
    for part in blocks:
        vectors[start : start + part.rows] = load_tensors(storage.read_bytes(storage.join(uri, part.path)))["vectors"]
        start += part.rows
    return vectors


def _token_files(uri: str, parts: Sequence[Part], prefix: str) -> TokenVectors:
    """Open the files of token vectors; those in an object store are copied to this machine's temporary folder first."""
    blocks = list(_of_kind(parts, prefix, ".tokens.safetensors"))
    if urlsplit(uri).scheme == "file":
        return TokenVectors([Path(unquote(urlsplit(storage.join(uri, part.path)).path)) for part in blocks])
    with tempfile.TemporaryDirectory() as scratch:
        # The files stay open after the folder is gone.
        return TokenVectors(
            [
                storage.download(storage.join(uri, part.path), Path(scratch) / f"{number}.safetensors")
                for number, part in enumerate(blocks)
            ]
        )
