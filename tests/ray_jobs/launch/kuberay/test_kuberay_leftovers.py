"""Of everything that a stage's attempts make on a cluster, nothing stays: it has an owner that goes, or it is deleted.

The launcher makes RayJobs and nothing else. What KubeRay 1.7 and Kubernetes make of one is in ``OWNERS``; ``Cluster``
does what they do with it after the launcher and the run's exit handler have done their part.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
from api_server import ApiServer, authorization_of
from played_ray_job import (
    DEADLINE,
    ENDED,
    FAILED,
    NEW,
    PRE_DEADLINE,
    REPOSITORY,
    RUNNING,
    STOPPED,
    SUBMISSION,
    SUCCEEDED,
    UNREACHABLE,
    VALIDATION,
    change_settings,
    read_documents,
    run,
)

from ray_jobs.launch.kuberay import RayJobError, end_run
from wukong.config.experiment import Experiment
from wukong.runs import run_records
from wukong.runs.run_records import Record

OWNERS = {
    "RayCluster": "RayJob",  # constructRayClusterForRayJob
    "submitter": "RayJob",  # createNewK8sJob: a Job of batch/v1
    "Service of the RayJob": "RayJob",  # reconcileServices
    "Service of the head": "RayCluster",  # createService
    "Secret with the token": "RayCluster",  # createAuthSecret
    "head": "RayCluster",  # buildHeadPod
    "workers": "RayCluster",  # buildWorkerPod
    "submitter's pod": "submitter",  # the Job controller
}
"""What is made of a RayJob with a token, without an autoscaler and without storage for the GCS, and its owner: the
calls of ``SetControllerReference`` and ``NewControllerRef`` in ray-operator/controllers/ray of KubeRay 1.7."""

SILENT_END = ENDED | {
    "jobDeploymentStatus": "Failed",
    "jobStatus": "FAILED",
    "failed": 1,
    "reason": "JobDeploymentStatusTransitionGracePeriodExceeded",
    "message": "JobDeploymentStatus does not transition to Complete or Failed within the grace period.",
}
LATE = SUCCEEDED | {"reason": "JobDeploymentStatusTransitionGracePeriodExceeded"}
NOT_YET = RUNNING | {"jobStatus": "SUCCEEDED"}

DAY, WEEK = 86_400, 7 * 86_400


NO_SUBMITTER = ("", "AppFailed", "SubmissionFailed", "PreRunningDeadlineExceeded")
"""Reasons of a RayJob whose submitter has ended, since KubeRay waits for that, or was never made."""


@dataclass
class Cluster:
    """What KubeRay and Kubernetes leave of RayJobs, some seconds after these have ended.

    Attributes:
        jobs: the RayJobs that are there.
    """

    jobs: dict[str, dict[str, Any]]

    def objects(self, seconds: float) -> list[tuple[str, str]]:
        """Each object as RayJob and kind: those whose owners are there, all the way up."""
        left = []
        for name, job in self.jobs.items():
            gone = self._deleted_by_rules(job, seconds)
            if "DeleteSelf" in gone:
                continue
            there = {"RayJob"}
            for kind, owner in OWNERS.items():
                if owner in there and not (kind == "RayCluster" and "DeleteCluster" in gone):
                    there.add(kind)
            left += [(name, kind) for kind in there]
        return left

    def waiting_for_a_secret(self, seconds: float) -> list[str]:
        """RayJobs whose submitter's next pod cannot start: its Job has not ended, and the token is gone.

        Kubernetes starts a next pod when the one before is gone, with its node or because it could follow no log.
        """
        kinds = self.objects(seconds)
        return [
            name
            for name, job in self.jobs.items()
            if (name, "submitter") in kinds
            and (name, "Secret with the token") not in kinds
            and job["status"].get("reason", "") not in NO_SUBMITTER
        ]

    @staticmethod
    def _deleted_by_rules(job: dict[str, Any], seconds: float) -> set[str]:
        """As handleDeletionRules of rayjob_controller.go does it, which is called for these two states alone."""
        status, spec = job.get("status", {}), job["spec"]
        if status.get("jobDeploymentStatus") not in ("Complete", "Failed"):
            return set()
        if spec["shutdownAfterJobFinishes"]:
            return {"DeleteCluster"} if seconds >= spec["ttlSecondsAfterFinished"] else set()
        return {
            rule["policy"]
            for rule in spec["deletionStrategy"]["deletionRules"]
            if seconds >= rule["condition"]["ttlSeconds"]
            and all(status.get(key) == value for key, value in rule["condition"].items() if key != "ttlSeconds")
        }


def test_the_launcher_makes_rayjobs_alone(server: ApiServer, experiment: Experiment) -> None:
    """As its Role allows it: any other kind would have to be named above."""
    access = read_documents(REPOSITORY / "k8s" / "base" / "access.yaml")
    (role,) = [document for document in access if document["kind"] == "Role"]
    making = {"create", "update", "patch"}
    assert [rule["resources"] for rule in role["rules"] if making & {*rule["verbs"]}] == [["rayjobs"]]
    server.scripts = [[NEW, RUNNING, SUCCEEDED]]
    run(experiment)
    asked = [request.split() for request in server.requests]
    assert {authorization_of(path)[:3] for verb, path in asked if verb not in ("GET", "WATCH")} == {
        ("ray.io", "wukong", "rayjobs")
    }
    spec = next(iter(server.jobs.values()))["spec"]
    cluster = spec["rayClusterSpec"]
    assert spec["submissionMode"] == "K8sJobMode"
    assert cluster["authOptions"] == {"mode": "token"}, "with a Secret of KubeRay's own, or with service accounts?"
    further = {"enableInTreeAutoscaling", "gcsFaultToleranceOptions", "headServiceAnnotations"} & cluster.keys()
    assert not further, "KubeRay makes more objects of these"


ENDS = [
    SUCCEEDED,
    LATE,
    NOT_YET,
    FAILED,
    SUBMISSION,
    UNREACHABLE,
    SILENT_END,
    DEADLINE,
    PRE_DEADLINE,
    STOPPED,
    VALIDATION,
    RUNNING,
]


def _id(status: dict[str, Any]) -> str:
    return "-".join(str(status.get(key, "")) for key in ("jobDeploymentStatus", "jobStatus", "reason"))


def _own_error(experiment: Experiment) -> tuple[str, Callable[[], None]]:
    record = Record(stage="filter", state="failed", error="part 7 is truncated")
    return "call", partial(run_records.write, experiment, "Nightly_7", record)


@pytest.mark.parametrize("queue", [None, "training"])
@pytest.mark.parametrize("ended", [end for end in ENDS if end is not RUNNING], ids=_id)
def test_what_the_launcher_saw_the_end_of_leaves_nothing(
    server: ApiServer, experiment: Experiment, ended: dict[str, Any], queue: str | None
) -> None:
    change_settings(server, queue=queue, retries=0)
    server.scripts = [[NEW, RUNNING, _own_error(experiment), ended]]
    try:
        run(experiment)
    except RayJobError:
        assert Cluster(server.jobs).waiting_for_a_secret(DAY - 1) == [], "until its run ends"
    end_run(experiment, "Nightly_7", "wukong")
    left = Cluster(server.jobs)
    assert left.waiting_for_a_secret(DAY - 1) == []
    assert left.objects(WEEK) == []


@pytest.mark.parametrize("queue", [None, "training"])
@pytest.mark.parametrize("ended", ENDS, ids=_id)
@pytest.mark.parametrize("next_attempt", [True, False])
def test_what_nobody_saw_the_end_of_leaves_nothing(
    server: ApiServer, experiment: Experiment, ended: dict[str, Any], queue: str | None, next_attempt: bool
) -> None:
    """The component was lost with the node; its next attempt may come, or the run ends without it."""
    change_settings(server, queue=queue)
    server.scripts = [[NEW, RUNNING, SUCCEEDED], [NEW, RUNNING, SUCCEEDED]]
    run(experiment)
    (job,) = server.jobs.values()
    job["status"] = NEW | RUNNING | ended
    if next_attempt and ended is not RUNNING:
        run(experiment)
        assert sum(request.startswith("POST") for request in server.requests) == 2
    end_run(experiment, "Nightly_7", "wukong")
    left = Cluster(server.jobs)
    assert left.waiting_for_a_secret(DAY - 1) == []
    assert left.objects(WEEK) == []


def test_what_the_rules_alone_would_leave(server: ApiServer, experiment: Experiment) -> None:
    """The oracle itself: the leak that was seen, a failed attempt whose node was lost."""
    server.scripts = [[NEW, RUNNING, SUCCEEDED]]
    run(experiment)
    (job,) = server.jobs.values()
    job["status"] = NEW | RUNNING | UNREACHABLE
    (name,) = server.jobs
    assert Cluster(server.jobs).waiting_for_a_secret(DAY) == [name]
    assert set(Cluster(server.jobs).objects(0)) == {(name, kind) for kind in ("RayJob", *OWNERS)}
