"""Two processes and one run's name: who gets it, and what is left of it when its holder is killed."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli import hold
from wukong.config import documents
from wukong.config.experiment import Experiment
from wukong.errors import ConfigError
from wukong.store import storage

HOLDER = """
import json, subprocess, sys, time
from pathlib import Path
from cli import hold
from wukong.config import documents
experiment = documents.parse(json.loads(sys.argv[2]))
with hold.hold(Path(sys.argv[1]), "r", experiment):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    print(child.pid, flush=True)
    sys.stdin.read()
child.kill()
"""


@pytest.fixture
def experiment(tmp_path: Path) -> Experiment:
    crawl = {"queries": "file:///q", "endpoint": "http://site.test"}
    return documents.parse({"name": "x", "storage": storage.from_path(tmp_path / "data"), "crawl": crawl})


@pytest.fixture
def holder(tmp_path: Path, experiment: Experiment) -> "Iterator[subprocess.Popen[str]]":
    """A process that holds the name ``r`` until its input ends, and has a child that lives longer."""
    command = [sys.executable, "-c", HOLDER, str(tmp_path), experiment.model_dump_json()]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, start_new_session=True) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        try:
            yield process
        finally:
            process.kill()
            subprocess.run(["kill", "-9", str(child)], check=False, capture_output=True)


def test_a_name_in_use_is_refused_until_its_holder_ends(
    tmp_path: Path, experiment: Experiment, holder: "subprocess.Popen[str]"
) -> None:
    with pytest.raises(ConfigError, match="the run r is at work already"), hold.hold(tmp_path, "r", experiment):
        pytest.fail("two under one name")
    assert json.loads((tmp_path / "runs" / "r" / "running.json").read_bytes())["pid"] == holder.pid
    assert hold.killed(tmp_path) == [], "it is at work"
    holder.communicate(timeout=60)
    assert hold.killed(tmp_path) == [], "it ended in order"
    with hold.hold(tmp_path, "r", experiment):
        pass


def test_a_killed_holder_is_found_once_though_its_child_lives(
    tmp_path: Path, experiment: Experiment, holder: "subprocess.Popen[str]"
) -> None:
    holder.kill()
    holder.wait(60)
    (found,) = hold.killed(tmp_path)
    assert (found.run, found.experiment) == ("r", experiment)
    assert hold.killed(tmp_path) == []
    with hold.hold(tmp_path, "r", experiment):
        pass


@pytest.mark.parametrize("content", [b"\xff", b"{", b'{"experiment": {}}'])
def test_an_unreadable_record_is_ignored_and_emptied(tmp_path: Path, content: bytes) -> None:
    folder = tmp_path / "runs" / "r"
    folder.mkdir(parents=True)
    (folder / "running.json").write_bytes(content)
    assert hold.killed(tmp_path) == []
    assert (folder / "running.json").read_bytes() == b""
