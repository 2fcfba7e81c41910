"""What one pipeline run leaves behind: a small record for each stage, whether it succeeded or failed.

Records lie under ``{root}/runs/{run}/{stage}.json``. Stages' outputs are shared between runs with equal inputs; the
record says what this run did: which manifest it got, whether that was there already, how long the work took, or why it
failed. The command line and the report are made from records, never from log output.

Beside the records lies ``experiment.json``, what the run is of: a run's name belongs to one experiment, so that nobody
finds the results of another under it.
"""

import re
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from wukong import config, manifest, stages, storage
from wukong.config import Experiment
from wukong.errors import ConfigError

_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9._-]{0,62}")
_CLAIM = "experiment.json"
_SHOWN = 5  # keys that differ, in a message
_LONGEST = 60  # characters of a value, in a message


class Record(BaseModel):
    """How one stage of one run ended.

    Attributes:
        stage: the stage's name.
        state: ``succeeded`` or ``failed``.
        manifest: URI of the stage's manifest, when it succeeded.
        reused: whether an earlier run had already finished it.
        seconds: the stage's own work, without process start-up.
        error: the message of the error that ended it.
        traceback: where it happened, unless the error is one that its message explains.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    stage: str
    state: Literal["succeeded", "failed"]
    manifest: str = ""
    reused: bool = False
    seconds: float = 0.0
    error: str = ""
    traceback: str = ""


class Claim(BaseModel):
    """What a run's name belongs to.

    Attributes:
        experiment: the experiment, as JSON.
        holder: which attempt has the name now: KFP's name of the run on a cluster, empty on one machine.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    experiment: dict[str, Any]
    holder: str = ""

    def check(self, experiment: Experiment, run: str) -> None:
        """Refuse another experiment than the one that has the name.

        Raises:
            ConfigError: it is another; the message says in what, and how to go on.
        """
        value = experiment.model_dump(mode="json")
        if self.experiment != value and (found := differences(_as_now(self.experiment), value)):
            lines = [f"  {key}: {_short(before)} there, {_short(now)} now" for key, (before, now) in found.items()]
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
    """The dotted keys in which two experiments differ, with both values; None stands for a key that is not there."""
    first, second = flatten(before), flatten(now)
    keys = [*second, *(key for key in first if key not in second)]
    return {key: (first.get(key), second.get(key)) for key in keys if first.get(key) != second.get(key)}


def flatten(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested mappings to dotted keys: ``{"a": {"b": 1}}`` becomes ``{"a.b": 1}``."""
    flat: dict[str, Any] = {}
    for key, entry in value.items():
        if isinstance(entry, Mapping) and entry:
            flat |= flatten(entry, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = entry
    return flat


def claim(experiment: Experiment, run: str, holder: str = "") -> None:
    """Take a run's name for an experiment, before anything is written under it.

    The same experiment takes its name again, to go on or to be repeated.

    Args:
        experiment: what is to be run.
        run: the name.
        holder: see ``Claim``.

    Raises:
        ConfigError: the name cannot be one, or it belongs to another experiment.
    """
    if (found := claimed(experiment, run)) is not None:
        found.check(experiment, run)
    made = Claim(experiment=experiment.model_dump(mode="json"), holder=holder)
    storage.write_json(uri_of(experiment, run, _CLAIM), made.model_dump(mode="json"))


def claimed(experiment: Experiment, run: str) -> Claim | None:
    """What a run's name belongs to, or None when nobody has taken it."""
    uri = uri_of(experiment, run, _CLAIM)
    return Claim.model_validate(storage.read_json(uri)) if storage.exists(uri) else None


def _as_now(experiment: Mapping[str, Any]) -> Mapping[str, Any]:
    """An experiment as this version writes it: keys that came since have their defaults."""
    try:
        return config.parse(dict(experiment)).model_dump(mode="json")
    except ConfigError:
        return experiment


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def uri_of(experiment: Experiment, run: str, name: str) -> str:
    """URI of a file in a run's folder.

    Raises:
        ConfigError: the run's name cannot be part of a URI.
    """
    check_name(run)
    return storage.join(experiment.root, "runs", run, name)


def check_name(run: str) -> None:
    """Refuse a run's name that is no name of a folder.

    Raises:
        ConfigError: it is not.
    """
    if not _NAME.fullmatch(run):
        raise ConfigError(
            f"run name {run!r}: use up to 63 letters, digits, '.', '_' and '-', beginning with a letter or digit"
        )


def write(experiment: Experiment, run: str, record: Record) -> None:
    """Store a stage's record."""
    storage.write_json(uri_of(experiment, run, f"{record.stage}.json"), record.model_dump(mode="json"))


def read(experiment: Experiment, run: str, stage: str) -> Record | None:
    """A stage's record, or None when the stage did not come to an end."""
    uri = uri_of(experiment, run, f"{stage}.json")
    return Record.model_validate(storage.read_json(uri)) if storage.exists(uri) else None


def read_all(experiment: Experiment, run: str) -> list[Record]:
    """The records of a run, in the pipeline's order."""
    records = (read(experiment, run, stage) for stage in stages.RECORDED)
    return [record for record in records if record is not None]


def latest(experiment: Experiment, stage: str) -> str | None:
    """URI of the newest manifest of a stage that a run of this experiment recorded, or None."""
    found = [
        manifest.load(record.manifest)
        for uri in storage.list_files(storage.join(experiment.root, "runs"), f"/{stage}.json")
        if (record := Record.model_validate(storage.read_json(uri))).manifest and storage.exists(record.manifest)
    ]
    newest = max(found, key=lambda one: str(one.provenance.get("created", "")), default=None)
    return storage.join(newest.uri, "manifest.json") if newest else None
