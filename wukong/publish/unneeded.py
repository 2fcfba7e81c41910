"""What nothing needs any more of a storage, and its deletion (``wukong gc``).

Needed are the outputs that a run's record or experiment names, those that a registered model's alias leads to,
releases, and all that these were made from: the parents that manifests name, and the failed attempts that a crawl went
on from. All of an experiment is needed while a run of it may be going on, or a takedown; a takedown in turn waits for a
deletion that has begun (``wukong.store.takedowns``). Only outputs of stages are looked at: records of runs and
takedowns, opt-out lists, decisions and sweeps lie elsewhere, and stay.

A run that begins meanwhile loses nothing, though there is no lock. Each stage of a run leaves a trace in the run's
folder before it looks for finished outputs (``places.reserved``). A deletion takes the output's lease first
(``lease.deleting``), then looks at all traces and aliases again, and decides anew if any has changed. Who finds an
output looks at its lease after its own trace (``Stage.finished``). So either the deletion sees the trace and gives the
output up, or the one who looks sees the lease, waits, and finds no manifest. It can then make the output again, for
which it needs the lease too. The manifest goes first, so nobody believes in what remains; children go before their
parents, so each manifest that is left has its parents. A killed deletion leaves an output without a manifest, which the
next one deletes. A lease that looks old is watched before it counts for nothing (``lease.silent``), so that clocks that
differ delete nothing that is being made.

What this does not cover: an output that only a command names, as ``crawl.previous`` of a run that has not begun; and,
as with all leases, a process that is held up for over a minute between its last look and its write.
"""

import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.fs as pafs

from wukong import stages
from wukong.crawl import attempt
from wukong.runtime.language import _
from wukong.store import fence, lease, manifest, storage, takedowns

DAY = 86_400.0

_MANIFESTS = ("manifest.json", attempt.FAILED)
_STAGES = tuple(entry.name for entry in stages.TABLE if entry.version)
_RECORDS = {f"{name}.json" for name in (*stages.RECORDED, "champion")}
_MAY_BE_USED = _("unfinished, and may be in use")
_CLAIM, _LAST = "experiment.json", f"{stages.WHOLE_RUN[-1]}.json"
_KEY = re.compile(r"[0-9a-f]{16}")
_NAMED = re.compile(rf"([^/\s\"']+)/({'|'.join(_STAGES)})/([0-9a-f]{{16}})(?![0-9A-Za-z])")
_WORK_OF_TASKS = "_parts"  # records of tasks, which a finished output keeps
_AT_ONCE = 8

Holders = Callable[[], Mapping[str, Mapping[str, str]]]
"""Gives the tags of the registered versions that are needed, by their addresses."""


@dataclass(frozen=True)
class Policy:
    """What counts as a reason to keep.

    Attributes:
        keep_runs: the newest finished runs of each experiment that are needed, with all that began since; None for all.
        older_than: seconds; nothing is deleted of which a file was written later.
        grace: seconds in which whoever works on something writes a file: what was written later may be in use, and a
            run without an end that left a later trace may be going on. At least an hour.
    """

    keep_runs: int | None = None
    older_than: float = 0.0
    grace: float = DAY

    @property
    def age(self) -> float:
        """Seconds since its last file was written that all have that is deleted."""
        return max(self.grace, self.older_than)


@dataclass(frozen=True)
class Garbage:
    """Something that nothing needs.

    Attributes:
        uri: where it lies.
        stage: name of the stage that wrote it.
        bytes: its size.
        written: when its newest file was written, in seconds since 1970.
        why: why nothing needs it.
        output: URI of the output that it is, or is a part of.
    """

    uri: str
    stage: str
    bytes: int
    written: float
    why: str
    output: str


@dataclass(frozen=True)
class Kept:
    """What is kept for one reason, and the number and the bytes of its outputs."""

    reason: str
    outputs: int
    bytes: int


class _Stored(NamedTuple):
    """What a listing says of a file: its bytes, and when it was last written, in seconds since 1970."""

    bytes: int
    written: float


@dataclass(frozen=True)
class _Output:
    uri: str
    files: Mapping[str, _Stored]  # by their first name below the output: bytes, and when the newest was written
    is_held: bool  # somebody may be at work on it

    @property
    def experiment(self) -> str:
        return self.uri.rsplit("/", 3)[1]

    @property
    def stage(self) -> str:
        return self.uri.rsplit("/", 2)[1]

    @property
    def bytes(self) -> int:
        return sum(stored.bytes for stored in self.files.values())

    @property
    def written(self) -> float:
        """When its newest file was written; a lease that is over says nothing about that."""
        times = [stored.written for name, stored in self.files.items() if name != lease.NAME or self.is_held]
        return max(times, default=0.0)

    @property
    def manifest(self) -> str | None:
        """Name of its manifest, or of that of a crawl that failed."""
        return next((name for name in _MANIFESTS if name in self.files), None)


class _Run:
    """A run, as the files in its folder say.

    Args:
        files: its files by their path below the folder.
        records: the content of its records that say that a stage succeeded, by their names.
        named: the text of its experiment.
    """

    def __init__(self, files: Mapping[str, _Stored], records: Mapping[str, Any], named: str) -> None:
        self.named = " ".join([named, *(str(record.get("manifest", "")) for record in records.values())])
        traces = [at for path, at in files.items() if path == _CLAIM or path.startswith(("attempts/", "asked/"))]
        self.last_trace = max((at.written for at in traces), default=0.0)
        self.begun = files[_CLAIM].written if _CLAIM in files else self.last_trace
        self.is_finished = _LAST in records and files[_LAST].written > self.last_trace
        self.has_crawled = "crawl.json" in records


class Collection:
    """The outputs in a storage, those that are needed, and those that are not.

    Args:
        place: the storage of the experiments.
        policy: what counts as a reason.
        holders: asks MLflow; None if it is not asked.
        now: seconds since 1970; None for this moment.

    Raises:
        DataError: a manifest cannot be read.
        StorageError: the storage or a record cannot be read.
    """

    def __init__(self, place: str, policy: Policy, holders: Holders | None, now: float | None = None) -> None:
        self._place, self._policy, self._holders = place.rstrip("/"), policy, holders
        self._now = time.time() if now is None else now
        self._read: dict[tuple[str, _Stored], Any] = {}
        self._state = self._looked()  # before the outputs: one that is made later is younger than the grace
        self._outputs = {_named(output.uri)[0]: output for output in self._scanned()}
        held = [output for output in self._outputs.values() if output.is_held]
        old = [output.uri for output in held if self._now - output.files[lease.NAME].written >= policy.grace]
        self._silent = lease.silent(old)
        self._parents: dict[str, tuple[str, ...]] = {}
        self._digests: dict[str, str] = {}
        self._needed = self._decided()

    @property
    def garbage(self) -> list[Garbage]:
        """What nothing needs, in the order in which it may be deleted: children before their parents."""
        parents = {name: self._parents_of(name) for name in self._outputs}
        ordered = [name for name in TopologicalSorter(parents).static_order() if name in self._outputs]
        return [each for name in reversed(ordered) for each in self._garbage_of(name)]

    @property
    def kept(self) -> list[Kept]:
        """What is kept, by reason."""
        gone = {each.output for each in self.garbage if each.uri == each.output}
        by_reason: dict[str, list[int]] = {}
        for name, output in self._outputs.items():
            if output.uri not in gone:
                by_reason.setdefault(self._needed.get(name, _MAY_BE_USED), []).append(output.bytes)
        return [Kept(reason, len(sizes), sum(sizes)) for reason, sizes in sorted(by_reason.items())]

    def delete(self, each: Garbage) -> bool:
        """Delete one of ``garbage``; return whether it is gone. It stays if it is needed or used by now.

        Raises:
            StorageError: it cannot be deleted, or read whether it is needed.
        """
        if takedowns.is_begun(each.output.rsplit("/", 2)[0]):
            return False
        if each.uri != each.output:  # whoever uses the output's manifest deletes these too
            storage.delete(each.uri)
            return True
        (name,) = _named(each.uri)

        def is_idle() -> bool:
            return not self._is_young(_output(each.uri, _stored_below(each.uri)))

        with lease.deleting(each.uri, is_idle, self._silent.get(each.uri, "")) as may:
            if not may or self._is_needed_now(name):
                return False
            try:
                _delete(each.uri)
            except fence.TakenOverError:
                return False
        return True

    def _is_needed_now(self, name: str) -> bool:
        if (state := self._looked()) != self._state:
            self._state = state
            self._needed = self._decided()
        return name in self._needed

    def _looked(self) -> tuple[dict[str, _Stored], dict[str, dict[str, str]]]:
        """Everything that may say that something is needed: files of runs and takedowns, and versions with an alias."""
        names = storage.list_names(self._place)
        folders = [storage.join(self._place, name, below) for name in names for below in ("runs", takedowns.FOLDER)]
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            listed = list(pool.map(_stored_below, folders))
        held = self._holders() if self._holders is not None else {}
        traces = {uri: stored for files in listed for uri, stored in files.items()}
        return traces, {address: dict(tags) for address, tags in held.items()}

    def _scanned(self) -> Iterator[_Output]:
        folders = [
            storage.join(self._place, name, stage) for name in storage.list_names(self._place) for stage in _STAGES
        ]
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            for folder, files in zip(folders, pool.map(_stored_below, folders), strict=True):
                below: dict[str, dict[str, _Stored]] = {}
                for uri, stored in files.items():
                    key, _slash, path = uri[len(folder) + 1 :].partition("/")
                    if path and _KEY.fullmatch(key):
                        below.setdefault(key, {})[uri] = stored
                for key, inside in below.items():
                    uri = storage.join(folder, key)
                    yield _output(uri, inside)

    def _decided(self) -> dict[str, str]:
        """The names of all outputs with a manifest that are needed, and why."""
        needed: dict[str, str] = {}
        for reason, names in self._roots():
            for name in names:
                needed.setdefault(name, reason)
        pending = list(needed)
        while pending:
            for parent in self._parents_of(pending.pop()):
                if parent not in needed:
                    needed[parent] = "what these were made from"
                    pending.append(parent)
        return needed

    def _roots(self) -> Iterator[tuple[str, Iterable[str]]]:
        traces, versions = self._state
        runs = self._runs(traces)
        busy = {name for (name, _run), run in runs.items() if self._goes_on(run)}
        held = (output for output in self._outputs.values() if output.is_held)
        busy |= {output.experiment for output in held if output.uri not in self._silent}
        kept = {key: run for key, run in runs.items() if key in self._kept_runs(runs)}
        tags = " ".join(tag for tags in versions.values() for tag in tags.values())
        yield "records and experiments of runs", _named(" ".join(run.named for run in kept.values()))
        yield "registered models with an alias", _named(tags)
        released = (n for n, output in self._outputs.items() if output.stage == "release" and output.manifest)
        yield "releases", released
        yield "failed crawls that the next run goes on from", self._open_crawls(kept)
        marks = tuple(f"/{name}" for name in (takedowns.BEGUN, takedowns.PENDING))
        pending = {uri.rsplit("/", 3)[1] for uri in traces if uri.endswith(marks)}
        yield "a takedown goes on in the experiment", self._of_experiments(pending)
        yield "a run of the experiment may be going on", self._of_experiments(busy)
        young = (n for n, output in self._outputs.items() if output.manifest and self._is_young(output))
        yield "written too short a time ago", young

    def _of_experiments(self, names: set[str]) -> Iterator[str]:
        return (name for name, output in self._outputs.items() if output.experiment in names)

    def _is_young(self, output: _Output) -> bool:
        return self._now - output.written < self._policy.age

    def _goes_on(self, run: _Run) -> bool:
        return not run.is_finished and self._now - run.last_trace < self._policy.grace

    def _kept_runs(self, runs: Mapping[tuple[str, str], _Run]) -> set[tuple[str, str]]:
        if self._policy.keep_runs is None:
            return set(runs)
        finished: dict[str, list[float]] = {}
        for (experiment, _name), run in runs.items():
            if run.is_finished:
                finished.setdefault(experiment, []).append(run.begun)
        first = {
            experiment: sorted(begun)[-self._policy.keep_runs]
            for experiment, begun in finished.items()
            if len(begun) >= self._policy.keep_runs
        }
        return {key for key, run in runs.items() if run.begun >= first.get(key[0], 0.0) or self._goes_on(run)}

    def _runs(self, traces: Mapping[str, _Stored]) -> dict[tuple[str, str], _Run]:
        """The runs, by the name of the experiment and their own."""
        folders: dict[tuple[str, str], dict[str, _Stored]] = {}
        for uri, stored in traces.items():
            experiment, kind, run, path = (*uri[len(self._place) + 1 :].split("/", 3), "", "")[:4]
            if kind == "runs" and path:
                folders.setdefault((experiment, run), {})[path] = stored
        return {key: self._run(key, files) for key, files in folders.items()}

    def _run(self, key: tuple[str, str], files: Mapping[str, _Stored]) -> _Run:
        folder = storage.join(self._place, key[0], "runs", key[1])
        names = files.keys() & {_CLAIM, *_RECORDS}
        read = {name: self._json(storage.join(folder, name), files[name]) for name in names}
        named = str(read.pop(_CLAIM, ""))
        return _Run(files, {path: value for path, value in read.items() if value.get("state") == "succeeded"}, named)

    def _json(self, uri: str, stored: _Stored) -> Any:
        if (uri, stored) not in self._read:
            self._read[uri, stored] = storage.read_json(uri)
        return self._read[uri, stored]

    def _parents_of(self, name: str) -> tuple[str, ...]:
        """What an output was made from, by its manifest; nothing if it has none."""
        if name not in self._parents:
            output, uri = self._outputs.get(name), storage.join(self._place, name)
            if output is not None:
                file = output.manifest
            else:  # behind a link, which nothing is deleted behind, but whose parents are needed
                file = next((each for each in _MANIFESTS if storage.exists(storage.join(uri, each))), None)
            value = storage.read_json(storage.join(uri, file)) if file else {}
            parents = [*_named(" ".join(parent["uri"] for parent in value.get("parents", ())))]
            if again := value.get("config", {}).get("again"):
                others = [other for other in self._crawls_of(name.split("/", 1)[0]) if other != name]
                parents += [other for other in others if self._digest_of(other) == again]
            self._parents[name] = tuple(parents)
        return self._parents[name]

    def _crawls_of(self, experiment: str) -> list[str]:
        """The crawls of an experiment that finished or failed."""
        place = f"{experiment}/crawl/"
        return [name for name, output in self._outputs.items() if name.startswith(place) and output.manifest]

    def _digest_of(self, crawl: str) -> str:
        """The digest by which the next attempt at a crawl names this one."""
        if crawl not in self._digests:
            output = self._outputs[crawl]
            made = manifest.load(storage.join(output.uri, output.manifest or ""))
            self._digests[crawl] = str(made.provenance.get(attempt.FIRST_DIGEST, made.digest))
        return self._digests[crawl]

    def _open_crawls(self, runs: Mapping[tuple[str, str], _Run]) -> Iterator[str]:
        """The failed crawls that no attempt went on from, of experiments with a run that has no crawl yet."""
        for experiment in sorted({experiment for (experiment, _name), run in runs.items() if not run.has_crawled}):
            crawls = self._crawls_of(experiment)
            continued = {parent for name in crawls for parent in self._parents_of(name)}
            for name in crawls:
                if self._outputs[name].manifest == attempt.FAILED and name not in continued:
                    yield name

    def _garbage_of(self, name: str) -> Iterator[Garbage]:
        output = self._outputs[name]
        if name not in self._needed and not self._is_young(output):
            finished = _("no run, alias or release leads to it")
            why = finished if output.manifest else _("unfinished, and nobody is at work on it")
            yield Garbage(output.uri, output.stage, output.bytes, output.written, why, output.uri)
        elif output.manifest == _MANIFESTS[0]:
            for first, stored in sorted(output.files.items()):
                is_work = first.startswith("_") and first not in (_WORK_OF_TASKS, lease.NAME)
                if is_work and self._now - stored.written >= self._policy.age:
                    uri, why = storage.join(output.uri, first), _("work file of a finished output")
                    yield Garbage(uri, output.stage, stored.bytes, stored.written, why, output.uri)


def _named(text: str) -> list[str]:
    """The outputs that a text names, as ``EXPERIMENT/STAGE/KEY``: a storage may have been moved since."""
    return list(dict.fromkeys("/".join(found.groups()) for found in _NAMED.finditer(text)))


def _output(uri: str, files: Mapping[str, _Stored]) -> _Output:
    """Return an output, whose files are summed up by the first name in their path below it."""
    summed: dict[str, _Stored] = {}
    for file, stored in files.items():
        name = file[len(uri) + 1 :].split("/", 1)[0]
        before = summed.get(name, _Stored(0, 0.0))
        summed[name] = _Stored(before.bytes + stored.bytes, max(before.written, stored.written))
    return _Output(uri, summed, is_held=lease.NAME in summed and not lease.is_over(uri))


def _delete(uri: str) -> None:
    """Delete an output whose lease this process holds: its manifest first, the lease last.

    Raises:
        TakenOverError: another process has the lease by now.
    """
    others = [name for name in storage.list_names(uri) if name not in (*_MANIFESTS, lease.NAME)]
    for name in (*_MANIFESTS, *others, lease.NAME):
        lease.check(uri)
        storage.delete(storage.join(uri, name))


def _stored_below(uri: str) -> dict[str, _Stored]:
    """Return what a listing says of every file below a prefix, by URI; empty if there are none.

    Unlike in ``storage.sizes``, links to folders are not followed on a local file system: what is behind is not below.
    """

    def read(store: pafs.FileSystem, path: str) -> dict[str, _Stored]:
        path = path.rstrip("/")
        if not isinstance(store, pafs.LocalFileSystem):
            infos = store.get_file_info(pafs.FileSelector(path, recursive=True, allow_not_found=True))
            files = [info for info in infos if info.type == pafs.FileType.File]
            return {
                storage.join(uri, info.path[len(path) :]): _Stored(info.size, info.mtime.timestamp()) for info in files
            }
        found = {}
        for folder, _folders, names in os.walk(path):
            for name in names:
                try:
                    at = Path(folder, name).lstat()
                except FileNotFoundError:
                    continue
                found[storage.join(uri, f"{folder[len(path) :]}/{name}")] = _Stored(at.st_size, at.st_mtime)
        return found

    return storage.read_with(uri, read)
