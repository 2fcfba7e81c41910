"""The runs of the experiments in a storage: found by their records, and what MLflow knows of them.

A run's records (``wukong.runs.run_records``) say what it did; they are there without MLflow too. MLflow adds whether a
run without an end is still at work or was killed, and which model it registered.
"""

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime

import pyarrow.fs as pafs

from wukong import stages
from wukong.config import documents
from wukong.config.evaluators import HOLDOUTS
from wukong.config.experiment import Experiment
from wukong.errors import ConfigError, DataError
from wukong.runs.run_records import Record
from wukong.runtime import environment
from wukong.store import manifest, storage
from wukong.tracking import run_links
from wukong.tracking.run_links import Tracked

_RUNS, _CLAIM = "runs", "experiment.json"
_AT_ONCE = 8


@dataclass(frozen=True)
class StoredRun:
    """A run's place.

    Attributes:
        name: name of the run.
        uri: URI of its folder.
        begun: when it was begun, the last time if it was continued (UTC).
    """

    name: str
    uri: str
    begun: datetime


@dataclass(frozen=True)
class Summary:
    """What a list of runs shows of one.

    Attributes:
        name: name of the run.
        experiment: name of its experiment.
        uri: URI of its folder.
        begun: when it was begun, in ISO 8601 (UTC).
        state: ``finished``, ``failed``, ``killed``, ``running``, or ``unfinished`` where MLflow does not say which.
        stages: state by stage: ``done``, ``reused`` or ``failed``; stages that have not ended are left out.
        metrics: the means over the hold-outs; empty before the evaluation.
        model: ``models:/NAME/VERSION``, if a model was registered.
        report: URI of its report, if it has one.
        mlflow: address of its page in MLflow, if it is tracked there.
    """

    name: str
    experiment: str
    uri: str
    begun: str
    state: str
    stages: dict[str, str]
    metrics: dict[str, float]
    model: str | None
    report: str | None
    mlflow: str | None


def experiments_in(place: str) -> list[str]:
    """Return the prefixes of the experiments in a storage that have runs.

    Raises:
        StorageError: the storage cannot be read.
    """
    return [uri for uri in _folders(place) if _folders(storage.join(uri, _RUNS))]


def of_experiment(root: str) -> list[StoredRun]:
    """Return the runs of an experiment, the newest first.

    Args:
        root: the experiment's prefix.
    """
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        runs = pool.map(_found, _folders(storage.join(root, _RUNS)))
        return sorted((run for run in runs if run), key=lambda run: run.begun, reverse=True)


def in_storage(place: str) -> list[StoredRun]:
    """Return the runs of all experiments in a storage, the newest first."""
    runs = [run for root in experiments_in(place) for run in of_experiment(root)]
    return sorted(runs, key=lambda run: run.begun, reverse=True)


def find(name: str, place: str) -> StoredRun:
    """Find a run by its name; of several, the newest.

    Args:
        name: name of the run.
        place: the storage whose experiments are looked through.

    Raises:
        DataError: there is no such run; the message names the newest ones.
    """
    runs = in_storage(place)
    if (run := next((run for run in runs if run.name == name), None)) is not None:
        return run
    newest, elsewhere = ", ".join(run.name for run in runs[:5]), environment.elsewhere()
    raise DataError(
        f"no run {name!r} in {place}: the newest are {newest}; `wukong runs` lists all{elsewhere}"
        if newest
        else f"no run {name!r} in {place}: none yet{elsewhere}"
    )


def experiment_of(uri: str) -> Experiment:
    """Return the experiment that a run's name belongs to.

    Args:
        uri: URI of the run's folder.

    Raises:
        DataError: it is of another version of Wukong, which this one cannot read.
        StorageError: the run's folder has no experiment.
    """
    claim = storage.join(uri, _CLAIM)
    try:
        return documents.parse(storage.read_json(claim)["experiment"], where=claim)
    except (ConfigError, KeyError, TypeError) as error:
        raise DataError(f"{uri} is of another version of Wukong: {error}") from error


def summaries(runs: Sequence[StoredRun]) -> list[Summary]:
    """Return what a list shows of some runs, in their order. If MLflow is away, its part is left out."""
    names = {run.uri.rsplit("/", 3)[1] for run in runs}
    tracked = {name: run_links.tracked_runs(name) for name in sorted(names)}
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return list(pool.map(lambda run: _summary(run, tracked[run.uri.rsplit("/", 3)[1]]), runs))


def _summary(run: StoredRun, tracked: dict[str, Tracked]) -> Summary:
    files = {uri.rsplit("/", 1)[1] for uri in _files(run.uri)}
    records = [_record(run, stage) for stage in stages.RECORDED if f"{stage}.json" in files]
    known = tracked.get(run.name)
    evaluated = next((record.manifest for record in records if record.stage == "evaluate" and record.manifest), None)
    metrics = manifest.load(evaluated).metrics if evaluated and storage.exists(evaluated) else {}
    report = storage.join(run.uri, "report.html") if "report.html" in files else None
    return Summary(
        name=run.name,
        experiment=run.uri.rsplit("/", 3)[1],
        uri=run.uri,
        begun=run.begun.isoformat(timespec="seconds"),
        state=_state(records, known),
        stages={record.stage: _ended(record) for record in records},
        metrics={
            name: value for name, value in metrics.items() if name.startswith("eval/") and f"/{HOLDOUTS}/" in name
        },
        model=known.model if known else None,
        report=report,
        mlflow=known.url if known else None,
    )


def _state(records: Iterable[Record], known: Tracked | None) -> str:
    by_stage = {record.stage: record for record in records}
    if any(record.state == "failed" for record in by_stage.values()):
        return "failed"
    if stages.WHOLE_RUN[-1] in by_stage:
        return "finished"
    words = {"RUNNING": "running", "KILLED": "killed", "FAILED": "failed", "FINISHED": "finished"}
    return words.get(known.status, "unfinished") if known else "unfinished"


def _ended(record: Record) -> str:
    if record.state == "failed":
        return "failed"
    return "reused" if record.reused else "done"


def _record(run: StoredRun, stage: str) -> Record:
    return Record.model_validate(storage.read_json(storage.join(run.uri, f"{stage}.json")))


def _found(uri: str) -> StoredRun | None:
    begun = _files(uri).get(storage.join(uri, _CLAIM))
    return StoredRun(uri.rsplit("/", 1)[1], uri, begun.astimezone(UTC)) if begun else None


def _folders(uri: str) -> list[str]:
    return [storage.join(uri, info.base_name) for info in _listed(uri) if info.type == pafs.FileType.Directory]


def _files(uri: str) -> dict[str, datetime]:
    return {storage.join(uri, info.base_name): info.mtime for info in _listed(uri) if info.type == pafs.FileType.File}


def _listed(uri: str) -> list[pafs.FileInfo]:
    """Return what lies directly at a prefix; nothing if it does not exist."""
    return storage.read_with(
        uri, lambda store, path: store.get_file_info(pafs.FileSelector(path, recursive=False, allow_not_found=True))
    )
