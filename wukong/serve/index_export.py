"""Write the pictures' vectors of an index as a folder that another project's library searches.

A folder holds the vectors, what is known of each picture, and ``wukong_index.json``, which names model and data with
their digests. It is a copy: a takedown does not reach it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from wukong.errors import ConfigError
from wukong.evaluate.model import OwnModel
from wukong.export import folder as folders
from wukong.runtime import installed
from wukong.serve.collection import Collection
from wukong.serve.index import Index, open_index, shards
from wukong.store import storage
from wukong.store.manifest import Manifest

RECORD = "wukong_index.json"
FORMAT = 1
TABLE = "pictures"
_ITEMS = "items.parquet"
_VECTORS = 65_536
_BLOCK = 1_000
"""Pictures whose token vectors are in memory at a time."""


@dataclass(frozen=True)
class Form:
    """A layout of exported vectors.

    Attributes:
        write: writes the shards of an index and the table of their pictures into an empty folder.
        module: what must be importable to write it; empty for nothing.
        package: what brings it.
        holds_tokens: whether it holds several vectors of a picture.
    """

    write: Callable[[Sequence[Index], pa.Table, Path], None]
    module: str = ""
    package: str = ""
    holds_tokens: bool = False


def export(collection: Collection, model: OwnModel, found: Manifest, to: str, folder: Path) -> int:
    """Write an index as a folder; one that this function has written there before is replaced.

    Args:
        collection: what is searched.
        model: the model that the index was made with.
        found: manifest of the index.
        to: a name of ``FORMS``.
        folder: where the files are written; its parents are created.

    Returns:
        How many pictures it has.

    Raises:
        ConfigError: there is no such form, its package is not installed, it cannot hold the vectors of this model, or
            ``folder`` holds files of something else.
        DataError: the index is damaged.
        StorageError: a table of the collection cannot be read.
    """
    if to not in FORMS:
        raise ConfigError(f"--to: there is no form {to!r}; allowed are {', '.join(FORMS)}")
    form = FORMS[to]
    if form.module and find_spec(form.module) is None:
        raise ConfigError(f"--to {to} needs a package that is not installed: run `pip install {form.package}`")
    if model.token_wise and not form.holds_tokens:
        raise ConfigError(
            f"{model.name} has a vector for each patch of a picture, and {to} holds one for each picture: export to "
            "lancedb, which holds several, or search with `wukong serve`"
        )
    opened = [open_index(found, model, number) for number in range(shards(found))]
    items = pa.concat_tables([_items_of(index, collection) for index in opened])
    with folders.whole(folder, RECORD) as written:
        form.write(opened, items, written)
        record = {
            "format": FORMAT,
            "to": to,
            "wukong": installed.version(),
            "model": model.name,
            "model_digest": model.digest,
            "data": collection.uri,
            "data_digest": collection.digest,
            "pictures": len(items),
            "dimensions": model.saved.model.width,
            "token_wise": model.token_wise,
        }
        storage.write_json(storage.from_path(written / RECORD), record)
    return len(items)


def _items_of(index: Index, collection: Collection) -> pa.Table:
    keys = list(index.keys)
    urls = collection.urls(dict(zip(keys, index.places, strict=True)))
    captions = [[index.captions[row] for row in rows] for rows in index.captions_of]
    return pa.table([keys, captions, [urls[key] for key in keys]], _ITEM)


def _blocks(opened: Sequence[Index], size: int) -> Iterator[tuple[Index, Tensor]]:
    """The rows of some pictures at a time, of shard after shard."""
    for index in opened:
        for start in range(0, len(index.keys), size):
            yield index, torch.arange(start, min(start + size, len(index.keys)))


def _write_numpy(opened: Sequence[Index], items: pa.Table, folder: Path) -> None:
    shape = len(items), opened[0].picture_vectors.shape[1]
    whole = np.lib.format.open_memmap(folder / "vectors.npy", "w+", np.float32, shape)
    start = 0
    for index, rows in _blocks(opened, _VECTORS):
        whole[start : start + len(rows)] = index.picture_vectors[rows].numpy()
        start += len(rows)
    whole.flush()
    storage.write_table(storage.from_path(folder / _ITEMS), items)


def _write_faiss(opened: Sequence[Index], items: pa.Table, folder: Path) -> None:
    faiss = import_module("faiss")
    exact = faiss.IndexFlatIP(opened[0].picture_vectors.shape[1])
    for index, rows in _blocks(opened, _VECTORS):
        exact.add(index.picture_vectors[rows].numpy())
    faiss.write_index(exact, str(folder / "index.faiss"))
    storage.write_table(storage.from_path(folder / _ITEMS), items)


def _write_lancedb(opened: Sequence[Index], items: pa.Table, folder: Path) -> None:
    width = opened[0].picture_vectors.shape[1]
    one = pa.list_(pa.float32(), width)
    schema = _ITEM.append(pa.field("vector", one if opened[0].picture_tokens is None else pa.list_(one)))

    def batches() -> Iterator[pa.RecordBatch]:
        start = 0
        for index, rows in _blocks(opened, _BLOCK):
            block = items.slice(start, len(rows)).combine_chunks()
            start += len(rows)
            vectors = index.picture_vectors[rows] if index.picture_tokens is None else index.picture_tokens.read(rows)
            columns = [*(column.combine_chunks() for column in block.columns), _lists(vectors)]
            yield pa.record_batch(columns, schema)

    reader = pa.RecordBatchReader.from_batches(schema, batches())
    import_module("lancedb").connect(str(folder)).create_table(TABLE, reader)


def _lists(vectors: Tensor) -> pa.Array:
    """Vectors as lists of a fixed size; those of the patches of a picture as a list of such lists."""
    lists = pa.FixedSizeListArray.from_arrays(pa.array(vectors.flatten().numpy()), vectors.shape[-1])
    if vectors.ndim == 2:
        return lists
    items, patches, _ = vectors.shape
    return pa.ListArray.from_arrays(pa.array(range(0, items * patches + 1, patches), pa.int32()), lists)


_ITEM = pa.schema([("key", pa.string()), ("captions", pa.list_(pa.string())), ("url", pa.string())])
FORMS: Mapping[str, Form] = {
    "faiss": Form(_write_faiss, "faiss", "faiss-cpu"),
    "lancedb": Form(_write_lancedb, "lancedb", "lancedb", holds_tokens=True),
    "numpy": Form(_write_numpy),
}
"""What ``--to`` calls them."""
