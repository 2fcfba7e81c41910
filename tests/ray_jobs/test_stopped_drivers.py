"""Drivers that are stopped while they hold all cores of a real Ray: those that were taken over are ended."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from ray_jobs import stopped_drivers
from wukong.config import documents, stored
from wukong.store import fence, storage

pytestmark = pytest.mark.slow

_DRIVER = """
import os, sys, ray
from wukong.store import fence
ray.init(address=os.environ["RAY_ADDRESS"], configure_logging=False, log_to_driver=False)
fence.claim(os.environ["ROOT"], "a", "pretrain")
class Worker:
    def hold(self):
        return "holds"
worker = ray.remote(num_cpus=2)(Worker).remote()
print(ray.get(worker.hold.remote()), fence.claimed(), flush=True)
sys.stdin.read()
"""


class Driver:
    """A driver, as ``ray_jobs.launch`` starts one, that is stopped while a worker of it has both cores."""

    def __init__(self, folder: Path) -> None:
        crawl = {"queries": "file:///q", "endpoint": "http://site.test"}
        experiment = documents.parse({"name": "e", "storage": storage.from_path(folder), "crawl": crawl})
        (folder / "ray_jobs.py").write_text(_DRIVER)
        arguments = ["pretrain", "--experiment", stored.store(experiment), "--run", "a", "--parent", "file:///none"]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "ray_jobs", *arguments],
            cwd=folder,
            env=os.environ | {"ROOT": experiment.root, "PYTHONPATH": str(Path(__file__).parents[2])},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        said, self.attempt = self.process.stdout.readline().split()
        assert said == "holds"
        self.process.send_signal(signal.SIGSTOP)


@pytest.fixture
def stopped(tmp_path: Path, local_ray: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Driver]:
    monkeypatch.setenv("RAY_ADDRESS", ray.get_runtime_context().gcs_address)
    monkeypatch.setenv(fence.VARIABLE, "")
    monkeypatch.setattr(stopped_drivers, "_LOOK_SECONDS", 0.2)
    driver = Driver(tmp_path)
    yield driver
    driver.process.kill()
    driver.process.communicate()


def test_one_that_was_taken_over_gives_its_cores_back(stopped: Driver) -> None:
    work = ray.remote(num_cpus=1)(lambda: "done").remote()
    assert not ray.wait([work], timeout=3)[0], "the stopped driver has all cores"
    fence.end(stopped.attempt, "run b")
    with stopped_drivers.watched():
        assert ray.get(work, timeout=60) == "done"
    assert stopped.process.wait(10) == -signal.SIGKILL


def test_one_that_may_go_on_is_named_once(stopped: Driver, caplog: pytest.LogCaptureFixture) -> None:
    with stopped_drivers.watched():
        until = time.monotonic() + 30
        while not caplog.messages and time.monotonic() < until:
            time.sleep(0.1)
        time.sleep(1)
    (told,) = [message for message in caplog.messages if "is stopped" in message]
    assert told.startswith(f"process {stopped.process.pid}, the pretrain of run a, is stopped and keeps cores")
    stopped.process.send_signal(signal.SIGCONT)
    stopped.process.communicate("")
    assert stopped.process.returncode == 0
