"""Which pictures of an evaluation set a model was trained on.

Equal files are found, by the SHA-256 that the crawl noted of what it got. The same picture in another size or format is
another file, so the number is the least that it can be. What a published tower was trained on is not known here.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from wukong.config import model_kinds
from wukong.data import shards
from wukong.data.shards import matching
from wukong.errors import WukongError
from wukong.evaluate.data_set import Data
from wukong.runtime.language import message
from wukong.store import manifest, storage
from wukong.store.manifest import Manifest

_READERS = 8
"""Tables that are read at the same time; of each, one column is in memory."""


@dataclass(frozen=True)
class Pairs:
    """The pairs of a training: those of a filter stage whose URL matches one of some shell patterns."""

    uri: str
    tables: tuple[str, ...]
    sources: tuple[str, ...]


def digests(data: Data) -> list[str | None]:
    """Return the SHA-256 of each picture's file; None for pictures that are no files, but arrays of pixels."""
    return [data.images.digest(number) for number in range(len(data))]


def pairs_of(model: Manifest) -> set[Pairs]:
    """Return what a model was trained on, by its stage and by all stages that it started from.

    Raises:
        DataError: a manifest that it was made from is gone.
    """
    pairs: set[Pairs] = set()
    for parent in model.parents:
        if parent.stage == "filter":
            filtered = manifest.load(parent.uri)
            tables = (f"train/{name}.parquet" for name in shards.names_of(filtered, "train"))
            sources = model.config.get("training", {}).get("sources", ["*"])
            pairs.add(Pairs(filtered.uri, tuple(tables), tuple(sources)))
        elif parent.stage in ("pretrain", "finetune"):
            pairs |= pairs_of(manifest.load(parent.uri))
    return pairs


def pairs_at(uri: str, folder_of: Callable[[str], str]) -> set[Pairs] | str:
    """Return what the model at an address was trained on; or why that is not known, a clause.

    Args:
        uri: the address, as ``wukong.evaluate.adapters.load`` takes it.
        folder_of: gives the URI of the folder of a registered model, ``models:/NAME@ALIAS``. The manifest of the
            stage that trained a model lies beside the model's folder.
    """
    kind, _, name = uri.partition(":")
    if kind in model_kinds.KINDS and kind != "onnx":
        return message("it is a model of others")
    uri = name if kind == "onnx" else uri
    try:
        if uri.startswith("models:/"):
            uri = folder_of(uri)
        beside = storage.join((uri if "://" in uri else storage.from_path(Path(uri))).rstrip("/").rpartition("/")[0])
        if not storage.exists(storage.join(beside, "manifest.json")):
            return message("no manifest of a training lies beside it")
        return pairs_of(manifest.load(beside))
    except WukongError as error:
        return message(f"its lineage cannot be read ({error})")


def among(pairs: Pairs, wanted: Collection[str]) -> set[str]:
    """Return those of some digests that training pairs have; one column of a table at a time is in memory.

    Raises:
        StorageError: a table cannot be read.
    """
    asked = pa.array(sorted(wanted), pa.string())

    def found(path: str) -> list[str]:
        whole = pairs.sources == ("*",)
        table = storage.read_table(storage.join(pairs.uri, path), ["sha256"] if whole else ["sha256", "url"])
        table = table.filter(pc.is_in(table["sha256"], value_set=asked))
        if not whole and len(table):
            table = table.filter(pa.array(np.array(matching(table["url"].to_pylist(), pairs.sources), bool)))
        return table["sha256"].to_pylist()  # type: ignore[no-any-return]

    with ThreadPoolExecutor(_READERS) as readers:
        return {digest for part in readers.map(found, pairs.tables) for digest in part}


def counts(models: Mapping[str, set[Pairs] | str], tasks: Mapping[str, Sequence[str | None]]) -> list[dict[str, Any]]:
    """Count the pictures of each task that each model was trained on.

    Args:
        models: what each model was trained on, or why that is not known, by role.
        tasks: the digests of each task's pictures, by its name.

    Returns:
        For each task and model ``task``, ``model`` (its role), ``pictures`` (how many there are), ``trained_on`` (of
        how many the file was trained on; None where that is not known) and ``why`` (it is not known; else empty).
    """
    wanted = {digest for of_task in tasks.values() for digest in of_task if digest}
    read: dict[Pairs, set[str] | str] = {}
    for pairs in {pairs for known in models.values() if not isinstance(known, str) for pairs in known}:
        try:
            read[pairs] = among(pairs, wanted)
        except WukongError as error:
            read[pairs] = message(f"its training pairs cannot be read ({error})")
    entries = []
    for name, of_task in tasks.items():
        for role, known in models.items():
            parts = [known] if isinstance(known, str) else [read[pairs] for pairs in known]
            why = next(_reasons(parts, of_task), "")
            seen = {digest for part in parts if not isinstance(part, str) for digest in part}
            count = None if why else sum(digest in seen for digest in of_task)
            entries.append({"task": name, "model": role, "pictures": len(of_task), "trained_on": count, "why": why})
    return entries


def _reasons(parts: Iterable[set[str] | str], of_task: Sequence[str | None]) -> Iterator[str]:
    yield from (part for part in parts if isinstance(part, str))
    if None in of_task:
        yield message("the set's pictures are no files of their own")
