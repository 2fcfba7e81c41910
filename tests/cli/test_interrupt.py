"""What a signal to ``wukong run`` leaves behind: nothing at work, runs that are KILLED in MLflow, and word of it.

The components, Ray and MLflow's store are real; the search site accepts connections and never answers.
"""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from cli import hold
from wukong.config import documents
from wukong.config.experiment import Experiment
from wukong.errors import ConfigError
from wukong.store import storage

mlflow = pytest.importorskip("mlflow")
pytestmark = pytest.mark.long

SCRIPT = """
import json, sys
from pathlib import Path
from cli import hold, run
from wukong.config import documents, stored
experiment = documents.parse(json.loads(Path(sys.argv[1]).read_text()))
with hold.hold(Path(sys.argv[2]), "first", experiment) as folder:
    log = (folder / "log.txt").open("a", buffering=1)
    with run._ended_in_order(experiment, "first", folder):
        run._run_pipeline(stored.store(experiment), "first", folder, log, None)
"""


class Silent:
    """A server that accepts and says nothing."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.taken: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                self.taken.append(self.listener.accept()[0])
            except OSError:
                return


@pytest.fixture
def silent() -> Iterator[Silent]:
    server = Silent()
    yield server
    server.listener.close()


@pytest.fixture
def experiment(tmp_path: Path, silent: Silent, mlflow_address: str, monkeypatch: pytest.MonkeyPatch) -> Experiment:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_address)
    monkeypatch.setenv("WUKONG_CONNECT_TO", f"site.test=127.0.0.1:{silent.port}")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    (tmp_path / "queries.txt").write_text("猫\n狗\n", encoding="utf-8")
    crawl = {"queries": storage.from_path(tmp_path / "queries.txt"), "endpoint": "http://site.test/search"}
    crawl |= {"max_seconds": 600}
    name = f"x-{uuid.uuid4().hex[:8]}"
    return documents.parse({"name": name, "storage": storage.from_path(tmp_path / "data"), "crawl": crawl})


@pytest.fixture
def at_work(tmp_path: Path, experiment: Experiment, silent: Silent) -> "Iterator[tuple[subprocess.Popen[str], str]]":
    """A run that is crawling, and the mark in the environment of all that belongs to it."""
    mark = uuid.uuid4().hex
    (tmp_path / "experiment.json").write_text(experiment.model_dump_json())
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "experiment.json"), str(tmp_path / "home")]
    environment = {**os.environ, "MARK": mark, "PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        wait_for(lambda: bool(silent.taken) or process.poll() is not None, 1500)
        assert process.poll() is None, process.communicate()
        try:
            yield process, mark
        finally:
            for left in marked(mark):
                left.kill()


def wait_for(condition: Callable[[], bool], seconds: float) -> float:
    """Seconds it took to come true."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() < began + seconds, "did not happen in time"
        time.sleep(0.05)
    return time.monotonic() - began


def marked(mark: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("MARK") == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


def statuses(experiment: Experiment) -> dict[str, str]:
    client = mlflow.MlflowClient()
    found = client.search_runs([client.get_experiment_by_name(experiment.name).experiment_id])
    return {run.info.run_name: run.info.status for run in found}


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP"])
def test_a_signal_ends_all_that_belongs_to_the_run(
    at_work: "tuple[subprocess.Popen[str], str]", tmp_path: Path, experiment: Experiment, name: str
) -> None:
    process, mark = at_work
    assert len(marked(mark)) > 2, "the run, its job, Ray"
    assert set(statuses(experiment).values()) == {"RUNNING"}
    began = time.monotonic()
    if name == "SIGTERM":
        process.send_signal(signal.SIGTERM)
    else:
        os.killpg(process.pid, signal.Signals[name])  # a terminal tells all of them at once
    _, said = process.communicate(timeout=60)
    wait_for(lambda: not marked(mark), 60)
    print(f"all ended {time.monotonic() - began:.1f} s after {name}")  # below 10 where the machine is not busy
    assert process.returncode == 128 + signal.Signals[name]
    assert statuses(experiment) == {"first": "KILLED", "crawl": "KILLED"}
    assert f"interrupted by {name}; its runs in MLflow are ended as KILLED" in said
    assert "goes on with crawl where it stopped" in said
    assert "Traceback" not in said
    assert hold.killed(tmp_path / "home") == [], "it came to its end in order"


def test_of_a_run_that_is_killed_nothing_goes_on_and_the_next_one_says_so(
    at_work: "tuple[subprocess.Popen[str], str]", tmp_path: Path, experiment: Experiment
) -> None:
    process, mark = at_work
    home = tmp_path / "home"
    assert hold.killed(home) == [], "it is at work"
    with pytest.raises(ConfigError, match="first is at work already"), hold.hold(home, "first", experiment):
        pytest.fail("two under one name")
    process.kill()
    process.wait()
    wait_for(lambda: not marked(mark), 60)
    (found,) = hold.killed(home)
    assert (found.run, found.experiment) == ("first", experiment)
    said = hold.explain(found)
    assert statuses(experiment) == {"first": "KILLED", "crawl": "KILLED"}
    assert "the run first, begun 20" in said and "was killed" in said and "goes on with crawl" in said
    assert hold.killed(home) == [], "it is said once"


def test_a_local_name_belongs_to_one_experiment_of_any_name(tmp_path: Path) -> None:
    crawl = {"queries": "file:///q", "endpoint": "http://site.test"}
    storage_root = storage.from_path(tmp_path / "data")
    first, other = (documents.parse({"name": name, "storage": storage_root, "crawl": crawl}) for name in ("x", "y"))
    for _ in range(2):
        with hold.hold(tmp_path, "r", first) as folder:
            (folder / "report.html").write_text("of x")
    refused = pytest.raises(ConfigError, match=r"'r' belongs to another experiment(.|\n)*name: x there, y now")
    with refused, hold.hold(tmp_path, "r", other):
        pytest.fail("it began")
    assert (folder / "report.html").read_text() == "of x"
    assert hold.killed(tmp_path) == []
    # Storage that another home works with too: what it refuses leaves no trace in this one.
    changed = first.model_copy(update={"seed": 7})
    refused = pytest.raises(ConfigError, match="seed: 0 there, 7 now")
    with refused, hold.hold(tmp_path / "another home", "r", changed):
        pytest.fail("it began")
    with hold.hold(tmp_path / "another home", "r", first):
        pass


@pytest.mark.parametrize("text", ["{", "[]", '{"experiment": {}}', '{"experiment": {"name": "x"}, "began": ""}'])
def test_what_is_no_record_of_a_run_is_passed_over(tmp_path: Path, text: Any) -> None:
    (tmp_path / "runs" / "r").mkdir(parents=True)
    (tmp_path / "runs" / "r" / "running.json").write_text(text)
    assert hold.killed(tmp_path) == []
