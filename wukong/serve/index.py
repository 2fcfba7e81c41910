"""Encode a collection once and keep the vectors: made in a stream, block by block, and resumed after a kill.

An index is an output like that of a stage (``wukong.manifest``): its key is a digest of the model's and the data's
digests, finished pieces have markers, and the manifest is written last. It holds

- ``pictures/PIECE-NNN.safetensors``: float32 ``vectors`` [pictures, d], beside a Parquet file with one row a picture;
- ``captions/NNNNN.safetensors``: float32 ``vectors`` [captions, d] of the distinct captions, beside a Parquet file;
- for a token-wise model, ``tokens`` of the same names: float16 [items, tokens, d], and ``vectors`` is the mean of each
  item's tokens, for the first pass of a search;
- ``calibration.json``: see ``wukong.serve.calibration``.
"""

import json
import logging
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
import pyarrow as pa
import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from wukong import progress, storage
from wukong.errors import DataError
from wukong.evaluate.model import OwnModel
from wukong.manifest import Manifest, Part, Stage
from wukong.model.dual import Texts
from wukong.model.saved_model import open_picture
from wukong.serve.collection import Collection, Piece, Place
from wukong.serve.query import search_forms

log = logging.getLogger(__name__)

STAGE = "index"
_VERSION = 1
_BLOCK = 2_048
_BATCH_PICTURES, _BATCH_TEXTS = 32, 256
_CALIBRATION = "calibration.json"
_PLACES = pa.schema(
    [
        ("key", pa.string()),
        ("file", pa.string()),
        ("offset", pa.int64()),
        ("size", pa.int64()),
        ("captions", pa.list_(pa.string())),
    ]
)
_CAPTIONS = pa.schema([("caption", pa.string()), ("form", pa.string()), ("counted", pa.int32())])


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
        found = np.empty((len(wanted), *self.shape), np.float16)
        each = found[0].nbytes if len(wanted) else 0
        blocks = np.searchsorted(self._starts, wanted, side="right") - 1
        for place in np.argsort(wanted).tolist():
            block = int(blocks[place])
            offset = self._offsets[block] + (int(wanted[place]) - int(self._starts[block])) * each
            if os.preadv(self._files[block], [memoryview(found[place]).cast("B")], offset) != each:
                raise DataError("a file of token vectors is cut short: delete the index, it is made anew")
        return torch.from_numpy(found).float()

    def close(self) -> None:
        """Close the files."""
        while self._files:
            os.close(self._files.pop())


def build(collection: Collection, model: OwnModel, root: str) -> Manifest:
    """Encode what is not encoded yet, and write the manifest; a finished index is found and not made again.

    Args:
        collection: what is searched.
        model: the model with its image tower.
        root: URI under which indexes are kept.

    Raises:
        DataError: a shard is damaged; no picture can be decoded; the model's vectors are not finite.
        StorageError: the collection cannot be read, or the index cannot be written.
    """
    stage = Stage(root, STAGE, {"data": collection.digest, "model": model.digest}, version=_VERSION)
    if finished := stage.finished():
        return finished
    parts: list[Part] = []
    left_out = 0
    with progress.track("index", collection.pictures, "pictures") as advance:
        for piece in collection.pieces:
            record = stage.finished_task(piece.name)
            if record is None:
                record = _encode_piece(stage, collection, piece, model, advance)
                stage.commit_task(piece.name, record)
            else:
                advance(len(piece.captions))
            parts += map(Part.model_validate, record["parts"])
            left_out += record["left_out"]
    texts = _distinct(collection)
    pairs = list(texts.items())
    blocks = [pairs[start : start + _BLOCK] for start in range(0, len(pairs), _BLOCK)]
    with progress.track("index", len(texts), "captions") as advance:
        for number, block in enumerate(blocks):
            name = f"captions-{number:05d}"
            record = stage.finished_task(name)
            if record is None:
                record = {"parts": _encode_captions(stage, f"captions/{number:05d}", block, model)}
                stage.commit_task(name, record)
            advance(len(block))
            parts += map(Part.model_validate, record["parts"])
    pictures = sum(part.rows for part in parts if part.path.startswith("pictures/") and part.path.endswith(".parquet"))
    if not pictures:
        raise DataError(f"no picture of {collection.uri} can be decoded: give --data other pictures")
    counts = {"pictures": pictures, "captions": len(texts), "left_out": left_out}
    index = _open(stage.uri, parts, model)
    from wukong.serve import calibration

    found = calibration.calibrate(index, model)
    storage.write_json(stage.path(_CALIBRATION), found)
    parts.append(stage.describe(_CALIBRATION))
    return stage.commit(parts, counts=counts)


def open_index(found: Manifest, model: OwnModel) -> Index:
    """Open a finished index.

    Args:
        found: its manifest.
        model: the model that it was made with.

    Raises:
        DataError: the index is damaged.
    """
    return _open(found.uri, found.parts, model)


def _distinct(collection: Collection) -> dict[str, str]:
    """The distinct captions, in the order of the collection: the form that is searched, and the caption as shown."""
    found: dict[str, str] = {}
    for piece in collection.pieces:
        shown = [caption for captions in piece.captions.values() for caption in captions]
        for form, caption in zip(search_forms(shown), shown, strict=True):
            if form:
                found.setdefault(form, caption)
    return found


def _encode_piece(
    stage: Stage, collection: Collection, piece: Piece, model: OwnModel, advance: Callable[[int], None]
) -> dict[str, Any]:
    """Encode the pictures of a piece in blocks; those of a folder that cannot be decoded are left out and counted."""
    parts: list[Part] = []
    left_out = 0
    block: list[tuple[str, Place]] = []
    vectors: list[Tensor] = []
    batch: list[Any] = []

    def encode() -> None:
        if batch:
            found = model.saved.encode_image(batch, len(batch))
            vectors.append(found.half() if model.token_wise else found)
            batch.clear()

    def write() -> None:
        encode()
        if not block:
            return
        name = f"pictures/{piece.name}-{len(parts) // 2:03d}"
        rows = [(key, place.file, place.offset, place.size, piece.captions[key]) for key, place in block]
        table = pa.table([list(column) for column in zip(*rows, strict=True)], _PLACES)
        parts.extend(_written(stage, name, _means(torch.cat(vectors), model), table))
        block.clear()
        vectors.clear()

    for key, place, data in collection.read_piece(piece):
        advance(1)
        try:
            batch.append(open_picture(data, f"the picture {key}"))
        except DataError as error:
            if piece.files is None:
                raise
            log.warning("%s is left out: %s", place.file, error)
            left_out += 1
            continue
        block.append((key, place))
        if len(batch) == _BATCH_PICTURES:
            encode()
        if len(block) == _BLOCK:
            write()
    write()
    return {"parts": [part.model_dump(mode="json") for part in parts], "left_out": left_out}


def _encode_captions(
    stage: Stage, name: str, block: Sequence[tuple[str, str]], model: OwnModel
) -> list[dict[str, Any]]:
    forms = [form for form, _ in block]
    tokens = model.saved.tokenizer.max_tokens
    found, counted = [], []
    for start in range(0, len(forms), _BATCH_TEXTS):
        some = forms[start : start + _BATCH_TEXTS]
        texts = model.saved.encode_text(some, _BATCH_TEXTS, strict=False)
        counted += texts.counted.sum(1).tolist()
        if model.token_wise:
            padded = texts.vectors.new_zeros(len(some), tokens, texts.vectors.shape[2], dtype=torch.float16)
            padded[:, : texts.vectors.shape[1]] = texts.vectors * _not_padding(texts)
            found.append(padded)
        else:
            found.append(texts.vectors)
    table = pa.table([[caption for _, caption in block], forms, counted], _CAPTIONS)
    vectors = torch.cat(found)
    if model.token_wise:
        weight = _counted(torch.tensor(counted), tokens)[..., None]
        means = (vectors.float() * weight).sum(1) / weight.sum(1).clamp_min(1)
        stored = {"vectors": means, "tokens": vectors}
    else:
        stored = {"vectors": vectors}
    return [part.model_dump(mode="json") for part in _written(stage, name, stored, table)]


def _not_padding(texts: Texts) -> Tensor:
    """[texts, tokens, 1], 1 for [CLS] and the tokens that count, 0 for padding."""
    kept = texts.counted.clone()
    kept[:, 0] = True
    return kept[..., None]


def _counted(lengths: Tensor, tokens: int) -> Tensor:
    places = torch.arange(tokens)
    return (places > 0) & (places <= lengths[:, None])


def _means(vectors: Tensor, model: OwnModel) -> dict[str, Tensor]:
    if model.token_wise:
        return {"vectors": vectors.float().mean(1), "tokens": vectors}
    return {"vectors": vectors}


def _written(stage: Stage, name: str, tensors: dict[str, Tensor], table: pa.Table) -> list[Part]:
    """Write a block; its tokens are a file of their own, because they are read from the disk row by row."""
    parts = []
    for suffix, key in ("", "vectors"), (".tokens", "tokens"):
        if key in tensors:
            path = f"{name}{suffix}.safetensors"
            storage.write_bytes(stage.path(path), save_tensors({key: tensors[key].contiguous()}))
            parts.append(stage.describe(path, len(table)))
    storage.write_table(stage.path(f"{name}.parquet"), table)
    return [*parts, stage.describe(f"{name}.parquet", len(table))]


def _open(uri: str, parts: Sequence[Part], model: OwnModel) -> Index:
    width = model.saved.model.width
    pictures = _tables(uri, parts, "pictures/")
    captions = _tables(uri, parts, "captions/")
    row_of = {form: row for row, form in enumerate(captions["form"].to_pylist())} if captions else {}
    shown = pictures["captions"].to_pylist()
    forms = iter(search_forms([caption for each in shown for caption in each]))
    captions_of: list[tuple[int, ...]] = []
    pictures_of: list[list[int]] = [[] for _ in row_of]
    for picture, each in enumerate(shown):
        rows = tuple(dict.fromkeys(row_of[form] for form in (next(forms) for _ in each) if form))
        captions_of.append(rows)
        for row in rows:
            pictures_of[row].append(picture)
    calibrated = any(part.path == _CALIBRATION for part in parts)
    return Index(
        uri=uri,
        keys=tuple(pictures["key"].to_pylist()),
        places=tuple(map(Place, *(pictures[name].to_pylist() for name in ("file", "offset", "size")))),
        captions=tuple(captions["caption"].to_pylist()) if captions else (),
        captions_of=tuple(captions_of),
        pictures_of=tuple(map(tuple, pictures_of)),
        picture_vectors=_vectors(uri, parts, "pictures/", width),
        caption_vectors=_vectors(uri, parts, "captions/", width),
        picture_tokens=_token_files(uri, parts, "pictures/") if model.token_wise else None,
        caption_tokens=_token_files(uri, parts, "captions/") if model.token_wise else None,
        counted=torch.tensor(captions["counted"].to_pylist() if captions else [], dtype=torch.int64),
        calibration=storage.read_json(storage.join(uri, _CALIBRATION)) if calibrated else {},
    )


def _of_kind(parts: Sequence[Part], prefix: str, suffix: str) -> Iterator[Part]:
    """The parts of a kind in the order of the index, which is that of their paths."""
    mine = [part for part in parts if part.path.startswith(prefix) and part.path.endswith(suffix)]
    return iter(sorted(mine, key=lambda part: part.path.partition(".")[0]))


def _tables(uri: str, parts: Sequence[Part], prefix: str) -> pa.Table | None:
    tables = [storage.read_table(storage.join(uri, part.path)) for part in _of_kind(parts, prefix, ".parquet")]
    return pa.concat_tables(tables) if tables else None


def _vectors(uri: str, parts: Sequence[Part], prefix: str, width: int) -> Tensor:
    """Read all vectors into one matrix, float32 [items, d]; one block is in memory twice."""
    blocks = [part for part in _of_kind(parts, prefix, ".safetensors") if not part.path.endswith(".tokens.safetensors")]
    found = torch.empty(sum(part.rows for part in blocks), width)
    start = 0
    for part in blocks:
        found[start : start + part.rows] = load_tensors(storage.read_bytes(storage.join(uri, part.path)))["vectors"]
        start += part.rows
    return found


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
