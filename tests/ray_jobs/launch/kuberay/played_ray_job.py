"""A played RayJob: the statuses that KubeRay 1.7 writes, and the launcher run against them."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml
from api_server import ApiServer

from ray_jobs.launch.kuberay import Timing, run_job
from wukong.config import documents
from wukong.config.experiment import Experiment
from wukong.runs import run_records
from wukong.runs.run_records import Record
from wukong.store import manifest, storage

REPOSITORY = Path(__file__).parents[4]
FAST = Timing(
    watch=5, look=1, poll=0.05, patience=10.0, heartbeat=0.1, pods=0.05, drain=5.0, progress=0.05, backoff=0.01
)

# What the operator writes, step by step (ray-operator/controllers/ray/rayjob_controller.go).
NEW = {
    "jobDeploymentStatus": "Initializing",
    "jobId": "job-x7k2p",
    "jobStatus": "",
    "rayClusterName": "job-q8z4d",
    "startTime": "2026-01-01T00:00:00Z",
    "failed": 0,
    "succeeded": 0,
}
SUBMITTED = {"jobDeploymentStatus": "Running", "dashboardURL": "job-q8z4d-head-svc.wukong.svc.cluster.local:8265"}
PENDING = SUBMITTED | {"jobStatus": "PENDING"}
RUNNING = SUBMITTED | {"jobStatus": "RUNNING", "rayJobInfo": {"startTime": "2026-01-01T00:00:30Z"}}
ENDED = {"endTime": "2026-01-01T00:01:00Z"}
SUCCEEDED = ENDED | {"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED", "succeeded": 1}
FAILED = ENDED | {
    "jobDeploymentStatus": "Failed",
    "jobStatus": "FAILED",
    "failed": 1,
    "reason": "AppFailed",
    "message": "Job entrypoint command failed with exit code 1, last available logs: ...",
}
STOPPED = ENDED | {
    "jobDeploymentStatus": "Complete",
    "jobStatus": "STOPPED",
    "message": "Job was intentionally stopped.",
}
VALIDATION = {
    "jobDeploymentStatus": "ValidationFailed",
    "reason": "ValidationFailed",
    "message": "The RayJob spec is invalid: headGroupSpec should have at least one container",
}
PRE_DEADLINE = ENDED | {
    "jobDeploymentStatus": "Failed",
    "failed": 1,
    "reason": "PreRunningDeadlineExceeded",
    "message": "The RayJob has passed the preRunningDeadlineSeconds. PreRunningDeadlineSeconds: 1800",
}
DEADLINE = ENDED | {
    "jobDeploymentStatus": "Failed",
    "failed": 1,
    "reason": "DeadlineExceeded",
    "message": "The RayJob has passed the activeDeadlineSeconds. ActiveDeadlineSeconds: 86400",
}
SUBMISSION = ENDED | {
    "jobDeploymentStatus": "Failed",
    "failed": 1,
    "reason": "SubmissionFailed",
    "message": "Job submission has failed. Reason: BackoffLimitExceeded.",
}
UNREACHABLE = ENDED | {
    "jobDeploymentStatus": "Failed",
    "jobStatus": "RUNNING",
    "failed": 1,
    "reason": "JobStatusCheckTimeoutExceeded",
    "message": "Job status checks have been failing since 2026-01-01 00:00:30; exceeded timeout of 300s",
}
RETRYING = {"jobDeploymentStatus": "Retrying", "jobStatus": "FAILED", "failed": 1, "reason": "AppFailed"}
SUSPENDING = {"jobDeploymentStatus": "Suspending"}
SUSPENDED = {
    "jobDeploymentStatus": "Suspended",
    "jobStatus": "",
    "jobId": "",
    "rayClusterName": "",
    "dashboardURL": "",
    "reason": "",
    "message": "",
}
RESUMED = {
    "jobDeploymentStatus": "Initializing",
    "jobStatus": "",
    "jobId": "job-m5c9r",
    "rayClusterName": "job-w3n7v",
    "startTime": "2026-01-01T02:00:00Z",
}


def read_documents(path: Path) -> list[dict[str, Any]]:
    return [document for document in yaml.safe_load_all(path.read_text(encoding="utf-8")) if document]


def installed_config_map() -> dict[str, Any]:
    """The ConfigMap that the installation brings."""
    documents = read_documents(REPOSITORY / "k8s" / "base" / "ray.yaml")
    return next(each for each in documents if each["metadata"]["name"] == "ray-job")


def change_settings(server: ApiServer, **changes: Any) -> None:
    """Change the cluster's ``settings.yaml``."""
    data = server.config_maps["ray-job"]
    data["settings.yaml"] = yaml.safe_dump(yaml.safe_load(data["settings.yaml"]) | changes)


def experiment_at(root: str, **sections: Any) -> Experiment:
    crawl = {"queries": f"{root}/queries.txt", "endpoint": "http://site.invalid/search"}
    return documents.parse({"name": "demo", "storage": root, "crawl": crawl, **sections})


def run(experiment: Experiment, stage: str = "filter", name: str = "Nightly_7", **environment: str) -> None:
    arguments = [stage, "--experiment", "s3://wukong/demo/experiments/1.json", "--run", name]
    run_job(stage, experiment, name, arguments, environment, "wukong", FAST)


def leave_output(experiment: Experiment, run_name: str = "Nightly_7") -> None:
    """Do what the job of a stage does last: write a manifest, and a record that names it."""
    written = manifest.Stage(experiment.root, "filter", {}).commit([])
    record = Record(stage="filter", state="succeeded", manifest=f"{written.uri}/manifest.json")
    run_records.write(experiment, run_name, record)


def only_job(server: ApiServer) -> dict[str, Any]:
    (job,) = server.jobs.values()
    return job


DRIVER = """
import sys
from pathlib import Path
from ray_jobs.launch import kuberay
from ray_jobs.launch.kuberay import pipeline_run
from wukong.config import documents
from wukong.store import storage
crawl = {"queries": "file:///q", "endpoint": "http://x.invalid"}
experiment = documents.parse({"name": "demo", "storage": sys.argv[1], "crawl": crawl})
pipeline_run.NAMESPACE_FILE = Path(sys.argv[3])
timing = kuberay.Timing(watch=5, poll=0.05, patience=float(sys.argv[2]))
kuberay.run_job("filter", experiment, "r", ["filter", "--run", "r"], {}, "wukong", timing)
"""


def start_driver(tmp_path: Path, patience: float, workflow: str = "") -> "subprocess.Popen[str]":
    """Start a launcher in a process of its own, as in a pod of a Workflow where one is named."""
    environment = os.environ | {"KUBECONFIG": str(tmp_path / "kubeconfig"), "PYTHONPATH": str(REPOSITORY)}
    if workflow:
        environment["ARGO_NODE_ID"] = f"{workflow}-3104409763"  # as Argo names it in a component's container
        (tmp_path / "namespace").write_text("kubeflow\n")
    command = [sys.executable, "-c", DRIVER, storage.from_path(tmp_path), str(patience), str(tmp_path / "namespace")]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
