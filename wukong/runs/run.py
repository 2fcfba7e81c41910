"""A run with all that it left, and the runs of the experiments in a storage.

A run's folder is ``{root}/runs/{run}``. What lies in it is written by ``run_records``, ``origin``, ``verdict`` and the
components, and read here. It is there without MLflow too. MLflow adds whether a run without an end is still at work or
was killed, and which model it registered.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

import pyarrow.fs as pafs

from wukong import stages
from wukong.config import documents
from wukong.config.evaluators import HOLDOUTS
from wukong.config.experiment import Experiment
from wukong.errors import ConfigError, DataError
from wukong.runs import origin, verdict
from wukong.runs.origin import Origin
from wukong.runs.run_records import CLAIM, Record
from wukong.runs.verdict import Verdict
from wukong.runtime import environment
from wukong.runtime.language import restored
from wukong.stages import run_paths
from wukong.store import manifest, storage
from wukong.store.manifest import Manifest
from wukong.tracking import run_links
from wukong.tracking.run_links import Tracked
from wukong.tracking.tags import IMAGES_TAG, SOURCE_TAG

_RUNS = "runs"
_AT_ONCE = 8


class Run:
    """A run by its folder. Each part is read when it is first asked for; most parts raise StorageError or DataError.

    Args:
        uri: URI of the run's folder.

    Attributes:
        tracked: what MLflow knows of it, where it was asked (``track``).
    """

    tracked: Tracked | None = None

    def __init__(self, uri: str) -> None:
        self.uri = uri.rstrip("/")
        root, _, self.name = self.uri.rsplit("/", 2)
        self.experiment_name = root.rsplit("/", 1)[1]

    @classmethod
    def of(cls, experiment: Experiment, name: str) -> "Run":
        """Return the run of an experiment that has a name; a name that is not allowed is a ConfigError."""
        return cls(run_paths.uri_of(experiment, name, ""))

    @cached_property
    def files(self) -> dict[str, datetime]:
        """When the files directly in the folder were written (UTC), by name."""
        return {info.base_name: info.mtime.astimezone(UTC) for info in _listed(self.uri) if info.is_file}

    @property
    def begun(self) -> datetime:
        """When it was begun, the last time if it was continued (UTC)."""
        return self.files[CLAIM]

    @cached_property
    def experiment(self) -> Experiment:
        """The experiment that the run's name belongs to.

        Raises:
            DataError: it is of another version of Wukong, which this one cannot read.
            StorageError: the run's folder has no experiment.
        """
        claim = storage.join(self.uri, CLAIM)
        try:
            return documents.parse(storage.read_json(claim)["experiment"], where=claim)
        except (ConfigError, KeyError, TypeError) as error:
            raise DataError(f"{self.uri} is of another version of Wukong: {error}") from error

    @cached_property
    def records(self) -> dict[str, Record]:
        """The records of the stages that have ended, in the order of the table of stages."""
        return {
            stage: Record.model_validate(storage.read_json(storage.join(self.uri, f"{stage}.json")))
            for stage in stages.RECORDED
            if f"{stage}.json" in self.files
        }

    def output(self, stage: str) -> str:
        """Return the URI of the manifest that a stage got; empty if it has not finished, or leaves none."""
        return self.records[stage].manifest if stage in self.records else ""

    @cached_property
    def manifests(self) -> dict[str, Manifest]:
        """The manifests of the stages that have finished and leave one."""
        return {stage: manifest.load(record.manifest) for stage, record in self.records.items() if record.manifest}

    @cached_property
    def metrics(self) -> dict[str, float]:
        """What its evaluation measured; empty before it, or where it was deleted."""
        evaluated = self.output("evaluate")
        return dict(manifest.load(evaluated).metrics) if evaluated and storage.exists(evaluated) else {}

    @property
    def report(self) -> str | None:
        """URI of its report, if it has one."""
        return storage.join(self.uri, "report.html") if "report.html" in self.files else None

    @cached_property
    def origin(self) -> Origin | None:
        """Where it came from; None if it has not said so."""
        return Origin.model_validate(self._json(origin.FILE)) if origin.FILE in self.files else None

    @cached_property
    def images(self) -> dict[str, list[str]]:
        """References of the images that its pods have run, by stage, and those of its components."""
        folder = storage.join(self.uri, origin.IMAGES)
        found: dict[str, set[str]] = {}
        for uri in storage.list_files(folder, ".json"):
            user = uri[len(folder) :].strip("/").partition("/")[0]
            found.setdefault(user, set()).update(storage.read_json(uri))
        return {user: sorted(images) for user, images in found.items()}

    @property
    def tags(self) -> dict[str, str]:
        """The tags of the run in MLflow that say where it came from."""
        if self.origin is None:
            return {}
        known = self.origin.model_dump(include={"repository", "revision", "file", "code", "pipeline", "version"})
        tags = {f"{SOURCE_TAG}{name}": value for name, value in known.items() if value}
        if self.origin.revision:
            tags[f"{SOURCE_TAG}dirty"] = "unknown" if self.origin.dirty is None else str(self.origin.dirty).lower()
        if images := self.images.get(origin.COMPONENTS):
            tags[IMAGES_TAG] = " ".join(images)
        return tags

    @cached_property
    def verdict(self) -> tuple[Verdict, dict[str, Any] | None] | None:
        """What was decided about its model, and the comparison with the champion's run; None if nothing was."""
        if verdict.FILE not in self.files:
            return None
        value = self._json(verdict.FILE)
        return Verdict.model_validate(value["verdict"]), restored(value["comparison"], value["chinese"])

    @property
    def ended(self) -> dict[str, str]:
        """How each stage ended: ``done``, ``reused`` or ``failed``; stages that have not ended are left out."""
        words = {stage: "reused" if record.reused else "done" for stage, record in self.records.items()}
        return words | {stage: "failed" for stage, record in self.records.items() if record.state == "failed"}

    @property
    def state(self) -> str:
        """``finished``, ``failed``, ``killed``, ``running``, or ``unfinished`` where MLflow does not say which."""
        if "failed" in self.ended.values():
            return "failed"
        if stages.WHOLE_RUN[-1] in self.records:
            return "finished"
        words = {"RUNNING": "running", "KILLED": "killed", "FAILED": "failed", "FINISHED": "finished"}
        return words.get(self.tracked.status, "unfinished") if self.tracked else "unfinished"

    @property
    def means(self) -> dict[str, float]:
        """The means of its metrics over the hold-outs; empty before the evaluation."""
        over = f"/{HOLDOUTS}/"
        return {name: value for name, value in self.metrics.items() if name.startswith("eval/") and over in name}

    @property
    def model(self) -> str | None:
        """``models:/NAME/VERSION``, if MLflow knows that it registered a model."""
        return self.tracked.model if self.tracked else None

    def _json(self, name: str) -> Any:
        return storage.read_json(storage.join(self.uri, name))


def experiments_in(place: str) -> list[str]:
    """Return the prefixes of the experiments in a storage that have runs.

    Raises:
        StorageError: the storage cannot be read.
    """
    return [uri for uri in _folders(place) if _folders(storage.join(uri, _RUNS))]


def of_experiment(root: str) -> list[Run]:
    """Return the runs of an experiment, the newest first.

    Args:
        root: the experiment's prefix.
    """
    runs = [Run(uri) for uri in _folders(storage.join(root, _RUNS))]
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        found = [run for run, files in zip(runs, pool.map(lambda run: run.files, runs), strict=True) if CLAIM in files]
    return sorted(found, key=lambda run: run.begun, reverse=True)


def in_storage(place: str) -> list[Run]:
    """Return the runs of all experiments in a storage, the newest first."""
    runs = [run for root in experiments_in(place) for run in of_experiment(root)]
    return sorted(runs, key=lambda run: run.begun, reverse=True)


def find(name: str, place: str) -> Run:
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


def track(runs: Sequence[Run]) -> None:
    """Ask MLflow about some runs, and read what a list shows of them. If MLflow is away, its part is left out."""
    known = {name: run_links.tracked_runs(name) for name in sorted({run.experiment_name for run in runs})}
    for run in runs:
        run.tracked = known[run.experiment_name].get(run.name)
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        list(pool.map(lambda run: run.metrics, runs))


def _folders(uri: str) -> list[str]:
    return [storage.join(uri, info.base_name) for info in _listed(uri) if info.type == pafs.FileType.Directory]


def _listed(uri: str) -> list[pafs.FileInfo]:
    """Return what lies directly at a prefix; nothing if it does not exist."""
    return storage.read_with(
        uri, lambda store, path: store.get_file_info(pafs.FileSelector(path, recursive=False, allow_not_found=True))
    )
