"""A local run's name: it belongs to one experiment, and one process at a time runs under it.

In the run's folder below the home, ``experiment.json`` holds the experiment to which the name belongs. ``.lock`` is
locked while a process runs under the name. ``running.json`` says when that process began, and is emptied at its end; if
it is not empty and the lock is free, the process was killed.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import psutil
from filelock import FileLock, Timeout
from pydantic import ValidationError

from wukong import stages
from wukong.config import documents
from wukong.config.experiment import Experiment
from wukong.errors import ConfigError
from wukong.runs import run_records
from wukong.runs.run import Run
from wukong.runs.run_records import Claim
from wukong.stages import run_paths
from wukong.store import storage
from wukong.tracking import mlflow_runs

_LOCK, _RUNNING, _CLAIM = ".lock", "running.json", "experiment.json"


@dataclass(frozen=True)
class Killed:
    """A run that was killed: its name, its experiment, and when it began."""

    run: str
    experiment: Experiment
    began: str


@contextmanager
def hold(home: Path, run: str, experiment: Experiment) -> Iterator[Path]:
    """Claim a run's name, in the home and in storage, and lock its folder within the ``with`` block.

    Args:
        home: the home of the embedded stack.
        run: the run's name.
        experiment: what is to be run.

    Yields:
        The run's folder in the home.

    Raises:
        ConfigError: the name is not allowed or belongs to another experiment, or another process runs under it.
    """
    run_paths.check_name(run)
    folder = home / "runs" / run
    folder.mkdir(parents=True, exist_ok=True)
    try:
        lock = FileLock(folder / _LOCK, timeout=0).acquire()
    except Timeout as error:
        raise ConfigError(f"the run {run} is at work already: wait for its end, or choose another --name") from error
    with lock:
        running = folder / _RUNNING
        check(home, run, experiment)
        run_records.claim(experiment, run)
        value = experiment.model_dump(mode="json")
        storage.write_json(storage.from_path(folder / _CLAIM), {"experiment": value})
        began = datetime.now().astimezone().isoformat(timespec="seconds")
        record = {"experiment": value, "began": began, "pid": os.getpid()}
        storage.write_json(storage.from_path(running), record)
        try:
            yield folder
        finally:
            running.write_bytes(b"")


def check(home: Path, run: str, experiment: Experiment) -> None:
    """Check that a run's name is free in a home, or belongs to this experiment.

    Raises:
        ConfigError: it belongs to another experiment; the message says what differs.
    """
    with suppress(FileNotFoundError, ValidationError):
        Claim.model_validate_json((home / "runs" / run / _CLAIM).read_bytes()).check(experiment, run)


def killed(home: Path) -> list[Killed]:
    """Find the runs of a home that were killed, oldest first; each is found once."""
    runs = []
    for path in (home / "runs").glob(f"*/{_RUNNING}"):
        with suppress(Timeout), FileLock(path.with_name(_LOCK), timeout=0):
            if not (text := path.read_bytes()):
                continue
            # Another version's record, or one that a full disk cut off, is ignored.
            with suppress(ConfigError, ValueError, KeyError, TypeError):
                value = json.loads(text)
                runs.append(Killed(path.parent.name, documents.parse(value["experiment"]), str(value["began"])))
            path.write_bytes(b"")
    return sorted(runs, key=lambda each: each.began)


def works(folder: Path) -> bool:
    """Return whether a process runs under the name whose folder this is."""
    try:
        return psutil.pid_exists(json.loads((folder / _RUNNING).read_bytes())["pid"])
    except (OSError, ValueError, KeyError, TypeError):
        return False


def explain(each: Killed) -> str:
    """End the runs in MLflow that a killed run left open, and return a message about it."""
    mlflow_runs.end_open_runs(each.experiment, each.run, "KILLED")
    return f"the run {each.run}, begun {each.began}, was killed. {outlook(each.experiment, each.run)}"


def outlook(experiment: Experiment, run: str) -> str:
    """Return a message about an unfinished run: which stages are finished, and which is next."""
    done = [record.stage for record in Run.of(experiment, run).records.values() if record.state == "succeeded"]
    stage = next((stage for stage in stages.WHOLE_RUN if stage not in done), stages.WHOLE_RUN[-1])
    next_run = f"A run with the same config reuses what is finished, and goes on with {stage} where it stopped."
    return f"Finished and kept: {', '.join(done)}. {next_run}" if done else next_run
