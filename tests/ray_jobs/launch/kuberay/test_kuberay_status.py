"""How the launcher reads the statuses that KubeRay 1.7 writes, and what it says of pods that do not run."""

from typing import Any

import api_server
import pytest
from api_server import ApiServer
from played_ray_job import (
    DEADLINE,
    FAILED,
    NEW,
    PRE_DEADLINE,
    RUNNING,
    STOPPED,
    SUBMISSION,
    SUBMITTED,
    SUCCEEDED,
    SUSPENDED,
    VALIDATION,
    change_settings,
    only_job,
    run,
)

from ray_jobs.launch.kuberay import RayJobError
from wukong.config.experiment import Experiment


@pytest.mark.parametrize(
    ("steps", "reason", "said"),
    [
        ([NEW, RUNNING, FAILED], "AppFailed", "exit code 1"),
        ([NEW, RUNNING, STOPPED], "STOPPED", "intentionally stopped"),
        ([VALIDATION], "ValidationFailed", "at least one container"),
        ([NEW, PRE_DEADLINE], "PreRunningDeadlineExceeded", "preRunningDeadlineSeconds"),
        ([NEW, RUNNING, DEADLINE], "DeadlineExceeded", "activeDeadlineSeconds"),
        ([NEW, SUBMITTED, SUBMISSION], "SubmissionFailed", "BackoffLimitExceeded"),
        ([NEW, RUNNING, ("delete",)], "Deleted", "was deleted while it ran"),
    ],
)
def test_every_way_to_fail(server: ApiServer, experiment: Experiment, steps: list[Any], reason: str, said: str) -> None:
    change_settings(server, retries=0)
    server.scripts = [[*steps[:-1], ("log", "the last words"), steps[-1]]]
    with pytest.raises(RayJobError, match=said) as caught:
        run(experiment)
    assert caught.value.reason == reason
    if reason != "Deleted":
        assert "the last words" in str(caught.value)
    kept = reason not in ("Deleted", "STOPPED", "ValidationFailed", "DeadlineExceeded")
    assert len(server.jobs) == kept, "where rules of KubeRay would leave something, the launcher deletes"


def test_a_suspended_job_waits_for_its_quota(server: ApiServer, experiment: Experiment) -> None:
    change_settings(server, queue="training")
    server.scripts = [[SUSPENDED, ("sleep", 0.3), {"jobDeploymentStatus": ""}, NEW, RUNNING, SUCCEEDED]]
    run(experiment)
    job = only_job(server)
    assert job["spec"]["suspend"] is True
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "training"


def test_why_pods_did_not_come_up_is_said(server: ApiServer, experiment: Experiment) -> None:
    labels = {"ray.io/cluster": NEW["rayClusterName"]}
    message = "0/3 nodes are available: 3 Insufficient nvidia.com/gpu."
    scheduled = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}
    waiting = {"waiting": {"reason": "ImagePullBackOff", "message": "Back-off pulling image wukong/ray"}}
    killed = {"terminated": {"reason": "OOMKilled", "exitCode": 137}}
    pods = [
        api_server.pod("w-1", {"phase": "Pending", "conditions": [scheduled]}, labels),
        api_server.pod("w-2", {"phase": "Pending", "containerStatuses": [_container(waiting)]}, labels),
        api_server.pod("w-3", {"phase": "Failed", "containerStatuses": [_container(killed)]}, labels),
        api_server.pod("head-1", {"phase": "Running"}, labels | {"ray.io/node-type": "head"}),
    ]
    server.scripts = [[("pods", pods), NEW, ("sleep", 0.3), PRE_DEADLINE]]
    with pytest.raises(RayJobError) as caught:
        run(experiment)
    text = str(caught.value)
    assert f"w-1: Unschedulable: {message}" in text
    assert "w-2/main: ImagePullBackOff: Back-off pulling image wukong/ray" in text
    assert "w-3/main: OOMKilled, exit status 137" in text
    assert "head: no worker came" in text, "a job without a log of its own shows the head's"


def _container(state: dict[str, Any]) -> dict[str, Any]:
    return {"name": "main", "image": "x", "imageID": "", "ready": False, "restartCount": 0, "state": state}


_GPUS = {"cpu": "4", "memory": "16Gi", "nvidia.com/gpu": "2"}


def _unplaced(name: str, node: str = "") -> dict[str, Any]:
    """A worker's pod with two GPUs; Unschedulable unless it has a node."""
    labels = {"ray.io/cluster": NEW["rayClusterName"], "ray.io/group": "workers", "ray.io/node-type": "worker"}
    said = {"status": "False", "reason": "Unschedulable", "message": "0/2 nodes are available"}
    conditions = [{"type": "PodScheduled", **({"status": "True"} if node else said)}]
    made = api_server.pod(name, {"phase": "Pending", "conditions": conditions}, labels)
    tolerations = [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    made["spec"] = {
        "containers": [{"name": "main", "image": "x", "resources": {"requests": _GPUS, "limits": _GPUS}}],
        "nodeSelector": {"nvidia.com/gpu.present": "true"},
        "tolerations": tolerations,
    }
    return made


def _node(name: str, gpus: int, *taints: str, labelled: bool = True) -> dict[str, Any]:
    labels = {"nvidia.com/gpu.present": "true"} if labelled else {}
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": labels},
        "spec": {"taints": [{"key": key, "effect": "NoSchedule"} for key in taints]},
        "status": {"allocatable": {"cpu": "16", "memory": "64Gi", "nvidia.com/gpu": str(gpus), "pods": "110"}},
    }


@pytest.mark.parametrize(
    ("nodes", "said"),
    [
        (
            [_node("none", 0), _node("small", 1)],
            "room for 0 of them .* with most room, small, has .*, 1 nvidia.com/gpu free",
        ),
        ([_node("one", 3)], "room for 1 of them .* the node with most room, one, has .* 3 nvidia.com/gpu free"),
        ([_node("a", 8, labelled=False)], "no node has these labels, or taints that it tolerates"),
        ([_node("a", 8, "dedicated")], "no node has these labels, or taints that it tolerates"),
    ],
    ids=["no node has so many", "not for all pods", "no such label", "another taint"],
)
def test_what_no_node_can_take_is_said_and_ended(
    server: ApiServer, experiment: Experiment, nodes: list[dict[str, Any]], said: str, caplog: pytest.LogCaptureFixture
) -> None:
    for node in nodes:
        server.put(node)
    server.rules = {}
    change_settings(server, no_node_seconds=2, retries=2)
    server.scripts = [[("pods", [_unplaced("w-1", "somewhere"), _unplaced("w-2")]), NEW]]
    with pytest.raises(RayJobError, match=said) as caught:
        run(experiment)
    assert caught.value.reason == "NoNode"
    asked = "each asks for 4 cpu, 16.0 GiB memory, 2 nvidia.com/gpu, on a node with nvidia.com/gpu.present=true"
    assert f"can ever take all 2 pods of the group workers: {asked}" in str(caught.value)
    assert any(asked in record.getMessage() and record.levelname == "WARNING" for record in caplog.records), "before"
    assert not server.jobs, "it would wait on"
    assert sum(request.startswith("POST") for request in server.requests) == 1


@pytest.mark.parametrize(
    "nodes",
    [
        [_node("busy", 4, "nvidia.com/gpu")],
        [_node("a", 2), _node("lost", 2, "node.kubernetes.io/unreachable")],
    ],
    ids=["room for all", "a node is away"],
)
def test_what_others_hold_is_waited_for(
    server: ApiServer, experiment: Experiment, nodes: list[dict[str, Any]], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    for node in nodes:
        server.put(node)
    server.rules = {}
    change_settings(server, no_node_seconds=0)
    placed = ("pods", [_unplaced("w-1", "a"), _unplaced("w-2", "a")])
    waits = ("until", lambda: "find room once others end" in caplog.text)
    server.scripts = [[("pods", [_unplaced("w-1"), _unplaced("w-2")]), NEW, waits, placed, RUNNING, SUCCEEDED]]
    run(experiment)
    assert "there is room for 2 of them when nothing else runs" in caplog.text
    assert "w-1: Unschedulable: 0/2 nodes are available" in caplog.text


def test_who_may_not_list_nodes_hears_what_the_scheduler_says(
    server: ApiServer, experiment: Experiment, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    server.put(_node("small", 1))
    change_settings(server, no_node_seconds=0)
    waits = ("until", lambda: "w-1: Unschedulable: 0/2 nodes are available" in caplog.text)
    server.scripts = [[("pods", [_unplaced("w-1")]), NEW, waits, RUNNING, SUCCEEDED]]
    run(experiment)
    assert "GET /api/v1/nodes" in server.requests
    assert "can ever take" not in caplog.text


def test_a_job_that_runs_is_not_ended_when_a_worker_finds_no_node(server: ApiServer, experiment: Experiment) -> None:
    server.put(_node("small", 1))
    server.rules = {}
    change_settings(server, no_node_seconds=0)
    asked = ("until", lambda: "GET /api/v1/nodes" in server.requests)
    server.scripts = [[NEW | RUNNING, ("pods", [_unplaced("w-1")]), asked, SUCCEEDED]]
    run(experiment)
