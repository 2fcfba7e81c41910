"""What a stage hands to the next: one small manifest, written last. Without ``manifest.json`` a stage has no output.

A stage's output lies under ``{storage}/{experiment}/{stage}/{key}``. The key is a digest of the stage's name and
version, its config and its parents' digests. Equal inputs give the same key, so a finished stage is found and not run
again, and a killed stage continues after the tasks that are complete.
"""

import hashlib
import json
import logging
import os
import platform
import subprocess
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, ValidationError

from wukong.errors import DataError, StorageError
from wukong.store import fence, lease, storage

SCHEMA_VERSION = 1
_NAME = "manifest.json"
_TASKS = "_parts"

log = logging.getLogger(__name__)


def digest_of(value: Any) -> str:
    """SHA-256, in hex, of a JSON value in canonical form (sorted keys, no spaces, UTF-8)."""
    text = json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


class Part(BaseModel):
    """One file of a stage's output: path below the stage's URI, rows (0 where it has none), bytes, SHA-256."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str
    rows: int
    bytes: int
    sha256: str


class Parent(BaseModel):
    """A stage whose output this one was made from, with the digest of its manifest."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    stage: str
    uri: str
    digest: str


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

    schema_version: int = SCHEMA_VERSION
    stage: str
    uri: str
    config: dict[str, Any]
    parents: tuple[Parent, ...] = ()
    parts: tuple[Part, ...] = ()
    counts: dict[str, int] = {}
    dropped: dict[str, int] = {}
    metrics: dict[str, float] = {}
    provenance: dict[str, Any] = {}

    @property
    def digest(self) -> str:
        """SHA-256 of everything except where, when and by which code it was made."""
        value = self.model_dump(mode="json", exclude={"uri", "provenance"})
        value["parents"] = [parent.digest for parent in self.parents]
        return digest_of(value)

    def part_uris(self, prefix: str = "", suffix: str = "") -> list[str]:
        """URIs of the parts whose path starts with ``prefix`` and ends with ``suffix``, in the manifest's order."""
        return [
            storage.join(self.uri, part.path)
            for part in self.parts
            if part.path.startswith(prefix) and part.path.endswith(suffix)
        ]


def load(uri: str) -> Manifest:
    """Read a manifest from its own URI or from its stage's prefix.

    Raises:
        DataError: there is none, or it is not a manifest of a known schema version.
    """
    target = uri if uri.endswith(".json") else storage.join(uri, _NAME)
    if not storage.exists(target):
        raise DataError(
            f"no manifest at {target}: the stage has not finished; run it again, it continues where it stopped"
        )
    value = storage.read_json(target)
    if isinstance(value, dict) and value.get("schema_version") != SCHEMA_VERSION:
        version = value.get("schema_version")
        raise DataError(
            f"{target} has schema version {version!r}, this code reads {SCHEMA_VERSION}: run its stage again"
        )
    try:
        return Manifest.model_validate(value)
    except ValidationError as error:
        raise DataError(f"{target} is not a manifest: {error}") from error


def describe(uri: str, relative: str, rows: int = 0) -> Part:
    """Measure a file of a stage's output: its size and SHA-256.

    Args:
        uri: the prefix that the stage's files lie under.
        relative: the file's path below it.
        rows: rows it holds.
    """
    sha, size = hashlib.sha256(), 0
    with storage.open_input(storage.join(uri, relative)) as stream:
        while chunk := stream.read(1 << 20):
            sha.update(chunk)
            size += len(chunk)
    return Part(path=relative, rows=rows, bytes=size, sha256=sha.hexdigest())


class Output:
    """A file that is being written, which is measured meanwhile.

    Args:
        stream: where its bytes go.
        relative: its path below the stage's prefix.
    """

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


class Stage:
    """The place where one stage writes; ``commit`` makes its output valid.

    Args:
        root: the experiment's prefix, ``{storage}/{name}``.
        name: the stage's name.
        config: a JSON value with everything that decides the stage's output, except its parents.
        parents: manifests of the stages that it reads.
        version: version of the stage's code (``wukong.stages``).
    """

    def __init__(
        self, root: str, name: str, config: Mapping[str, Any], parents: Sequence[Manifest] = (), version: int = 1
    ) -> None:
        self.name = name
        self.config = dict(config)
        self.parents = tuple(Parent(stage=p.stage, uri=p.uri, digest=p.digest) for p in parents)
        identity = [SCHEMA_VERSION, name, version, self.config, [parent.digest for parent in self.parents]]
        self.key = digest_of(identity)[:16]
        self.uri = storage.join(root, name, self.key)
        self._started = time.time()

    def path(self, relative: str) -> str:
        """URI of a file of this stage."""
        return storage.join(self.uri, relative)

    def finished(self) -> Manifest | None:
        """The manifest of this key; None if no run has finished it."""
        return load(self.uri) if storage.exists(self.path(_NAME)) else None

    def made(self, make: Callable[[], Manifest]) -> Manifest:
        """The manifest of this key. If nobody has finished it, make it, after waiting for a run that is making it.

        Work files, whose names begin with an underscore, are deleted when the manifest is there. A process that was
        killed before that leaves it to the next one.

        Args:
            make: makes the output and commits it; called while this process holds the stage's lease
                (``wukong.store.lease``).

        Raises:
            FencedError: a newer attempt at the stage has begun (``wukong.store.fence``).
        """
        if (finished := self.finished()) is None:
            with lease.held(self.uri, lambda: storage.exists(self.path(_NAME))):
                finished = self.finished() or make()
        clean(self.uri)
        return finished

    def finished_task(self, name: str) -> dict[str, Any] | None:
        """The record that ``commit_task`` stored for a task; None if the task is not complete."""
        marker = self.path(f"{_TASKS}/{name}.json")
        return storage.read_json(marker) if storage.exists(marker) else None

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
        parts: Sequence[Part],
        *,
        counts: Mapping[str, int] | None = None,
        dropped: Mapping[str, int] | None = None,
        metrics: Mapping[str, float] | None = None,
        notes: Mapping[str, Any] | None = None,
    ) -> Manifest:
        """Write the manifest, after all parts are written: it makes the output valid.

        ``notes`` go into the provenance, which is not part of the digest.

        Raises:
            FencedError: a newer attempt at the stage has begun (``wukong.store.fence``), or another run has taken it
                over.
        """
        manifest = Manifest(
            stage=self.name,
            uri=self.uri,
            config=self.config,
            parents=self.parents,
            parts=tuple(sorted(parts, key=lambda part: part.path)),
            counts=dict(counts or {}),
            dropped=dict(dropped or {}),
            metrics=dict(metrics or {}),
            provenance=provenance() | {"seconds": round(time.time() - self._started, 3)} | dict(notes or {}),
        )
        lease.check(self.uri)
        fence.publish(self.path(_NAME), manifest.model_dump(mode="json"))
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
    result = subprocess.run(  # noqa: S603
        ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"],  # noqa: S607
        capture_output=True,
        text=True,
        check=False,
    )
    return result.stdout.strip() or "unknown"
