"""Every stage on a Ray of three nodes: the same digests as on one, also when a node is killed in each stage.

The nodes are processes of this machine with addresses of their own on loopback; the storage is a real object store.
``make test-apart NAME=nodes`` runs all but the refusal of a folder: they take too long for each change.
"""

import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
from loopback_web import Web, answering
from object_store import ObjectStore
from ray.cluster_utils import Cluster
from test_training_jobs import COLOURS, SHAPES, picture

from ray_jobs import __main__ as job
from wukong.config import documents, stored
from wukong.config.experiment import Experiment
from wukong.runs import run_records
from wukong.runtime.environment import CONNECT_TO
from wukong.store import fence, storage

HOST = "corpus.test"
STAGES = ("crawl", "filter", "validate", "pretrain", "finetune", "evaluate")
TASKS = dict.fromkeys(STAGES, "") | {"pretrain": "_on_core", "finetune": "RayTrainWorker"}
"""How the title begins of the tasks in which a node is killed, by stage: those of pretrain compute the features."""

HOLDOUTS = [
    {"name": "new-words", "source": "*/plain/*", "captions": "unseen"},
    {"name": "new-style", "source": "*/outlined/*", "captions": "any"},
]
MATRIX = pytest.mark.skipif(os.environ.get("WUKONG_APART") != "nodes", reason="make test-apart NAME=nodes")

DRIVER = """
import importlib, json, sys, time
import ray
from ray_jobs import __main__ as job
from wukong.config import documents
from wukong.store import storage

experiment = documents.parse(storage.read_json(sys.argv[1]))
job.connect()
made = {}
for stage in sys.argv[2:]:
    print("begins", stage, flush=True)
    made[stage] = importlib.import_module(f"ray_jobs.{stage}").run(experiment, made)
    print("ended", stage, made[stage].digest, flush=True)
    sys.stdin.readline()  # until there are enough nodes again
time.sleep(1.5)  # Ray sends its events once a second
for event in ray.timeline():
    if event["cat"].startswith("task::"):
        print("ran", event["pid"], event["cat"].removeprefix("task::"))
"""


def test_a_folder_is_refused_where_there_are_several_nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    crawl = {"queries": storage.from_path(tmp_path / "none.txt"), "endpoint": "http://site.invalid/search"}
    experiment = documents.parse({"name": "x", "storage": storage.from_path(tmp_path), "crawl": crawl})
    monkeypatch.setattr(job, "connect", lambda: None)
    monkeypatch.setattr("ray_jobs.machines.noted", lambda *_: nullcontext())  # there is no Ray to ask
    monkeypatch.setattr(job, "end_with_parent", lambda: None)
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True}, {"Alive": True}, {"Alive": False}])
    arguments = ["crawl", "--experiment", stored.store(experiment), "--run", "first"]
    assert job.main(arguments) == 1
    record = run_records.read(experiment, "first", "crawl")
    assert record is not None
    assert f"storage: {experiment.storage} is a folder of one machine" in record.error
    assert "s3://BUCKET" in record.error and not record.traceback
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True}, {"Alive": False}])
    assert job.main(arguments) == 1
    record = run_records.read(experiment, "first", "crawl")
    assert record is not None
    assert "none.txt" in record.error, "with one node the stage begins"


def urls_and_captions() -> Iterator[tuple[str, str, bytes]]:
    for style, copies in (("plain", 3), ("outlined", 1)):
        for name, colour in COLOURS.items():
            for title, shape in SHAPES.items():
                for place in range(copies):
                    path = f"/{style}/{colour}-{shape}-{place}.jpg"
                    yield path, f"{name}色的{title}", picture(style, colour, shape, place)


def in_the_bucket(folder: str) -> Experiment:
    training = {"workers": 2, "epochs": 2, "batch_size": 16, "views": 1, "checkpoint": {"least_seconds": 0}}
    return documents.parse(
        {
            "name": "x",
            "storage": f"s3://nodes/{folder}",
            "crawl": {
                "engine": "urls",
                "endpoint": "s3://nodes/list.csv",
                "part_size": 8,
                "politeness": {
                    "per_host_concurrency": 2,  # fewer than tasks, so that there is a ledger
                    "per_host_delay": 0.05,  # so that it lasts until each node has started a worker
                },
            },
            "filter": {"shard_size": 20, "split": {"held_out_captions": 0.2, "holdouts": HOLDOUTS}},
            "validation": {"min_pairs": 10},
            "model": {
                "image": {"image_size": 64, "block": 2},
                "text": {"layers": 1, "heads": 2, "width": 32, "pooling": "mean"},
                "embedding": 16,
            },
            "pretrain": training,
            "finetune": training,
        }
    )


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    """A web site with pictures, and an object store with a list of them."""
    folder = tmp_path_factory.mktemp("nodes")
    store, web = ObjectStore(folder), Web()
    store.start()
    web.handlers["/robots.txt"] = answering(b"", status="404 Not Found")
    pictures = list(urls_and_captions())
    for path, _, body in pictures:
        web.bytes_at(path, body)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in store.variables().items():
            patch.setenv(name, value)
        patch.setenv(CONNECT_TO, f"{HOST}=127.0.0.1:{web.port}")
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
        patch.setenv("RAY_enable_metrics_collection", "0")
        for name in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI", fence.VARIABLE):
            patch.delenv(name, raising=False)
        store.wait_ready("nodes")
        lines = ["url,caption", *(f"http://{HOST}{path},{caption}" for path, caption, _ in pictures)]
        storage.write_bytes("s3://nodes/list.csv", "\n".join(lines).encode())
        yield web
    web.stop()
    store.kill()


class Nodes:
    """A Ray of several nodes with a core each. The first is the head, at 127.0.0.2.

    Args:
        count: number of nodes.
        folder: folder of Ray's sessions.
        head_cores: number of the head's cores; with 0, as KubeRay advises, all tasks run on the others.
    """

    def __init__(self, count: int, folder: Path, head_cores: int = 1) -> None:
        self._next = 2
        self._others: list[Any] = []
        head = {"node_ip_address": "127.0.0.2", "include_dashboard": False, "temp_dir": str(folder)}
        self._cluster = Cluster(initialize_head=True, connect=False, head_node_args={**head, "num_cpus": head_cores})
        self.count = count
        self.fill()
        self._cluster.wait_for_nodes(timeout=60)  # a crawl asks once how many cores there are

    @property
    def address(self) -> str:
        return str(self._cluster.address)

    def fill(self) -> None:
        """Start nodes until there are as many as at first."""
        while len(self._others) < self.count - 1:
            self._next += 1
            address = f"127.0.0.{self._next}"
            self._others.append(self._cluster.add_node(num_cpus=1, node_ip_address=address, wait=False))

    def kill_one_with(self, task: str, seconds: float) -> bool:
        """Kill a node and its workers, all at once, some seconds after one that is not the head has such a task.

        A new node takes its place: a training with two workers waits for two cores.
        """
        for node in self._others:
            raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
            if any(works(worker, task) for worker in raylet.children(recursive=True)):
                time.sleep(seconds)
                for process in (raylet, *raylet.children(recursive=True)):
                    with suppress(psutil.NoSuchProcess):
                        process.kill()
                self._others.remove(node)
                self.fill()
                return True
        return False

    def stop(self) -> None:
        self._cluster.shutdown()


def works(process: psutil.Process, task: str) -> bool:
    with suppress(psutil.Error):
        title = "".join(process.cmdline()[:1])  # a process that has ended has none
        return title.startswith(f"ray::{task}") and not title.startswith(("ray::IDLE", "ray::Dash", "ray::RuntimeEnv"))
    return False


@contextmanager
def nodes_of(count: int, folder: Path, head_cores: int = 1) -> Iterator[Nodes]:
    nodes = Nodes(count, folder, head_cores)
    try:
        yield nodes
    finally:
        nodes.stop()


class Run:
    """What a driver that runs all stages says: their digests, and which tasks ran on which nodes.

    Args:
        folder: below which it stores, in the bucket.
        nodes: that it runs on; None for a Ray of its own on one node.
        killed: stages in each of which a node is killed as soon as one that is not the head has a task.
        seconds: how much later.
    """

    def __init__(
        self, folder: str, nodes: Nodes | None = None, killed: Sequence[str] = (), seconds: float = 0.0
    ) -> None:
        self.digests: dict[str, str] = {}
        self.killed: list[str] = []
        self.tasks: dict[str, set[str]] = defaultdict(set)
        uri = f"s3://nodes/{folder}.json"
        storage.write_json(uri, in_the_bucket(folder).model_dump(mode="json"))
        environment = {**os.environ, **({"RAY_ADDRESS": nodes.address} if nodes else {})}
        command = [sys.executable, "-c", DRIVER, uri, *STAGES]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        with subprocess.Popen(command, env=environment, text=True, bufsize=1, **pipes) as driver:
            assert driver.stdout is not None and driver.stdin is not None
            lines: queue.Queue[str] = queue.Queue()
            threading.Thread(target=lambda: [*map(lines.put, driver.stdout), lines.put("")], daemon=True).start()
            stage = ""
            while True:
                try:
                    line = lines.get(timeout=0.005)
                except queue.Empty:
                    if nodes and stage in killed and stage not in self.killed:
                        self.killed += [stage] if nodes.kill_one_with(TASKS[stage], seconds) else []
                    continue
                if not line:
                    break
                match line.split():
                    case ["begins", begun]:
                        stage = begun
                    case ["ended", ended, digest]:
                        self.digests[ended], stage = digest, ""
                        if nodes:
                            nodes.fill()
                        driver.stdin.write("\n")
                    case ["ran", address, task]:
                        self.tasks[task].add(address)
        assert driver.returncode == 0


@pytest.fixture(scope="module")
def one_node(world: Web) -> Run:
    return Run("one")


def check_places(run: Run, count: int) -> None:
    """Check that each kind of task of a run without a kill ran on all nodes, if there were tasks enough."""
    everywhere = {f"127.0.0.{2 + number}" for number in range(count)}
    print(json.dumps({task: sorted(places) for task, places in run.tasks.items()}, indent=1))
    for task in ("_download", "_run_and_record", "_on_core"):
        assert run.tasks[task] == everywhere, task
    assert set.union(*run.tasks.values()) == everywhere


@MATRIX
@pytest.mark.slow
def test_a_node_is_killed_in_each_stage(one_node: Run, tmp_path_factory: pytest.TempPathFactory) -> None:
    with nodes_of(3, tmp_path_factory.mktemp("ray"), head_cores=0) as nodes:
        run = Run("killed", nodes, killed=STAGES)
    assert run.killed == [*STAGES]
    assert run.digests == one_node.digests


@MATRIX
@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 3])
def test_every_stage_runs_on_all_nodes(one_node: Run, count: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    with nodes_of(count, tmp_path_factory.mktemp("ray")) as nodes:
        run = Run(f"whole-{count}", nodes)
    check_places(run, count)
    assert run.digests == one_node.digests


@MATRIX
@pytest.mark.slow
@pytest.mark.parametrize(("count", "seconds"), [(3, 0.3), (3, 1.0), (4, 3.0)])
def test_a_node_is_killed_later(
    one_node: Run, count: int, seconds: float, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with nodes_of(count, tmp_path_factory.mktemp("ray"), head_cores=0) as nodes:
        run = Run(f"later-{count}-{seconds}", nodes, killed=STAGES, seconds=seconds)
    assert "crawl" in run.killed, "a stage may end before"
    assert run.digests == one_node.digests
