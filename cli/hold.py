"""A local run's hold on its folder in the home: its name is one experiment's, and one process at a time works under it.

``experiment.json`` says whose the name is. ``running.json`` is locked while the run is at work and empty once it has
come to an end, so that what it says, unlocked, is of a run that was killed.
"""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TextIO

from pydantic import ValidationError

from wukong import config, run_records, stages, tracking
from wukong.config import Experiment
from wukong.errors import ConfigError

_RUNNING, _CLAIM = "running.json", "experiment.json"


@dataclass(frozen=True)
class Killed:
    """A run that was killed: its name, its experiment, and when it had begun."""

    run: str
    experiment: Experiment
    began: str


@contextmanager
def hold(home: Path, run: str, experiment: Experiment) -> Iterator[Path]:
    """Take a run's name, in the home and in storage, and hold its folder while the block lasts.

    Args:
        home: the home of the embedded stack.
        run: the run's name.
        experiment: what is to be run.

    Raises:
        ConfigError: the name cannot be one, belongs to another experiment, or a process is at work under it.
    """
    run_records.check_name(run)
    folder = home / "runs" / run
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / _RUNNING).open("a+", encoding="utf-8") as stream:
        if not _locked(stream):
            raise ConfigError(f"the run {run} is at work already: wait for its end, or choose another --name")
        claim = folder / _CLAIM
        with suppress(FileNotFoundError, ValidationError):
            run_records.Claim.model_validate_json(claim.read_bytes()).check(experiment, run)
        run_records.claim(experiment, run)
        value = experiment.model_dump(mode="json")
        _write(claim, {"experiment": value})
        began = datetime.now().astimezone().isoformat(timespec="seconds")
        stream.truncate(0)
        stream.write(json.dumps({"experiment": value, "began": began, "pid": os.getpid()}, ensure_ascii=False))
        stream.flush()
        try:
            yield folder
        finally:
            stream.truncate(0)


def killed(home: Path) -> list[Killed]:
    """Find the runs of a home that were killed, oldest first, and note that they were found."""
    found = []
    for path in (home / "runs").glob(f"*/{_RUNNING}"):
        with path.open("r+", encoding="utf-8") as stream:
            if not (text := stream.read()) or not _locked(stream):
                continue
            # What another version wrote, or a disk that was full, says too little to act on.
            with suppress(ConfigError, ValueError, KeyError, TypeError):
                value = json.loads(text)
                found.append(Killed(path.parent.name, config.parse(value["experiment"]), str(value["began"])))
            stream.truncate(0)
    return sorted(found, key=lambda each: each.began)


def explain(each: Killed) -> str:
    """End in MLflow what a killed run left as running, and say what becomes of it."""
    tracking.end_open_runs(each.experiment, each.run, "KILLED")
    return f"the run {each.run}, begun {each.began}, was killed. {outlook(each.experiment, each.run)}"


def outlook(experiment: Experiment, run: str) -> str:
    """Say what a run that did not come to its end leaves for the next one."""
    done = [record.stage for record in run_records.read_all(experiment, run) if record.state == "succeeded"]
    stage = next((stage for stage in stages.WHOLE_RUN if stage not in done), stages.WHOLE_RUN[-1])
    kept = f"Finished and kept: {', '.join(done)}. " if done else ""
    return f"{kept}A run with the same config reuses what is finished, and goes on with {stage} where it stopped."


def _locked(stream: TextIO) -> bool:
    """Lock a file, and tell whether that was possible; the lock ends with the process."""
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _write(path: Path, value: Any) -> None:
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(value, ensure_ascii=False, indent=2), encoding="utf-8")
    partial.replace(path)
