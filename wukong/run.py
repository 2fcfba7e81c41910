"""What one pipeline run leaves behind: a small record for each stage, whether it succeeded or failed.

Records lie under ``{root}/runs/{run}/{stage}.json``. Stages' outputs are shared between runs with equal inputs; the
record says what this run did: which manifest it got, whether that was there already, how long the work took, or why it
failed. The command line and the report are made from records, never from log output.
"""

import re
from typing import Literal

from pydantic import BaseModel, ConfigDict

from wukong import manifest, storage
from wukong.config import Experiment
from wukong.errors import ConfigError

STAGES = ("crawl", "filter", "validate", "release", "pretrain", "finetune", "evaluate", "register", "report")
"""The pipeline's stages, in order."""

_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9._-]{0,62}")


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


def uri_of(experiment: Experiment, run: str, name: str) -> str:
    """URI of a file in a run's folder.

    Raises:
        ConfigError: the run's name cannot be part of a URI.
    """
    if not _NAME.fullmatch(run):
        raise ConfigError(
            f"run name {run!r}: use up to 63 letters, digits, '.', '_' and '-', beginning with a letter or digit"
        )
    return storage.join(experiment.root, "runs", run, name)


def write(experiment: Experiment, run: str, record: Record) -> None:
    """Store a stage's record."""
    storage.write_json(uri_of(experiment, run, f"{record.stage}.json"), record.model_dump(mode="json"))


def read(experiment: Experiment, run: str, stage: str) -> Record | None:
    """A stage's record, or None when the stage did not come to an end."""
    uri = uri_of(experiment, run, f"{stage}.json")
    return Record.model_validate(storage.read_json(uri)) if storage.exists(uri) else None


def read_all(experiment: Experiment, run: str) -> list[Record]:
    """The records of a run, in the pipeline's order."""
    records = (read(experiment, run, stage) for stage in STAGES)
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
