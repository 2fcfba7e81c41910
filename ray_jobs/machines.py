"""What Ray was given for a job, and what processor time the job used of it.

The driver writes both down (``wukong.runs.run_costs``) when it has connected to Ray, every minute, and at its end; of a
driver that is killed the last minute is missing, and what it wrote says that its end is not known.

In KubeRay's pods the processor time is that of each container's control group since its start, asked for at the end by
a task on each node. Elsewhere it is that of the job's processes on the driver's machine, which are looked at every five
seconds: Ray's raylet leaves no trace of the times of processes that have ended.
"""

import logging
import os
import threading
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import ray
import ray.exceptions
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from wukong.config.experiment import Experiment
from wukong.errors import StorageError
from wukong.runs import run_costs
from wukong.runs.run_costs import Holding, Sheet
from wukong.store import manifest

_LOOK_SECONDS = 5.0
_LOOKS = 12  # until what was seen is stored again
_ANSWER_SECONDS = 5.0  # for which the end of a job waits for its nodes
_POD = "RAY_CLUSTER_NAME"  # KubeRay sets it in its pods' Ray containers
_GROUPS = (
    ("cpu.stat", "usage_usec", 1e-6),
    ("cpuacct/cpuacct.usage", "", 1e-9),
    ("cpu,cpuacct/cpuacct.usage", "", 1e-9),
)
"""Below the mount of control groups, of version 2 and of version 1: file, name of the number in it, seconds of one."""

log = logging.getLogger(__name__)


@contextmanager
def noted(experiment: Experiment, run: str, stage: str) -> Iterator[None]:
    """Write down what the job in the block holds, uses and commits; nothing of it fails the job.

    Args:
        experiment: the experiment.
        run: name of the pipeline run.
        stage: name of the stage's record.
    """
    attempt, here = uuid.uuid4().hex[:12], ray.get_runtime_context()
    began, before, over = time.time(), dict(manifest.committed), threading.Event()
    nodes = _alive()
    socket = nodes[here.get_node_id()]["RayletSocketName"]
    processes = None if _POD in os.environ else ProcessTimes(here.get_job_id(), _raylet(socket))
    used_before = processes.look() if processes is not None else 0.0  # to import libraries and to start Ray

    def write(used: Mapping[str, float], *, ended: bool = False) -> None:
        held = [
            Holding(
                key=f"{node}/{attempt}",
                name=machine["NodeManagerHostname"],
                cores=machine["Resources"].get("CPU", 0.0),
                memory=int(sum(machine["Resources"].get(name, 0) for name in ("memory", "object_store_memory"))),
                gpus=machine["Resources"].get("GPU", 0.0),
                began=began,
                until=time.time(),
                ended=ended,
                used=used.get(node),
            )
            for node, machine in nodes.items()
        ]
        written = {name: size - before.get(name, 0) for name, size in manifest.committed.items()}
        try:
            sheet = Sheet(source="ray", held=tuple(held), written=written)
            run_costs.write(experiment, run, stage, f"ray-{attempt}", sheet)
        except StorageError as error:
            log.warning("what %s holds is not written down: %s", stage, error)

    def look() -> dict[str, float]:
        return {here.get_node_id(): processes.look() - used_before} if processes is not None else {}

    def watch() -> None:
        write({})
        looks = 0
        while not over.wait(_LOOK_SECONDS):
            used, looks = look(), looks + 1
            if looks % _LOOKS == 0:
                write(used)

    thread = threading.Thread(target=watch, name="machines", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()  # so that what it writes is not the last
        used = look()
        if processes is None:
            try:
                nodes |= _alive()  # with those that have taken a lost one's place
                used = _of_containers(nodes, here.get_node_id())
            except Exception as error:  # noqa: BLE001 - the head may be gone, which the job's own error says
                log.debug("the nodes are not asked what they used: %s", error)
        write(used, ended=True)


class ProcessTimes:
    """Processor time of a Ray job's processes on this machine: the driver and its workers, with all that they start.

    Args:
        job: Ray's name of the job, which Ray gives its workers as ``RAY_JOB_ID``. Another Ray on this machine may have
            a job of the same name.
        raylet: process ID of the node's raylet, which Ray gives its workers as ``RAY_RAYLET_PID``.
        driver: process ID of the driver.
    """

    def __init__(self, job: str, raylet: int | None, driver: int | None = None) -> None:
        self._named = {"RAY_JOB_ID": job, "RAY_RAYLET_PID": str(raylet)}
        self._driver = os.getpid() if driver is None else driver
        self._is_worker: dict[tuple[int, float], bool] = {}
        self._seconds: dict[tuple[int, float], float] = {}

    def look(self) -> float:
        """Return the seconds that were used until now; of processes that have ended, until the last look at them."""
        running = {process.pid: process for process in psutil.process_iter(["ppid", "create_time", "cpu_times"])}
        keys = {pid: (pid, process.info["create_time"]) for pid, process in running.items()}
        for pid, process in running.items():
            if keys[pid] not in self._is_worker:
                self._is_worker[keys[pid]] = self._has_name(process)
        below: dict[int, list[int]] = {}
        for pid, process in running.items():
            below.setdefault(process.info["ppid"], []).append(pid)

        def is_root(pid: int) -> bool:
            """Whether a process counts by itself: what workers start has their variables, and counts with them."""
            parent = running[pid].info["ppid"]
            return pid == self._driver or (
                self._is_worker[keys[pid]] and not (parent in keys and self._is_worker[keys[parent]])
            )

        def used(pid: int) -> float:
            times = running[pid].info["cpu_times"]
            own = sum(times[:4]) if times is not None else 0.0  # its own, and of children that it has waited for
            return own + sum(used(child) for child in below.get(pid, ()) if not is_root(child))

        for pid in filter(is_root, running):
            self._seconds[keys[pid]] = max(used(pid), self._seconds.get(keys[pid], 0.0))
        return sum(self._seconds.values())

    def _has_name(self, process: psutil.Process) -> bool:
        try:
            return self._named.items() <= process.environ().items()
        except psutil.Error:  # of another user, or it has ended
            return False


def _raylet(socket: str) -> int | None:
    """Process ID of the raylet that listens at a socket of this machine; None if it is not seen."""
    name = f"--raylet_socket_name={socket}"
    named = (each.pid for each in psutil.process_iter(["cmdline"]) if name in (each.info["cmdline"] or ()))
    return next(named, None)


def used_by_container(root: Path = Path("/sys/fs/cgroup")) -> float | None:
    """Return the seconds of processor time of this container since its start; None where its group says nothing."""
    for name, key, seconds in _GROUPS:
        try:
            lines = [line.split() for line in (root / name).read_text(encoding="utf-8").splitlines()]
        except OSError:
            continue
        found = [words[-1] for words in lines if words and (words[0] == key or not key)]
        if found:
            return int(found[0]) * seconds
    return None


def _alive() -> dict[str, Mapping[str, Any]]:
    return {machine["NodeID"]: machine for machine in ray.nodes() if machine["Alive"]}


def _of_containers(nodes: Iterable[str], here: str) -> dict[str, float]:
    """Ask nodes for their containers' processor time; those that do not answer in time are left out.

    Args:
        nodes: Ray's names of them.
        here: that of this one, whose head has no memory to spare for another process.
    """
    ask = ray.remote(num_cpus=0, max_retries=0)(used_by_container)
    asked = {
        ask.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(): node
        for node in nodes
        if node != here
    }
    answered = ray.wait([*asked], num_returns=len(asked), timeout=_ANSWER_SECONDS)[0] if asked else []
    said: dict[str, float | None] = {here: used_by_container()}
    for reference in answered:
        try:
            said[asked[reference]] = ray.get(reference)
        except ray.exceptions.RayError as error:
            log.debug("node %s does not say what it used: %s", asked[reference], error)
    return {node: seconds for node, seconds in said.items() if seconds is not None}
