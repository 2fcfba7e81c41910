"""What a job says of the machines that it had, and of the processor time that it used there."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import ray

from ray_jobs import machines
from ray_jobs.machines import ProcessTimes, used_by_container
from wukong.config import documents
from wukong.config.experiment import Experiment
from wukong.runs import run_costs
from wukong.store import storage
from wukong.store.manifest import Stage

_BURN = "import sys, time\nwhile time.process_time() < float(sys.argv[1]): pass\n"
_WORKER = f"""
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", {_BURN!r}, "0.5"])  # with the worker's variables, and waited for
while time.process_time() < 0.5: pass
child.wait()
print(flush=True)
sys.stdin.read()
"""


def test_processor_time_is_that_of_the_driver_and_of_its_jobs_workers_until_they_ended() -> None:
    def started(job: str, raylet: int) -> subprocess.Popen[str]:
        variables = os.environ | {"RAY_JOB_ID": job, "RAY_RAYLET_PID": str(raylet)}
        command = [sys.executable, "-c", _WORKER]
        return subprocess.Popen(command, env=variables, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    job, another = (os.urandom(4).hex() for _ in range(2))  # of no Ray that other tests have started
    own, other, elsewhere = started(job, 1001), started(another, 1001), started(job, 1002)
    idle = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
    times = ProcessTimes(job, 1001, driver=idle.pid)
    for worker in (own, other, elsewhere):
        assert worker.stdout is not None and worker.stdout.readline() == "\n"
    looked = times.look()
    used = []
    for worker in (own, other, elsewhere):
        assert worker.stdin is not None
        worker.stdin.close()
        _, _, usage = os.wait4(worker.pid, 0)
        worker.returncode = 0
        used.append(usage.ru_utime + usage.ru_stime)
    assert used[0] > 1.0
    assert looked == pytest.approx(used[0], abs=0.3), "the worker with its child, not another job's, not another Ray's"
    assert times.look() >= looked, "it has ended and still counts"
    idle.communicate()


@pytest.mark.parametrize(
    ("file", "text", "expected"),
    [
        ("cpu.stat", "usage_usec 2500000\nuser_usec 2000000\nsystem_usec 500000\n", 2.5),
        ("cpuacct/cpuacct.usage", "1500000000\n", 1.5),
        ("cpu,cpuacct/cpuacct.usage", "3000000000\n", 3.0),
        ("cpu.stat", "nr_periods 7\n", None),
    ],
)
def test_a_container_says_what_it_used(tmp_path: Path, file: str, text: str, expected: float | None) -> None:
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text(text)
    assert used_by_container(tmp_path) == expected
    assert used_by_container(tmp_path / "none") is None


@pytest.fixture
def experiment(tmp_path: Path) -> Experiment:
    crawl = {"queries": "file:///q", "endpoint": "http://site.test"}
    return documents.parse({"name": "x", "storage": storage.from_path(tmp_path), "crawl": crawl})


@pytest.mark.long
@pytest.mark.usefixtures("local_ray")
def test_a_job_on_one_machine_holds_what_ray_was_given(experiment: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_CLUSTER_NAME", raising=False)
    before = time.time()
    for attempt in range(2):
        with machines.noted(experiment, "r", "crawl"):
            time.sleep(0.5)
            if attempt:
                made = Stage(experiment.root, "crawl", {})
                storage.write_bytes(made.path("a"), b"12345")
                made.commit([made.describe("a")])
        time.sleep(0.5)  # between attempts nothing is held
    lasted = time.time() - before
    (cost,) = run_costs.of_run(experiment, "r")
    assert cost.held is not None and cost.held.ended and cost.source == "ray"
    assert 2 * 1.0 <= 3600 * cost.held.core_hours <= 2 * (lasted - 1.0)
    given = ray.cluster_resources()
    memory = (given["memory"] + given["object_store_memory"]) / 2**30
    assert cost.held.gib_hours == pytest.approx(cost.held.core_hours / 2 * memory, rel=1e-6)
    assert cost.held.idle is not None and cost.held.gpu_hours == 0
    files = storage.list_files(f"{experiment.root}/runs/r/held/crawl")
    written = [storage.read_json(uri)["written"] for uri in files]
    assert sorted(sum(each.values()) for each in written) == [0, 5]


# With variables, as each of our jobs: Ray's first workers have no job in theirs.
@ray.remote(runtime_env={"env_vars": {"A_JOB_OF": "its own"}})
def _burn(seconds: float) -> float:
    while time.process_time() < seconds:
        pass
    time.sleep(1)
    return time.process_time()


@pytest.mark.long
@pytest.mark.usefixtures("local_ray")
def test_workers_of_this_ray_count_until_they_end() -> None:
    here = ray.get_runtime_context()
    (socket,) = [node["RayletSocketName"] for node in ray.nodes() if node["NodeID"] == here.get_node_id()]
    idle = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
    times = ProcessTimes(here.get_job_id(), machines._raylet(socket), driver=idle.pid)
    before = times.look()
    used = ray.get(_burn.remote(3.0))
    assert times.look() - before >= used - 0.5
    idle.communicate()


@pytest.mark.long
@pytest.mark.usefixtures("local_ray")
def test_in_pods_each_node_is_asked_what_its_container_used(
    experiment: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_CLUSTER_NAME", "job-q8z4d")
    used = used_by_container()
    with machines.noted(experiment, "r", "crawl"):
        pass
    (uri,) = storage.list_files(f"{experiment.root}/runs/r/held/crawl")
    (node,) = storage.read_json(uri)["held"]
    assert node["name"] == os.uname().nodename
    if used is None:
        assert node["used"] is None
    else:
        assert node["used"] >= used
