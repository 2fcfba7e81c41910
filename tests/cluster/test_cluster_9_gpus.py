"""GPUs that nodes advertise: who asks for them, what is said where none can be used, and where none can be had.

A node advertises them by a device plugin, or because its status was patched. There is no driver.
"""

from collections.abc import Iterator
from decimal import Decimal

import kube
import pytest
import runs
import yaml
from session import State, experiment_of

GPU = "nvidia.com/gpu"
SOON = 60.0
"""Seconds within which something must be said."""


def _gpus(resources: kube.Object) -> int:
    return int(Decimal(resources.get(GPU, "0")))


@pytest.fixture
def most(installed: str) -> Iterator[int]:
    """The most GPUs of a node. Trainings get pods of two for the time of the test, and CPU builds inside.

    The nodes with GPUs are tainted as docs/operating.md says: pods of components would take their cores.
    """
    gpus = {
        node["metadata"]["name"]: _gpus(node["status"]["allocatable"]) for node in kube.listed("nodes", namespace="*")
    }
    found = max(gpus.values())
    if found < 2:
        pytest.skip("no node advertises two GPUs")
    having = [name for name, count in gpus.items() if count]
    kube.kubectl("taint", "nodes", *having, f"{GPU}=present:NoSchedule", "--overwrite")
    kube.kubectl("apply", "-f", "k8s/components/see-nodes/access.yaml")
    before = runs.launcher_settings()
    try:
        _set(before, 2)
        yield found
    finally:
        runs.set_launcher(before)
        kube.kubectl("taint", "nodes", *having, f"{GPU}=present:NoSchedule-")
        kube.kubectl("delete", "-f", "k8s/components/see-nodes/access.yaml")


def _set(settings: str, gpus_per_pod: int) -> None:
    value = yaml.safe_load(settings)
    small = {"cpus": 1, "memory": "1500Mi", "shared_memory": "480Mi"}
    tolerations = [{"key": GPU, "operator": "Exists", "effect": "NoSchedule"}]
    value["gpu"] = {"gpus_per_pod": gpus_per_pod, "tolerations": tolerations}
    value["stages"]["pretrain"] = small
    runs.set_launcher(yaml.safe_dump(value | {"no_node_seconds": SOON}))


def _job(run: runs.Run) -> kube.Object:
    """The RayJob of pre-training."""
    return kube.until("the RayJob of pre-training", lambda: runs.ray_jobs(run, "pretrain"), 900)[-1]


def _pods(job: kube.Object) -> list[kube.Object]:
    """The pods of a RayJob's Ray cluster, and those that submit it."""
    name = job["metadata"]["name"]
    found = kube.get("rayjobs.ray.io", name) or job
    cluster = found.get("status", {}).get("rayClusterName", "none")
    selectors = (f"ray.io/cluster={cluster}", f"batch.kubernetes.io/job-name={name}")
    return [pod for selector in selectors for pod in kube.listed("pods", selector)]


def _limits(pod: kube.Object) -> int:
    return sum(_gpus(container["resources"].get("limits", {})) for container in pod["spec"]["containers"])


@pytest.mark.cluster(
    claim="Two workers of a training with GPUs share a pod with two GPUs, on the node that has them; head and "
    "submitter ask for none. Where no driver is, the job says so within a minute of its first line, and ends; nothing "
    "is trained on CPUs",
    how="`gpus_per_pod: 2`, the first run's experiment with `workers` 2 and `gpus_per_worker` 1; limits and nodes of "
    "the pods, the log of the job and the record of pre-training",
)
def test_gpus_are_scheduled_and_not_replaced(
    most: int, first: runs.Run, services: runs.Services, session_state: State, found: list[str], stamp: str
) -> None:
    made = experiment_of(session_state)
    run = runs.start(services, made, f"gpus-{stamp}", "workers=2", "gpus_per_worker=1")
    job = _job(run)

    def placed() -> kube.Object | None:
        workers = [pod for pod in _pods(job) if pod["metadata"]["labels"].get("ray.io/node-type") == "worker"]
        return workers[0] if len(workers) == 1 and workers[0]["spec"].get("nodeName") else None

    worker = kube.until("a worker's pod on a node", placed, 300, 1)
    node = kube.get("node", worker["spec"]["nodeName"], "default") or {}
    assert _limits(worker) == 2 and _gpus(node["status"]["allocatable"]) >= 2
    first_line = kube.until("the job's first line", lambda: runs.first_line_of_job(job["metadata"]["name"]), 300, 2)
    said = runs.said(run, "pretrain", "Ray gave a task a GPU of")
    asking = {pod["metadata"]["name"] for pod in _pods(job) if _limits(pod)} - {worker["metadata"]["name"]}
    assert not asking, asking
    assert runs.finish(services, run) == "FAILED"
    record = runs.records(made, run)["pretrain"]
    assert record.state == "failed" and "torch" in record.error and "can use" in record.error
    assert len(runs.ray_jobs(run, "pretrain")) == 1, "it is not tried again"
    scheduled = next(each for each in worker["status"]["conditions"] if each["type"] == "PodScheduled")
    since = said - runs.moment(scheduled["lastTransitionTime"])
    found.append(
        f"2 GPUs on {worker['spec']['nodeName']}; said {since:.0f} s after the pod was scheduled, "
        f"{said - first_line:.0f} s after the job's first line: {record.error}"
    )
    assert said - first_line <= SOON


@pytest.mark.cluster(
    claim="Of a training that asks for a pod with more GPUs than any node has this is said within a minute, with the "
    "node that has most room, and it ends",
    how="`gpus_per_pod` and `workers` larger than what any node advertises; the log of the component",
)
def test_gpus_that_no_node_has_are_named(
    most: int, first: runs.Run, services: runs.Services, session_state: State, found: list[str], stamp: str
) -> None:
    asked = 1 << most.bit_length()  # it divides the batch
    _set(runs.launcher_settings(), asked)
    run = runs.start(services, experiment_of(session_state), f"many-{stamp}", f"workers={asked}", "gpus_per_worker=1")
    job = _job(run)
    made_at = runs.moment(job["metadata"]["creationTimestamp"])
    seconds = runs.said(run, "pretrain", "no node can ever take all") - made_at
    assert runs.finish(services, run) == "FAILED"
    assert not runs.ray_jobs(run, "pretrain"), "its pods would wait on"
    pod = runs.component_pod(run, "pretrain")
    assert pod is not None
    said = kube.kubectl("-n", "kubeflow", "logs", pod["metadata"]["name"], "-c", "main")
    assert "RayJobError" in said and f"{asked} {GPU}" in said and "the node with most room" in said
    found.append(f"{seconds:.0f} s after the RayJob was made; of a node's {most} GPUs {asked} were asked for")
    assert seconds <= SOON


@pytest.mark.cluster(
    claim="A training whose GPUs others hold waits, says so within a minute, and is scheduled once they end",
    how="a pod that holds the GPUs of each node, deleted after the component has said that it waits",
)
def test_gpus_that_others_hold_are_waited_for(
    most: int, first: runs.Run, services: runs.Services, session_state: State, found: list[str], stamp: str
) -> None:
    holders = [_hold(node) for node in kube.listed("nodes", namespace="*") if _gpus(node["status"]["allocatable"])]
    try:
        run = runs.start(services, experiment_of(session_state), f"held-{stamp}", "workers=2", "gpus_per_worker=1")
        job = _job(run)
        made_at = runs.moment(job["metadata"]["creationTimestamp"])
        seconds = runs.said(run, "pretrain", "find room once others end") - made_at
    finally:
        kube.kubectl("-n", "default", "delete", "pod", "--grace-period=1", *holders)
    kube.until(
        "a worker's pod on a node",
        lambda: any(_limits(pod) and pod["spec"].get("nodeName") for pod in _pods(job)),
        300,
    )
    runs.finish(services, run)
    found.append(f"{seconds:.0f} s after the RayJob was made")
    assert seconds <= SOON


def _hold(node: kube.Object) -> str:
    """Start a pod that holds a node's GPUs; return its name."""
    name = f"cluster-test-holds-{node['metadata']['name']}"
    gpus = {GPU: str(_gpus(node["status"]["allocatable"]))}
    container = {
        "name": "holds",
        "image": kube.data_image(),
        "imagePullPolicy": "IfNotPresent",
        "command": ["python", "-c", "import time; time.sleep(3600)"],
        "resources": {"requests": gpus, "limits": gpus},
        "securityContext": kube.RESTRICTED,
    }
    spec = {
        "nodeName": node["metadata"]["name"],
        "terminationGracePeriodSeconds": 0,
        "automountServiceAccountToken": False,
        "securityContext": kube.POD,
        "containers": [container],
    }
    kube.apply({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "default"}, "spec": spec})
    return name
