"""Ctrl-C ends whatever a session of tests has started."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[1]
SERVERS = '''"""A server in a session of its own, and an object store, whose environment is not that of the tests."""

import subprocess
import time
from pathlib import Path

from object_store import ObjectStore


def test_that_waits(tmp_path: Path) -> None:
    store = ObjectStore(tmp_path / "store")
    store.start()
    server = subprocess.Popen(["sleep", "600"], start_new_session=True)
    Path(__file__).with_suffix(".pids").write_text(f"{server.pid} {store._process.pid}")
    time.sleep(600)
'''


@pytest.mark.parametrize("processes", ["0", "2"])
def test_it_ends_servers(tmp_path: Path, processes: str) -> None:
    tests = [tmp_path / f"test_{number}.py" for number in range(max(int(processes), 1))]
    for file in tests:
        file.write_text(SERVERS)
    command = [sys.executable, "-m", "pytest", "-p", "conftest", "--rootdir", str(tmp_path), "-n", processes, "."]
    begun = subprocess.Popen(
        command,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests/wukong/store'}"},
        stdout=subprocess.DEVNULL,
        process_group=0,
    )
    wanted = [file.with_suffix(".pids") for file in tests]
    until = time.monotonic() + 60
    while not all(file.exists() and file.read_text() for file in wanted):
        assert time.monotonic() < until and begun.poll() is None
        time.sleep(0.05)
    os.killpg(begun.pid, signal.SIGINT)
    assert begun.wait(60) == pytest.ExitCode.INTERRUPTED
    started = [int(pid) for file in wanted for pid in file.read_text().split()]
    servers = [psutil.Process(pid) for pid in started if psutil.pid_exists(pid)]
    assert psutil.wait_procs(servers, timeout=10)[1] == []
