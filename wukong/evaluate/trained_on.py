"""Which pictures of an evaluation set a model was trained on.

Equal files are found, by the SHA-256 that the crawl noted of what it got. The same picture in another size or format is
another file, which is found if the filter looked for it (``filter.decontaminate``); otherwise the number is the least
that it can be. What a published tower was trained on is not known here.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from wukong.config import model_kinds
from wukong.data import shards
from wukong.data.schema import OVERLAPS
from wukong.data.shards import matching
from wukong.errors import WukongError
from wukong.evaluate.data_set import Data
from wukong.runtime.language import _
from wukong.store import manifest, storage
from wukong.store.manifest import Manifest

LEVELS = ("file", "hash", "vector")
"""How a picture is found to be a trained one, the surest first."""
_ALL = "all"
"""Stands for all hold-outs among the names of sets that are looked for."""
_COUNTED = "overlap/"
"""Begins the names of a filter stage's counts of pairs that show a picture of a set."""
_READERS = 8
"""Tables that are read at the same time; of each, one column is in memory."""


@dataclass(frozen=True)
class Pairs:
    """The pairs of a training: those of a filter stage whose URL matches one of some shell patterns.

    Attributes:
        uri: the stage's.
        tables: paths of the tables of its pairs.
        sources: the patterns.
        compared: the sets and hold-outs whose pictures the stage looked for, ``_ALL`` for all of its hold-outs.
        overlaps: whether it has ``OVERLAPS``.
    """

    uri: str
    tables: tuple[str, ...]
    sources: tuple[str, ...]
    compared: tuple[str, ...] = ()
    overlaps: bool = False


@dataclass(frozen=True)
class Pictures:
    """The pictures of a task.

    Attributes:
        ids: their ids.
        digests: the SHA-256 of their files; None for pictures that are no files, but arrays of pixels.
        held_out: whether they are of hold-outs. Then an id is a pair's key, and tasks have pictures in common.
    """

    ids: Sequence[str]
    digests: Sequence[str | None]
    held_out: bool


class Seen(NamedTuple):
    """What pairs of a training show of some tasks.

    Attributes:
        digests: the files that they have, by SHA-256.
        copies: by task the pictures that are trained on in another form, and by which of ``LEVELS`` each was found.
        left_out: by task the pictures that the stage found and dropped.
    """

    digests: frozenset[str]
    copies: Mapping[str, Mapping[str, str]]
    left_out: Mapping[str, frozenset[str]]


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
            has = filtered.parts.has(OVERLAPS)
            pairs.add(Pairs(filtered.uri, tuple(tables), tuple(sources), _compared(filtered), has))
        elif parent.stage in ("pretrain", "finetune"):
            pairs |= pairs_of(manifest.load(parent.uri))
    return pairs


def _compared(filtered: Manifest) -> tuple[str, ...]:
    asked = filtered.config.get("decontaminate") or {}
    # Published sets by their fingerprints, hold-outs by name, and what else something was found of.
    counted = (name.removeprefix(_COUNTED) for name in filtered.counts if name.startswith(_COUNTED))
    return tuple(sorted({*filtered.config.get("fingerprints", ()), *asked.get("sets", ()), *counted}))


def was_compared(name: str, pictures: Pictures, known: Collection[Pairs]) -> bool:
    """Return whether the pictures of a task were looked for in all that a model was trained on."""
    names = {name, _ALL} if pictures.held_out else {name}
    return bool(known) and all(not names.isdisjoint(pairs.compared) for pairs in known)


def pairs_at(uri: str, folder_of: Callable[[str], str]) -> set[Pairs] | str:
    """Return what the model at an address was trained on; or why that is not known, a clause.

    Args:
        uri: the address, as ``wukong.evaluate.adapters.load`` takes it.
        folder_of: gives the URI of the folder of a registered model, ``models:/NAME@ALIAS``. The manifest of the
            stage that trained a model lies beside the model's folder.
    """
    kind, _colon, name = uri.partition(":")
    if kind in model_kinds.KINDS and kind != "onnx":
        return _("it is a model of others")
    uri = name if kind == "onnx" else uri
    try:
        if uri.startswith("models:/"):
            uri = folder_of(uri)
        beside = storage.join((uri if "://" in uri else storage.from_path(Path(uri))).rstrip("/").rpartition("/")[0])
        if not storage.exists(storage.join(beside, "manifest.json")):
            return _("no manifest of a training lies beside it")
        return pairs_of(manifest.load(beside))
    except WukongError as error:
        return _("its lineage cannot be read ({error})").format(error=error)


def among(pairs: Pairs, wanted: Collection[str], column: Literal["sha256", "key"] = "sha256") -> frozenset[str]:
    """Return those of some digests or keys that training pairs have; one column of a table at a time is in memory.

    Raises:
        StorageError: a table cannot be read.
    """
    if not wanted:
        return frozenset()
    asked = pa.array(sorted(wanted), pa.string())

    def found(path: str) -> list[str]:
        whole = pairs.sources == ("*",)
        table = storage.read_table(storage.join(pairs.uri, path), [column] if whole else [column, "url"])
        table = table.filter(pc.is_in(table[column], value_set=asked))
        if not whole and len(table):
            table = table.filter(pa.array(np.array(matching(table["url"].to_pylist(), pairs.sources), bool)))
        return table[column].to_pylist()  # type: ignore[no-any-return]

    with ThreadPoolExecutor(_READERS) as readers:
        return frozenset(value for part in readers.map(found, pairs.tables) for value in part)


def seen(models: Mapping[str, set[Pairs] | str], tasks: Mapping[str, Pictures]) -> dict[Pairs, Seen | str]:
    """Find what the models' trainings show of some tasks, each once; or why that cannot be read, a clause.

    Args:
        models: what each model was trained on, or why that is not known, by role.
        tasks: the pictures of each task, by its name.
    """
    wanted = {digest for of_task in tasks.values() for digest in of_task.digests if digest}
    found: dict[Pairs, Seen | str] = {}
    for pairs in {pairs for known in models.values() if not isinstance(known, str) for pairs in known}:
        try:
            found[pairs] = Seen(among(pairs, wanted), *_copies(pairs, tasks))
        except WukongError as error:
            found[pairs] = _("its training pairs cannot be read ({error})").format(error=error)
    return found


def _copies(pairs: Pairs, tasks: Mapping[str, Pictures]) -> tuple[dict[str, dict[str, str]], dict[str, frozenset[str]]]:
    """Return the copies that pairs show, and the pictures that were left out, as in ``Seen``.

    A pair that the stage found may be trained on or not: another rule drops it, it is held out, or of another source.
    """
    if not pairs.overlaps:
        return {}, {}
    found = storage.read_table(storage.join(pairs.uri, OVERLAPS), ["set", "picture", "key", "level", "action"])
    by_task: dict[str, list[dict[str, str]]] = {}
    for name, pictures in tasks.items():
        rows = found if pictures.held_out else found.filter(pc.equal(found["set"], name))
        by_task[name] = rows.filter(
            pc.is_in(rows["picture"], value_set=pa.array(pictures.ids, pa.string()))
        ).to_pylist()
    marked = {name: [row for row in rows if row["action"] == "mark"] for name, rows in by_task.items()}
    keys = among(pairs, {row["key"] for rows in marked.values() for row in rows}, "key")
    # Of a picture that is found at two levels, the surest comes last and stays.
    copies = {
        name: {
            row["picture"]: row["level"]
            for row in sorted(rows, key=lambda row: -LEVELS.index(row["level"]))
            if row["key"] in keys
        }
        for name, rows in marked.items()
    }
    left_out = {
        name: frozenset(row["picture"] for row in rows if row["action"] == "drop") for name, rows in by_task.items()
    }
    return copies, left_out


def counts(
    models: Mapping[str, set[Pairs] | str], tasks: Mapping[str, Pictures], found: Mapping[Pairs, Seen | str]
) -> list[dict[str, Any]]:
    """Count the pictures of each task whose files each model was trained on.

    Args:
        models: what each model was trained on, or why that is not known, by role.
        tasks: the pictures of each task, by its name.
        found: what ``seen`` returned.

    Returns:
        For each task and model ``task``, ``model`` (its role), ``pictures`` (how many there are), ``trained_on`` (of
        how many the file was trained on; None where that is not known) and ``why`` (it is not known; else empty).
    """
    entries = []
    for name, pictures in tasks.items():
        for role, known in models.items():
            parts = [known] if isinstance(known, str) else [found[pairs] for pairs in known]
            why = next(_reasons(parts, pictures), "")
            files = {digest for part in parts if not isinstance(part, str) for digest in part.digests}
            count = None if why else sum(digest in files for digest in pictures.digests)
            size = len(pictures.digests)
            entries.append({"task": name, "model": role, "pictures": size, "trained_on": count, "why": why})
    return entries


def _reasons(parts: Iterable[Seen | str], pictures: Pictures) -> Iterator[str]:
    yield from (part for part in parts if isinstance(part, str))
    if None in pictures.digests:
        yield _("the set's pictures are no files of their own")
