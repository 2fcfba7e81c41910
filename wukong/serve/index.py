"""An index of a collection on the disk, in shards of some million pictures; ``wukong.serve.encode`` makes it.

An index is an output like that of a stage (``wukong.store.manifest``): its key is a digest of the model's and the
data's digests, and its manifest is written last. It holds ``collection.json``, what it was made of, ``shards.json``,
the keys of its shards (``wukong.publish.superseded``), and ``calibration.json`` (``wukong.serve.calibration``).

A shard is an output too, ``index-shard/KEY`` beside the indexes. Its key is a digest of the model's and of the digests
of the pieces of the collection that it is of. So an index of a collection that has grown names the earlier shards, and
makes those that are new. A shard holds, of its pictures and of their distinct captions,

- ``pictures.f16``, ``captions.f16``: vectors, float16 [items, d] (``wukong.serve.vectors``); of a token-wise model the
  mean of each item's tokens, for the first pass of a search;
- ``pictures.arrow``, ``captions.arrow``: what is known of each, a table that is mapped and looked up by row;
- ``pictures.codes.faiss``, ``captions.codes.faiss``, where there are many: candidates (``wukong.serve.approximate``);
- ``tokens/``, ``caption-tokens/``, for a token-wise model: float16 [items, tokens, d] in blocks;
- ``recall.arrow``, ``pieces.json``: see ``wukong.serve.recall`` and ``wukong.serve.earlier``.
"""

import bisect
import json
import os
import tempfile
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar
from urllib.parse import unquote, urlsplit

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from wukong.errors import DataError, StorageError
from wukong.evaluate.model import OwnModel
from wukong.model.dual import Texts
from wukong.publish import superseded
from wukong.serve.approximate import Candidates
from wukong.serve.collection import Place
from wukong.serve.vectors import Vectors
from wukong.store import damage, manifest, storage
from wukong.store.manifest import Manifest, Part

Row = TypeVar("Row")
Rows = npt.NDArray[np.int32]

CALIBRATION = "calibration.json"
RECALL = "recall.arrow"
PICTURES = pa.schema(
    [
        ("key", pa.string()),
        ("file", pa.string()),
        ("offset", pa.int64()),
        ("size", pa.int64()),
        ("captions", pa.list_(pa.int32())),
        ("digest", pa.binary(16)),
        ("by_key", pa.int32()),
        ("source", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("date", pa.int32()),
        ("licence", pa.string()),
        ("group", pa.int64()),
    ]
)
"""``captions`` are rows of captions; ``by_key`` has in its n-th row the row of the n-th key, as keys are sorted."""
CAPTIONS = pa.schema(
    [("caption", pa.string()), ("form", pa.string()), ("counted", pa.int32()), ("pictures", pa.list_(pa.int32()))]
)
"""``form`` is what the model reads of a caption, ``counted`` how many of its tokens count, ``pictures`` are rows."""
FILTERS = ("source", "width", "height", "date", "licence", "group")


class Looked(Sequence[Row], Generic[Row]):
    """A column, or several of them, of a table that is mapped: rows are read when they are asked for.

    Args:
        columns: the columns.
        made: makes a row of their values.
    """

    def __init__(self, columns: Sequence[pa.ChunkedArray], made: Callable[..., Row]) -> None:
        self._columns, self._made = columns, made

    def __len__(self) -> int:
        return len(self._columns[0])

    def __getitem__(self, row: Any) -> Any:
        """Return one row, or a list of those of a slice."""
        if isinstance(row, slice):
            return [self[each] for each in range(*row.indices(len(self)))]
        place = range(len(self))[row]
        return self._made(*(column[place].as_py() for column in self._columns))

    def values(self, rows: pa.Array) -> Rows:
        """The values of some rows of a column of lists, one after the other."""
        values: Rows = pc.list_flatten(pc.take(self._columns[0], rows)).to_numpy()
        return values


@dataclass(frozen=True)
class Index:
    """One shard of an index, or all of a small one. Tables, vectors and tokens stay on the disk.

    Attributes:
        uri: where the index lies.
        keys: the key of each picture.
        places: where each picture's file is.
        captions: the distinct captions, as they are shown.
        captions_of: for each picture the rows of its captions.
        pictures_of: for each caption the rows of its pictures.
        picture_vectors: the vector of each picture.
        caption_vectors: the vector of each caption.
        picture_candidates: finds candidates among many pictures; None where all are compared.
        caption_candidates: the same for captions.
        picture_tokens: the token vectors of pictures, [pictures, tokens, d]; None for a global model.
        caption_tokens: the token vectors of captions; None for a global model.
        counted: int64 [captions], how many of a caption's tokens count, from its second on.
        columns: what pictures are filtered by, as far as it is known: ``source`` and ``licence``, Arrow's strings;
            ``width`` and ``height``, ``date`` in days since 1970, int32, -1 where it is not known; ``group``, int64,
            the same for pictures that are nearly the same, in all shards, -1 where it is not known.
        calibration: what ``calibration.json`` holds; empty where there is none.
        questions: int32, rows of captions whose best pictures are known (``wukong.serve.recall``).
        answers: int32 [questions, 10], the rows of these pictures, the best first, -1 where there are fewer.
        by_key: int32 [pictures], their rows in the order of their keys.
        digests: what identifies the content of each picture's file; null where it is not known.
        forms: what the model reads of each caption.
        shared: int32 [captions], how many pictures have each.
    """

    uri: str
    keys: Sequence[str]
    places: Sequence[Place]
    captions: Sequence[str]
    captions_of: Looked[tuple[int, ...]]
    pictures_of: Looked[tuple[int, ...]]
    picture_vectors: Vectors
    caption_vectors: Vectors
    picture_candidates: Candidates | None
    caption_candidates: Candidates | None
    picture_tokens: "TokenVectors | None"
    caption_tokens: "TokenVectors | None"
    counted: Tensor
    columns: Mapping[str, Any]
    calibration: dict[str, Any]
    questions: Rows
    answers: Rows
    by_key: Rows
    digests: pa.ChunkedArray
    forms: pa.ChunkedArray
    shared: Rows

    def row_of(self, key: str) -> int | None:
        """Return the row of the picture that has a key; None if there is none."""
        place = bisect.bisect_left(self.by_key, key, key=lambda row: self.keys[int(row)])
        row = int(self.by_key[place]) if place < len(self.by_key) else None
        return row if row is not None and self.keys[row] == key else None

    def frequent(self, count: int) -> list[int]:
        """Return rows of the captions that most pictures have, the most frequent first."""
        count = min(count, len(self.shared))
        most = np.argpartition(-self.shared, count - 1)[:count] if count else np.empty(0, np.int64)
        return sorted(most.tolist(), key=lambda row: (-int(self.shared[row]), row))

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
            weakref.finalize(self, os.close, descriptor)
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


def shards(found: Manifest) -> int:
    """Return how many shards a finished index has, each of which ``open_index`` opens."""
    return len(_keys(found))


def _keys(found: Manifest) -> Sequence[str]:
    return superseded.listed(found.uri, found.parts.sha256(superseded.SHARDS)).keys


def open_index(found: Manifest, model: OwnModel, shard: int = 0) -> Index:
    """Open a shard of a finished index.

    Args:
        found: the index's manifest.
        model: the model that it was made with.
        shard: the shard's number.

    Raises:
        DataError: the index is of another model; the shard is missing or damaged.
        ConfigError: it has so many pictures that FAISS is needed, which is not installed.
    """
    if found.config.get("model") != model.digest:
        raise DataError(
            f"the index at {found.uri} was made with another model than {model.name}: its vectors cannot be compared "
            "with those of this model. Serve that model, or make an index with this one: `wukong search --encode`"
        )
    keys = _keys(found)
    uri = superseded.shard_uri(found.uri, keys[shard])
    named = f"shard {shard + 1} of {len(keys)} of the index at {found.uri}"
    try:
        made = manifest.load(uri)
    except (DataError, StorageError) as error:
        raise DataError(
            f"{named} is missing or damaged ({error}). Delete {storage.join(found.uri, 'manifest.json')}: `wukong "
            "search --encode` makes this shard anew and keeps the others"
        ) from error
    calibration = calibration_of(found)
    try:
        return open_shard(made.model_copy(update={"uri": uri}), found.uri, calibration)
    except (OSError, ValueError, pa.ArrowException, DataError, StorageError) as error:
        raise DataError(
            f"{named} is damaged: {error}. Delete {uri} and {storage.join(found.uri, 'manifest.json')}: `wukong search "
            "--encode` makes this shard anew and keeps the others"
        ) from error


def calibration_of(found: Manifest) -> dict[str, Any]:
    """Read the calibration of an index; empty where there is none."""
    return storage.read_json(*found.file(CALIBRATION)) if found.parts.has(CALIBRATION) else {}


def open_shard(
    made: Manifest, uri: str, calibration: dict[str, Any] | None = None, *, is_compared: bool = False
) -> Index:
    """Open a shard by its own manifest.

    Args:
        made: its manifest, with ``uri`` where it lies.
        uri: URI of the index.
        calibration: that of the index.
        is_compared: whether files on this machine's disks are read as a whole and compared with the manifest, as those
            in an object store are when they are copied; else their sizes are.

    Raises:
        DataError: it is damaged.
        StorageError: a file cannot be read, or was altered.
    """
    width, token_wise = int(made.config["width"]), bool(made.config["token_wise"])
    effort = made.metrics
    with ExitStack() as stack:
        local = _Local(made, stack, is_compared)
        pictures, captions = table_of(local.file("pictures.arrow")), table_of(local.file("captions.arrow"))
        recall = table_of(local.file(RECALL)) if local.has(RECALL) else None
        candidates = {
            name: Candidates(
                local.file(f"{name}.codes.faiss"),
                len(table),
                *(int(effort[f"{what}/{name}"]) for what in ("probes", "candidates")),
            )
            if local.has(f"{name}.codes.faiss")
            else None
            for name, table in (("pictures", pictures), ("captions", captions))
        }
        return Index(
            uri=uri,
            keys=Looked([pictures["key"]], str),
            places=Looked([pictures[name] for name in ("file", "offset", "size")], Place),
            captions=Looked([captions["caption"]], str),
            captions_of=Looked([pictures["captions"]], tuple),
            pictures_of=Looked([captions["pictures"]], tuple),
            picture_vectors=Vectors(local.file("pictures.f16"), len(pictures), width),
            caption_vectors=Vectors(local.file("captions.f16"), len(captions), width),
            picture_candidates=candidates["pictures"],
            caption_candidates=candidates["captions"],
            picture_tokens=TokenVectors(local.files("tokens/")) if token_wise else None,
            caption_tokens=TokenVectors(local.files("caption-tokens/")) if token_wise else None,
            counted=torch.from_numpy(captions["counted"].to_numpy().astype(np.int64)),
            columns={name: column for name in FILTERS if (column := _filter(pictures[name])) is not None},
            calibration=calibration or {},
            questions=np.empty(0, np.int32) if recall is None else recall["caption"].to_numpy(),
            answers=np.empty((0, 10), np.int32) if recall is None else np.stack(recall["pictures"].to_numpy()),
            by_key=pictures["by_key"].to_numpy(),
            digests=pictures["digest"],
            forms=captions["form"],
            shared=pc.list_value_length(captions["pictures"]).to_numpy(),
        )


def table_of(file: Path) -> pa.Table:
    """Map a table that lies in a file of Arrow's format."""
    return pa.ipc.open_file(pa.memory_map(str(file))).read_all()


def _filter(column: pa.ChunkedArray) -> Any:
    """A column that pictures are filtered by; None where nothing is known of any picture."""
    if column.null_count == len(column):
        return None
    if pa.types.is_string(column.type):
        return column
    return (column.fill_null(-1) if column.null_count else column).to_numpy()  # without a copy of what is mapped


class _Local:
    """The files of a shard on this machine; those in an object store are copied to its temporary folder first.

    Args:
        made: the shard's manifest.
        stack: deletes the copies at its end, after which what was opened stays open.
        is_compared: see ``open_shard``.
    """

    def __init__(self, made: Manifest, stack: ExitStack, is_compared: bool) -> None:
        self._made, self._is_compared = made, is_compared
        self._parts: dict[str, Part] = {part.path: part for part in made.parts}
        self._folder: Path | None = None
        if urlsplit(made.uri).scheme != "file":
            self._folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))

    def has(self, path: str) -> bool:
        return path in self._parts

    def file(self, path: str) -> Path:
        part, uri = self._parts[path], storage.join(self._made.uri, path)
        local = Path(unquote(urlsplit(uri).path))
        file = storage.download(uri, self._folder, path, part.sha256) if self._folder else local
        if not file.exists() or file.stat().st_size != part.bytes:
            raise DataError(f"{uri} is missing or has another size than when it was written: {damage.remedy(uri)}")
        if self._is_compared and not self._folder:
            with storage.open_input(uri, part.sha256):
                pass  # its end compares
        return file

    def files(self, prefix: str) -> list[Path]:
        """The files below a folder, in the order of their paths."""
        return [self.file(path) for path in sorted(self._parts) if path.startswith(prefix)]
