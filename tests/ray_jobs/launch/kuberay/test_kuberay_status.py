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
