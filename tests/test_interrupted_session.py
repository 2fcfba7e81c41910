"""A session of tests prints a failure when it happens, imports once, and ends at Ctrl-C whatever it has started."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
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


@pytest.mark.parametrize("processes", ["0", "2"])
def test_it_prints_a_failure_when_it_happens(tmp_path: Path, processes: str) -> None:
    seen = tmp_path / "seen"
    (tmp_path / "test_1.py").write_text("def test_that_fails() -> None:\n    assert 6 * 7 == 43\n")
    (tmp_path / "test_2.py").write_text(
        "import time\nfrom pathlib import Path\n\n\ndef test_that_waits_until_it_is_seen() -> None:\n"
        f"    until = time.monotonic() + 20\n    while not Path({str(seen)!r}).exists():\n"
        "        assert time.monotonic() < until\n        time.sleep(0.05)\n"
    )
    command = [sys.executable, "-m", "pytest", "-p", "conftest", "--rootdir", str(tmp_path), "-n", processes, "."]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True) as begun:
        assert begun.stdout is not None
        for line in begun.stdout:
            if "(6 * 7) == 43" in line:
                seen.touch()
    assert "1 failed, 1 passed in" in line, "the second has seen the failure of the first"


def _imported() -> set[str]:
    return set(sys.modules)


@pytest.mark.long
def test_processes_are_forked_from_one_that_has_imported_what_they_need() -> None:
    with ProcessPoolExecutor(1, get_context("forkserver")) as forked:
        assert forked.submit(_imported).result() >= {"torch", "wukong.train.loop", "wukong.publish.takedown", "boto3"}
