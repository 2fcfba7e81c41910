"""What a stage hands to the next: one small manifest, written last. Without ``manifest.json`` a stage has no output.

More than ``MOST_IN_JSON`` parts stand in a Parquet table beside ``manifest.json``, which then has ``parts_table``
instead of ``parts``: the table's name, SHA-256 and number of rows. The name has the digest in it, so that a manifest
that is replaced keeps its table until the new one is there. The digest of a manifest does not depend on the form.

A stage's output lies under ``{storage}/{experiment}/{stage}/{key}``. The key is a digest of the stage's name and
version, its config and its parents' digests. Equal inputs give the same key, so a finished stage is found and not run
again, and a killed stage continues after the tasks that are complete.
"""

import hashlib
import json
import logging
import os
import platform
import re
import shutil
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import IO, Any, Self

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, ValidationError

from wukong.errors import DataError, StorageError
from wukong.runtime import git
from wukong.store import damage, fence, lease, storage, takedowns
from wukong.store.parts import SCHEMA, Parts
from wukong.store.parts import Part as Part  # noqa: PLC0414 (readers take it from here)

FORMAT = 1

MOST_IN_JSON = 10_000
"""Parts that stand in ``manifest.json`` itself."""

committed: Counter[str] = Counter()
"""Bytes of the parts of the manifests that this process has committed, by stage."""

_NAME = "manifest.json"
_TASKS = "_parts"
_TABLE = "parts_table"
_ROW_GROUP = 65_536

log = logging.getLogger(__name__)


def digest_of(value: Any) -> str:
    """SHA-256, in hex, of a JSON value in canonical form (sorted keys, no spaces, UTF-8)."""
    return hashlib.sha256(_canonical(value).encode()).hexdigest()


def _canonical(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))


class Parent(BaseModel):
    """A stage whose output this one was made from, with the digest of its manifest."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    stage: str
    uri: str
    digest: str


class PartsTable(BaseModel):
    """The table of a manifest's parts: its name beside the manifest, its SHA-256, its number of rows."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str
    sha256: str
    rows: int


class Manifest(BaseModel):
    """Describes the output of a finished stage.

    Attributes:
        stage: the stage's name.
        uri: the prefix its parts lie under.
        config: the part of the experiment that decides the output; it is in the key.
        parents: the stages that it was made from.
        parts: every file, with rows and digest.
        counts: named row counts (the funnel is made of them).
        dropped: rows that were dropped, by the rule that dropped them.
        metrics: named numbers that go to MLflow.
        provenance: code revision, image, versions, host kind, seconds; not part of the digest.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: int = FORMAT
    stage: str
    uri: str
    config: dict[str, Any]
    parents: tuple[Parent, ...] = ()
    parts: Parts = Parts.of(())
    counts: dict[str, int] = {}
    dropped: dict[str, int] = {}
    metrics: dict[str, float] = {}
    provenance: dict[str, Any] = {}

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """Return a copy with other values; ``parts`` may be any sequence of parts."""
        parts = {"parts": Parts.of(update["parts"])} if update and "parts" in update else {}
        return super().model_copy(update={**(update or {}), **parts}, deep=deep)

    @property
    def digest(self) -> str:
        """SHA-256 of everything except where, when and by which code it was made."""
        value = self.model_dump(mode="json", exclude={"uri", "provenance", "parts"})
        value["parents"] = [parent.digest for parent in self.parents]
        # Nothing behind the parts can hold these characters: in a text they would be escaped.
        before, parts, after = _canonical(value | {"parts": []}).rpartition('"parts":[]')
        sha = hashlib.sha256(before.encode() + parts[:-1].encode())
        for number, block in enumerate(self.parts.json_blocks()):
            sha.update((f",{block}" if number else block).encode())
        sha.update(parts[-1:].encode() + after.encode())
        return sha.hexdigest()

    def file(self, path: str) -> tuple[str, str]:
        """URI and SHA-256 of a part, as its readers take them; the digest of one that is not listed is empty."""
        return storage.join(self.uri, path), self.parts.sha256(path)

    def part_uris(self, prefix: str = "", suffix: str = "") -> list[str]:
        """URIs of the parts whose path starts with ``prefix`` and ends with ``suffix``, in the manifest's order."""
        return [storage.join(self.uri, path) for path in self.parts.below(prefix, suffix).paths]


def load(uri: str) -> Manifest:
    """Read a manifest from its own URI or from its stage's prefix.

    Raises:
        DataError: there is none, it is no manifest, or another version of Wukong wrote it.
        StorageError: the table of its parts is missing, or was altered.
    """
    target = uri if uri.endswith(".json") else storage.join(uri, _NAME)
    if not storage.exists(target):
        raise DataError(
            f"no manifest at {target}: the stage has not finished; run it again, it continues where it stopped"
        )
    value = storage.read_json(target)
    if isinstance(value, dict):
        damage.refuse_other_format(value, FORMAT, target)
    try:
        if isinstance(value, dict) and _TABLE in value:
            table = PartsTable.model_validate(value[_TABLE])
            rest = {name: each for name, each in value.items() if name != _TABLE}
            return Manifest.model_validate(rest | {"parts": _read(table, target)})
        return Manifest.model_validate(value)
    except ValidationError as error:
        raise DataError(f"{target} is not a manifest: {error}; {damage.remedy(target)}") from error


def _read(described: PartsTable, source: str) -> Parts:
    uri = storage.join(source.rpartition("/")[0], described.path)
    try:
        table = storage.read_table(uri, sha256=described.sha256)
    except StorageError as error:
        raise StorageError(
            f"{source} lists its {described.rows} parts in a table beside it, which cannot be read: {error}. Put that "
            f"table back, for instance from a backup; or {damage.remedy(uri)}"
        ) from error
    if table.schema != SCHEMA or table.num_rows != described.rows:
        raise DataError(f"{uri} is not the table of the parts of {source}: {damage.remedy(uri)}")
    return Parts(table)


def save(made: Manifest, uri: str, write: Callable[[str, Any], None] = fence.publish) -> None:
    """Write a manifest; the table of its parts, if it has one, is written before.

    Args:
        made: the manifest.
        uri: URI of its JSON file; the table comes to lie beside it.
        write: writes a JSON value to a URI.

    Raises:
        FencedError: a newer attempt at the stage has begun (``wukong.store.fence``).
    """
    if len(made.parts) <= MOST_IN_JSON:
        write(uri, made.model_dump(mode="json"))
        return
    value = made.model_dump(mode="json", exclude={"parts"})
    write(uri, value | {_TABLE: _write_table(made.parts, uri).model_dump()})


def _write_table(parts: Parts, uri: str) -> PartsTable:
    with storage.spooled(uri) as spool:
        pq.write_table(parts.table, spool, row_group_size=_ROW_GROUP, compression="zstd", use_dictionary=False)
        spool.seek(0)
        sha256, _ = _measured(spool)
        folder, _, name = uri.rpartition("/")
        path = f"{name.removesuffix('.json')}-{sha256[:16]}.parquet"
        spool.seek(0)
        with storage.open_output(storage.join(folder, path)) as target:
            shutil.copyfileobj(spool, target)
    return PartsTable(path=path, sha256=sha256, rows=len(parts))


def table_uri(uri: str, value: Any) -> str | None:
    """Return the URI of the table of a manifest's parts; None if they stand in the manifest itself.

    Args:
        uri: URI of the manifest's JSON file.
        value: its content.
    """
    return storage.join(uri.rpartition("/")[0], value[_TABLE]["path"]) if _TABLE in value else None


def delete_old_tables(uri: str) -> None:
    """Delete the tables of manifests that stood before at the URI of a manifest."""
    folder, _, name = uri.rpartition("/")
    table = re.compile(rf"{re.escape(name.removesuffix('.json'))}-[0-9a-f]{{16}}\.parquet")
    others = [storage.join(folder, each) for each in storage.list_names(folder) if table.fullmatch(each)]
    for other in others:
        if other != table_uri(uri, storage.read_json(uri)):
            storage.delete(other)


def describe(uri: str, relative: str, rows: int = 0) -> Part:
    """Measure a file of a stage's output: its size and SHA-256.

    Args:
        uri: the prefix that the stage's files lie under.
        relative: the file's path below it.
        rows: rows it holds.
    """
    with storage.open_input(storage.join(uri, relative)) as stream:
        sha256, size = _measured(stream)
    return Part(path=relative, rows=rows, bytes=size, sha256=sha256)


def _measured(stream: IO[bytes]) -> tuple[str, int]:
    """Return the SHA-256 of what is left of a stream, and its size."""
    sha, size = hashlib.sha256(), 0
    while chunk := stream.read(1 << 20):
        sha.update(chunk)
        size += len(chunk)
    return sha.hexdigest(), size


class Output:
    """A file that is being written, which is measured meanwhile.

    Args:
        stream: where its bytes go.
        relative: its path below the stage's prefix.
    """

    closed = False
    """Asked for by Arrow, which writes to it as to a file."""

    def __init__(self, stream: IO[bytes], relative: str) -> None:
        self._stream, self._relative = stream, relative
        self._sha, self._size = hashlib.sha256(), 0

    def write(self, data: bytes | pa.Buffer) -> None:
        """Append bytes."""
        self._stream.write(data)
        self._sha.update(data)
        self._size += memoryview(data).nbytes

    def part(self, rows: int = 0) -> Part:
        """What ``describe`` returns for the file, which must be complete, without reading it."""
        return Part(path=self._relative, rows=rows, bytes=self._size, sha256=self._sha.hexdigest())


_inside: ContextVar[bool] = ContextVar("inside", default=False)
"""Whether this thread makes a stage's output."""


@contextmanager
def _marked_inside() -> Iterator[None]:
    before = _inside.set(True)
    try:
        yield
    finally:
        _inside.reset(before)


class Stage:
    """The place where one stage writes; ``commit`` makes its output valid.

    Args:
        root: the experiment's prefix, ``{storage}/{name}``.
        name: the stage's name.
        config: a JSON value with everything that decides the stage's output, except its parents.
        parents: the stages that it reads: their manifests, or how another manifest names them.
        version: version of the stage's code (``wukong.stages``).
    """

    def __init__(
        self,
        root: str,
        name: str,
        config: Mapping[str, Any],
        parents: Sequence[Manifest | Parent] = (),
        version: int = 1,
    ) -> None:
        self.name = name
        self.config = dict(config)
        self.parents = tuple(Parent(stage=p.stage, uri=p.uri, digest=p.digest) for p in parents)
        identity = [FORMAT, name, version, self.config, [parent.digest for parent in self.parents]]
        self.key = digest_of(identity)[:16]
        self.uri = storage.join(root, name, self.key)
        self._started = time.time()

    def path(self, relative: str) -> str:
        """URI of a file of this stage."""
        return storage.join(self.uri, relative)

    def finished(self) -> Manifest | None:
        """The manifest of this key; None if no run has finished it. If somebody deletes it, that is waited for."""
        there = storage.exists(self.path(_NAME))
        if there and lease.wait_for_deletion(self.uri):
            there = storage.exists(self.path(_NAME))
        return load(self.uri) if there else None

    def made(self, make: Callable[[], Manifest]) -> Manifest:
        """The manifest of this key. If nobody has finished it, make it, after waiting for a run that is making it.

        A takedown of the experiment is waited for too; but not by a stage that is made within another one's ``make``,
        for which the takedown waits. Work files, whose names begin with an underscore, are deleted when the manifest is
        there. A process that was killed before that leaves it to the next one.

        Args:
            make: makes the output and commits it; called while this process holds the stage's lease
                (``wukong.store.lease``).

        Raises:
            DataError: a takedown was begun and nobody goes on with it, or one has changed a parent.
            FencedError: a newer attempt at the stage has begun (``wukong.store.fence``).
        """
        root, is_inside = self.uri.rsplit("/", 2)[0], _inside.get()
        while True:
            if not is_inside:
                takedowns.wait_for_end(root)
            if (finished := self.finished()) is not None:
                break
            with lease.held(self.uri, lambda: storage.exists(self.path(_NAME))), _marked_inside():
                if not is_inside and takedowns.is_begun(root):
                    continue  # it waits for this lease
                if (finished := self.finished()) is None:
                    if not is_inside:
                        self._check_parents()
                    finished = make()
                break
        clean(self.uri)
        return finished

    def _check_parents(self) -> None:
        for parent in self.parents:
            if not storage.exists(storage.join(parent.uri, _NAME)) or load(parent.uri).digest != parent.digest:
                raise DataError(
                    f"{parent.uri} has changed since the stage {self.name} was to read it, for instance by a takedown: "
                    "run again, then it reads what is there now"
                )

    def finished_task(self, name: str, files: Callable[[dict[str, Any]], Iterable[str]]) -> dict[str, Any] | None:
        """The record that ``commit_task`` stored for a task; None if the task is not complete, or a file of it is gone.

        So who deletes a damaged file, or the manifest of a stage whose work files are deleted, has it made again.

        Args:
            name: the task's.
            files: takes the record; returns the paths of the files that the task wrote and others read.
        """
        marker = self.path(f"{_TASKS}/{name}.json")
        if not storage.exists(marker):
            return None
        record: dict[str, Any] = storage.read_json(marker)
        return record if all(storage.exists(self.path(file)) for file in files(record)) else None

    def commit_task(self, name: str, record: Mapping[str, Any]) -> None:
        """Store the record of a complete task; call it after all files of the task are written.

        Raises:
            FencedError: a newer attempt at the stage has begun (``wukong.store.fence``).
        """
        fence.publish(self.path(f"{_TASKS}/{name}.json"), dict(record))

    @contextmanager
    def output(self, relative: str) -> Iterator[Output]:
        """Open a file of this stage for writing; it appears only if the block ends without an error."""
        with storage.open_output(self.path(relative)) as stream:
            yield Output(stream, relative)

    def write_table(self, relative: str, table: pa.Table) -> Part:
        """Write a Parquet file as ``storage.write_table`` does, and return its description."""
        with self.output(relative) as output:
            output.write(storage.table_bytes(table))
        return output.part(len(table))

    def describe(self, relative: str, rows: int = 0) -> Part:
        """Measure a file that this stage has written: its size and SHA-256."""
        return describe(self.uri, relative, rows)

    def commit(
        self,
        parts: Iterable[Part],
        *,
        counts: Mapping[str, int] | None = None,
        dropped: Mapping[str, int] | None = None,
        metrics: Mapping[str, float] | None = None,
        notes: Mapping[str, Any] | None = None,
    ) -> Manifest:
        """Write the manifest, after all parts are written: it makes the output valid.

        ``notes`` go into the provenance, which is not part of the digest. An iterator of parts is read block by block.

        Raises:
            FencedError: a newer attempt at the stage has begun (``wukong.store.fence``), or another run has taken it
                over.
        """
        manifest = Manifest(
            stage=self.name,
            uri=self.uri,
            config=self.config,
            parents=self.parents,
            parts=Parts.in_order(parts),
            counts=dict(counts or {}),
            dropped=dict(dropped or {}),
            metrics=dict(metrics or {}),
            provenance=provenance() | {"seconds": round(time.time() - self._started, 3)} | dict(notes or {}),
        )
        lease.check(self.uri)
        save(manifest, self.path(_NAME))
        committed[self.name] += manifest.parts.bytes
        return manifest


def clean(uri: str, names: Collection[str] | None = None) -> None:
    """Delete the work files of a finished stage: checkpoints, tables of a part of the work, the lease.

    What cannot be deleted stays for the next call, as the log says. An attempt that has been fenced deletes nothing:
    the files may be a newer attempt's.

    Args:
        uri: the stage's prefix.
        names: files and folders to delete; None for those that begin with an underscore, but the tasks' records.
    """
    try:
        there = [name for name in storage.list_names(uri) if not name.endswith(".partial")]  # another writes that one
        left = [name for name in there if (name[0] == "_" and name != _TASKS if names is None else name in names)]
        if left:
            fence.check()
        for name in left:
            storage.delete(storage.join(uri, name))
    except fence.FencedError as error:
        log.warning("the work files of %s are left: %s", uri, error)
    except StorageError as error:
        log.warning("work files of %s are left, and deleted when it is used again: %s", uri, error)


def provenance() -> dict[str, Any]:
    """Where, when (UTC) and by which code something is made."""
    return {
        "revision": code_revision(),
        "image": os.environ.get("WUKONG_IMAGE", ""),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "created": datetime.now(UTC).isoformat(timespec="microseconds"),
    }


@lru_cache(maxsize=1)
def code_revision() -> str:
    """The code's git revision, of its image or its checkout; ``unknown`` where neither says."""
    if revision := os.environ.get("WUKONG_REVISION"):
        return revision
    folder = Path(__file__).parent
    described = git.ask(folder, "describe", "--always", "--abbrev=12")
    if not described:
        return "unknown"
    return described if git.is_changed(folder) is False else f"{described}-dirty"
