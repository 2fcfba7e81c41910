"""Records of a pipeline run: a small file for each stage, which says whether it succeeded or failed.

Records lie under ``{root}/runs/{run}/{stage}.json``. Runs with equal inputs share the stages' output. A record says
what one run did: which manifest it got, whether that existed already, how long the work took, or why it failed. The
command line and the report read records, never log output.

Beside the records lies ``experiment.json``. A run's name belongs to that experiment, so nobody finds the results of
another experiment under the name.
"""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict

from wukong.config import documents
from wukong.config.experiment import Experiment
from wukong.config.section import flatten
from wukong.errors import ConfigError
from wukong.stages import run_paths
from wukong.stages.run_paths import uri_of
from wukong.store import fence, manifest, storage
from wukong.store.manifest import Manifest

CLAIM = "experiment.json"
"""In the folder of a run: the experiment that the name belongs to."""

_SHOWN = 5  # keys that differ, in a message
_LONGEST = 60  # characters of a value, in a message


class Record(BaseModel):
    """How one stage of one run ended.

    Attributes:
        stage: the stage's name; ``champion`` for the evaluation of the champion on this run's test set.
        state: ``succeeded`` or ``failed``.
        manifest: URI of the stage's manifest, when it succeeded.
        reused: whether an earlier run had finished the stage already.
        seconds: time of the stage's own work, without the start of its process.
        error: the message of the error that ended the stage.
        traceback: traceback of that error; empty if the message explains the error.
        infrastructure: whether a node or process was lost and not the stage's own work failed, so that the same job may
            succeed elsewhere.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    stage: str
    state: Literal["succeeded", "failed"]
    manifest: str = ""
    reused: bool = False
    seconds: float = 0.0
    error: str = ""
    traceback: str = ""
    infrastructure: bool = False


class Claim(BaseModel):
    """Says which experiment a run's name belongs to.

    Attributes:
        experiment: the experiment, as JSON.
        holder: who uses the name now: KFP's name of the run on a cluster, empty on one machine.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    experiment: dict[str, Any]
    holder: str = ""

    def check(self, experiment: Experiment, run: str) -> None:
        """Refuse any experiment except the one that the name belongs to.

        Raises:
            ConfigError: it is another; the message says what differs and what to do.
        """
        value = experiment.model_dump(mode="json")
        if self.experiment != value and (differing := differences(_as_now(self.experiment), value)):
            lines = [f"  {key}: {short(before)} there, {short(now)} now" for key, (before, now) in differing.items()]
            more = len(lines) - _SHOWN
            raise ConfigError(
                "\n".join(
                    [
                        f"the run name {run!r} belongs to another experiment, whose results it would overwrite:",
                        *lines[:_SHOWN],
                        *([f"  and {more} more"] if more > 0 else []),
                        "choose another --name, or run with the config that the name was begun with",
                    ]
                )
            )


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return the dotted keys in which two experiments differ, with both values; None for a key that is missing."""
    first, second = flatten(before), flatten(now)
    keys = [*second, *(key for key in first if key not in second)]
    return {key: (first.get(key), second.get(key)) for key in keys if first.get(key) != second.get(key)}


def claim(experiment: Experiment, run: str, holder: str = "") -> None:
    """Take a run's name for an experiment, before anything is written under the name.

    The same experiment may take the name again, to continue or to repeat the run.

    Args:
        experiment: the experiment.
        run: the name.
        holder: see ``Claim``.

    Raises:
        ConfigError: the name is not allowed, or it belongs to another experiment.
    """

    def taken(there: Any) -> dict[str, Any]:
        if there is not None:
            Claim.model_validate(there).check(experiment, run)
        return Claim(experiment=experiment.model_dump(mode="json"), holder=holder).model_dump(mode="json")

    storage.update(uri_of(experiment, run, CLAIM), taken)


def claimed(experiment: Experiment, run: str) -> Claim | None:
    """Return who has taken a run's name, or None if nobody has."""
    uri = uri_of(experiment, run, CLAIM)
    return Claim.model_validate(storage.read_json(uri)) if storage.exists(uri) else None


def _as_now(experiment: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return an experiment as this version writes it: keys that are new have their defaults."""
    try:
        return documents.parse(dict(experiment)).model_dump(mode="json")
    except ConfigError:
        return experiment


def short(value: Any) -> str:
    """Return a value as text of at most 60 characters."""
    text = str(value)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def write(experiment: Experiment, run: str, record: Record) -> None:
    """Store a stage's record.

    Raises:
        FencedError: a newer attempt at the stage has begun (``wukong.store.fence``).
    """
    fence.publish(uri_of(experiment, run, f"{record.stage}.json"), record.model_dump(mode="json"))


def write_reused(experiment: Experiment, run: str, name: str, found: Manifest, seconds: float) -> None:
    """Store the record of a stage whose output was found and not made.

    Args:
        experiment: the experiment.
        run: name of the run.
        name: name of the record, mostly the stage's.
        found: the stage's manifest.
        seconds: that finding it took.
    """
    uri = storage.join(found.uri, "manifest.json")
    record = Record(stage=name, state="succeeded", manifest=uri, reused=True, seconds=round(seconds, 3))
    write(experiment, run, record)


def read(experiment: Experiment, run: str, stage: str) -> Record | None:
    """Return a stage's record, or None if the stage has not ended."""
    uri = uri_of(experiment, run, f"{stage}.json")
    return Record.model_validate(storage.read_json(uri)) if storage.exists(uri) else None


class Output(NamedTuple):
    """What a stage left: the run that recorded it, and the URI of its manifest."""

    run: str
    uri: str


def latest(experiment: Experiment, stage: str, run: str | None = None) -> Output | None:
    """Return the newest output of a stage that runs of this experiment recorded, or None if there is none.

    Experiments of one name have one folder, for instance those of two folders of pictures that are called alike. Runs
    of other images are another experiment's (``Experiment.origin``).

    Args:
        experiment: the experiment.
        stage: name of the stage.
        run: the only run that is looked at; None for all.
    """
    folder, newest, found = storage.join(experiment.root, "runs"), "", None
    for uri in storage.list_files(folder, f"/{stage}.json"):
        name = uri[len(folder) + 1 :].split("/")[0]
        if run not in (None, name) or _origin(experiment, name) != experiment.origin:
            continue
        record = Record.model_validate(storage.read_json(uri))
        if record.manifest and storage.exists(record.manifest):
            created = str(manifest.load(record.manifest).provenance.get("created", ""))
            if found is None or created > newest:
                newest, found = created, Output(name, record.manifest)
    return found


def of_other_images(experiment: Experiment) -> str:
    """Say which runs in the folder of an experiment are of other images; empty if there is none."""
    names = filter(run_paths.is_name, storage.list_names(storage.join(experiment.root, "runs")))
    others = [name for name in names if _origin(experiment, name) not in (None, experiment.origin)]
    return f" (runs there on other images: {', '.join(others[-_SHOWN:])})" if others else ""


def _origin(experiment: Experiment, run: str) -> tuple[Any, Any, Any] | None:
    """Return the ``Experiment.origin`` of the experiment that a run's name belongs to; None if nobody has taken it."""
    if (claim := claimed(experiment, run)) is None:
        return None
    crawl = claim.experiment.get("crawl", {})
    return claim.experiment.get("name"), crawl.get("engine"), crawl.get("endpoint")
