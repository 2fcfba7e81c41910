"""The RayJob launcher against a Kubernetes API on loopback, with the statuses that KubeRay 1.7 writes."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import api_server
import crd
import pytest
import yaml
from api_server import ApiServer
from hypothesis import given
from hypothesis import strategies as st

from ray_jobs import launch
from ray_jobs.launch import kuberay
from wukong import config, manifest, run_records, storage
from wukong.errors import ConfigError

REPOSITORY = Path(__file__).parents[3]
FAST = kuberay.Timing(watch=5, poll=0.05, patience=10.0, heartbeat=0.1, drain=5.0)

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
RETRYING = {"jobDeploymentStatus": "Retrying", "jobStatus": "FAILED", "failed": 1, "reason": "AppFailed"}
SUSPENDED = {"jobDeploymentStatus": "Suspended", "jobStatus": ""}


def documents(path: Path) -> list[dict[str, Any]]:
    return [document for document in yaml.safe_load_all(path.read_text(encoding="utf-8")) if document]


def operators() -> dict[str, str]:
    """The ConfigMap that the installation brings."""
    found = [d for d in documents(REPOSITORY / "k8s" / "base" / "ray.yaml") if d["metadata"]["name"] == "ray-job"]
    data: dict[str, str] = found[0]["data"]
    return data


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ApiServer]:
    with api_server.running() as api:
        api.config_maps["ray-job"] = operators()
        access = documents(REPOSITORY / "k8s" / "base" / "access.yaml")
        api.rules = {"wukong": next(d["rules"] for d in access if d["kind"] == "Role")}
        path = api.kubeconfig(tmp_path / "kubeconfig")
        monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(path))
        yield api


def experiment_at(root: str, **sections: Any) -> config.Experiment:
    crawl = {"queries": f"{root}/queries.txt", "endpoint": "http://site.invalid/search"}
    return config.parse({"name": "demo", "storage": root, "crawl": crawl, **sections})


@pytest.fixture
def experiment(tmp_path: Path) -> config.Experiment:
    return experiment_at(storage.from_path(tmp_path))


def go(experiment: config.Experiment, stage: str = "filter", name: str = "Nightly_7", **environment: str) -> None:
    arguments = [stage, "--experiment", "s3://wukong/demo/experiments/1.json", "--run", name]
    kuberay.run_job(stage, experiment, name, arguments, environment, "wukong", FAST)


def only(server: ApiServer) -> dict[str, Any]:
    (job,) = server.jobs.values()
    return job


def test_a_job_that_succeeds(server: ApiServer, experiment: config.Experiment, capsys: Any) -> None:
    steps = [NEW, SUBMITTED, PENDING, RUNNING, ("log", "filter: 1/2 parts"), ("log", "筛选: 2/2 parts"), SUCCEEDED]
    server.scripts = [steps]
    go(experiment, MLFLOW_RUN_ID="abc", AWS_SECRET_ACCESS_KEY="hush")
    assert capsys.readouterr().out == "filter: 1/2 parts\n筛选: 2/2 parts\n"
    job = only(server)
    assert job["spec"]["entrypoint"] == (
        "python -m ray_jobs filter --experiment s3://wukong/demo/experiments/1.json --run Nightly_7"
    )
    assert job["metadata"]["labels"]["wukong/run"] == "Nightly_7"
    head = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    assert {"name": "MLFLOW_RUN_ID", "value": "abc"} in head["env"]
    assert "hush" not in str(job), "credentials come from the namespace's Secrets"


def test_jobs_that_succeed_are_left_for_their_time_to_live(server: ApiServer, experiment: config.Experiment) -> None:
    server.scripts = [[NEW, RUNNING, SUCCEEDED]]
    go(experiment)
    spec = only(server)["spec"]
    assert (spec["shutdownAfterJobFinishes"], spec["ttlSecondsAfterFinished"]) == (True, 300)
    assert not any(request.startswith("DELETE") for request in server.requests)


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
def test_every_way_to_fail(
    server: ApiServer, experiment: config.Experiment, steps: list[Any], reason: str, said: str
) -> None:
    server.scripts = [[*steps[:-1], ("log", "the last words"), steps[-1]]]
    with pytest.raises(kuberay.RayJobError, match=said) as caught:
        go(experiment)
    assert caught.value.reason == reason
    if reason != "Deleted":
        assert "the last words" in str(caught.value)


def test_a_failed_attempt_that_kuberay_repeats_is_not_the_end(server: ApiServer, experiment: config.Experiment) -> None:
    failing = RUNNING | {"jobStatus": "FAILED"}
    again = {"jobDeploymentStatus": "", "jobStatus": "", "jobId": "", "rayClusterName": ""}
    server.scripts = [[NEW, RUNNING, failing, RETRYING, again, NEW, RUNNING, SUCCEEDED | {"failed": 1}]]
    go(experiment)


def test_a_suspended_job_waits_for_its_quota(server: ApiServer, experiment: config.Experiment) -> None:
    wishes = yaml.safe_load(server.config_maps["ray-job"]["settings.yaml"]) | {"queue": "training"}
    server.config_maps["ray-job"]["settings.yaml"] = yaml.safe_dump(wishes)
    server.scripts = [[SUSPENDED, ("sleep", 0.3), {"jobDeploymentStatus": ""}, NEW, RUNNING, SUCCEEDED]]
    go(experiment)
    job = only(server)
    assert job["spec"]["suspend"] is True
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "training"


def test_dropped_and_expired_watches_are_survived(server: ApiServer, experiment: config.Experiment) -> None:
    server.drop_watches, server.expire_watches = 3, 2
    watched = ("until", lambda: server.watching)
    drops = [
        step
        for left, status in ((2, SUBMITTED), (1, PENDING), (0, RUNNING))
        for step in (watched, status, ("until", lambda left=left: server.drop_watches <= left))
    ]
    server.scripts = [[NEW, *drops, watched, SUCCEEDED]]
    go(experiment)
    assert (server.drop_watches, server.expire_watches) == (0, 0)
    assert sum(request.startswith("WATCH") for request in server.requests) >= 6


def test_where_watching_is_forbidden_the_job_is_asked_for(server: ApiServer, experiment: config.Experiment) -> None:
    server.forbid = {"WATCH"}
    server.scripts = [[NEW, ("until", lambda: "WATCH" in str(server.requests)), RUNNING, ("sleep", 0.1), SUCCEEDED]]
    go(experiment)
    assert sum(request.startswith("WATCH") for request in server.requests) == 1


def test_an_overloaded_api_server_is_asked_again(server: ApiServer, experiment: config.Experiment) -> None:
    server.unavailable = 2
    server.scripts = [[NEW, RUNNING, SUCCEEDED]]
    go(experiment)


def test_an_api_server_that_stays_away_is_reported(server: ApiServer, experiment: config.Experiment) -> None:
    server.unavailable = 10_000
    with pytest.raises(kuberay.RayJobError, match="has not answered for 1 s"):
        kuberay.run_job("filter", experiment, "r", ["filter"], {}, "wukong", kuberay.Timing(patience=1.0))


def test_a_job_whose_creation_was_answered_too_late_is_found(server: ApiServer, experiment: config.Experiment) -> None:
    server.lose_create = True
    server.scripts = [[NEW, RUNNING, SUCCEEDED]]
    go(experiment)
    assert len(server.jobs) == 1


def test_a_restarted_component_goes_on_with_the_job(server: ApiServer, experiment: config.Experiment) -> None:
    server.scripts = [[NEW, RUNNING, SUCCEEDED]]
    go(experiment)
    go(experiment)
    assert sum(request.startswith("POST") for request in server.requests) == 1


def test_after_a_failed_attempt_comes_the_next(server: ApiServer, experiment: config.Experiment) -> None:
    server.scripts = [[NEW, RUNNING, FAILED], [NEW, RUNNING, SUCCEEDED]]
    with pytest.raises(kuberay.RayJobError):
        go(experiment)
    go(experiment)
    assert sorted(name[-2:] for name in server.jobs) == ["-1", "-2"]


def test_the_stages_own_record_of_an_earlier_attempt_is_not_believed(
    server: ApiServer, experiment: config.Experiment
) -> None:
    run_records.write(experiment, "Nightly_7", run_records.Record(stage="filter", state="succeeded", manifest="stale"))
    server.scripts = [[NEW, RUNNING, SUCCEEDED]]
    go(experiment)
    assert run_records.read(experiment, "Nightly_7", "filter") is None


def test_a_pod_of_the_same_namespace_owns_its_job(
    server: ApiServer, experiment: config.Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "namespace").write_text("wukong\n")
    monkeypatch.setattr(kuberay, "_NAMESPACE_FILE", tmp_path / "namespace")
    server.scripts = [[NEW, RUNNING, SUCCEEDED]]
    for name in ("component-1", "component-2"):
        monkeypatch.setenv("KFP_POD_NAME", name)
        monkeypatch.setenv("KFP_POD_UID", f"uid-{name}")
        go(experiment)
        (owner,) = only(server)["metadata"]["ownerReferences"]
        assert (owner["kind"], owner["uid"]) == ("Pod", f"uid-{name}"), "who goes on with a job takes it over"


def test_a_pod_of_another_namespace_cannot_own_it(
    server: ApiServer, experiment: config.Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "namespace").write_text("kubeflow")
    monkeypatch.setattr(kuberay, "_NAMESPACE_FILE", tmp_path / "namespace")
    monkeypatch.setenv("KFP_POD_NAME", "component-1")
    monkeypatch.setenv("KFP_POD_UID", "uid-1")
    server.scripts = [[NEW, RUNNING, SUCCEEDED]]
    go(experiment)
    assert "ownerReferences" not in only(server)["metadata"]


def test_no_line_of_the_log_is_lost_or_comes_twice(
    server: ApiServer, experiment: config.Experiment, capsys: Any
) -> None:
    steps: list[Any] = [NEW, RUNNING]
    for number in range(40):
        steps.append(("log", f"line {number}"))
        if number % 7 == 3:
            steps.append(("drop logs",))
    server.scripts = [[*steps, SUCCEEDED]]
    go(experiment)
    assert capsys.readouterr().out.split("\n")[:-1] == [f"line {number}" for number in range(40)]
    assert sum(request.endswith("-submitter/log") for request in server.requests) > 3


def test_why_pods_did_not_come_up_is_said(server: ApiServer, experiment: config.Experiment) -> None:
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
    with pytest.raises(kuberay.RayJobError) as caught:
        go(experiment)
    text = str(caught.value)
    assert f"w-1: Unschedulable: {message}" in text
    assert "w-2/main: ImagePullBackOff: Back-off pulling image wukong/ray" in text
    assert "w-3/main: OOMKilled, exit status 137" in text
    assert "head: no worker came" in text, "a job without a log of its own shows the head's"


def _container(state: dict[str, Any]) -> dict[str, Any]:
    return {"name": "main", "image": "x", "imageID": "", "ready": False, "restartCount": 0, "state": state}


@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        (lambda server: server.forbid.add("POST"), "Role ray-job-launcher"),
        (lambda server: setattr(server, "kuberay_installed", False), "Is KubeRay installed"),
        (lambda server: server.config_maps.clear(), "kubectl apply -f k8s/"),
        (lambda server: server.config_maps["ray-job"].pop("template.yaml"), r"no template\.yaml"),
        (lambda server: server.config_maps["ray-job"].update({"settings.yaml": "quue: x"}), "quue"),
        (lambda server: server.config_maps["ray-job"].update({"template.yaml": "a: b"}), "must be a RayJob"),
        (lambda server: server.config_maps["ray-job"].update({"template.yaml": ":\n:"}), "not valid YAML"),
    ],
)
def test_an_incomplete_installation_is_explained(
    server: ApiServer, experiment: config.Experiment, break_it: Any, said: str
) -> None:
    break_it(server)
    with pytest.raises((kuberay.RayJobError, ConfigError), match=said):
        go(experiment)


def test_a_name_that_a_shell_would_change_is_refused(server: ApiServer, experiment: config.Experiment) -> None:
    with pytest.raises(kuberay.RayJobError, match="cannot be part"):
        kuberay.run_job("filter", experiment, "r", ["filter", "--experiment", "s3://b/$(x)"], {}, "wukong", FAST)
    assert not server.jobs


def test_training_gets_the_experiments_workers_and_gpus(experiment: config.Experiment, tmp_path: Path) -> None:
    with_gpus = experiment_at(storage.from_path(tmp_path), pretrain={"workers": 4, "gpus_per_worker": 2})
    data = operators()
    template, settings = yaml.safe_load(data["template.yaml"]), yaml.safe_load(data["settings.yaml"])
    settings["gpu"] |= {"node_selector": {"pool": "gpu"}, "runtime_class": "nvidia"}
    parsed = kuberay.Settings.model_validate(settings)
    body = kuberay.render(template, parsed, with_gpus, "pretrain", ["python"], {})
    assert crd.errors(body) == []
    (group,) = body["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert (group["replicas"], group["minReplicas"], group["maxReplicas"]) == (4, 4, 4)
    pod = group["template"]["spec"]
    assert pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "2"
    assert pod["containers"][0]["image"].endswith("-cuda")
    assert pod["nodeSelector"] == {"pool": "gpu"}
    assert pod["runtimeClassName"] == "nvidia"
    assert {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"} in pod["tolerations"]
    head = body["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    assert "nvidia.com/gpu" not in str(head["containers"][0]["resources"])
    on_cpus = kuberay.render(template, parsed, experiment, "pretrain", ["python"], {})
    assert "nvidia.com/gpu" not in str(on_cpus["spec"]["rayClusterSpec"]["workerGroupSpecs"])


names = st.from_regex(r"[a-zA-Z0-9][a-zA-Z0-9._-]{0,62}", fullmatch=True)


@given(name=names, stage=st.sampled_from(run_records.STAGES), attempt=st.integers(1, 99))
def test_names_are_dns_labels_of_at_most_47_characters(name: str, stage: str, attempt: int) -> None:
    import re

    made = kuberay.job_name(experiment_at("s3://bucket"), name, stage, attempt)
    assert len(made) <= 47
    assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", made)
    assert made == kuberay.job_name(experiment_at("s3://bucket"), name, stage, attempt)


@given(first=names, second=names)
def test_runs_never_share_a_name(first: str, second: str) -> None:
    experiment = experiment_at("s3://bucket")
    made = {kuberay.job_name(experiment, name, "filter", 1) for name in (first, second)}
    assert len(made) == len({first, second})


def test_the_jobs_of_a_run_that_have_not_ended_are_ended(server: ApiServer, experiment: config.Experiment) -> None:
    server.scripts = [[NEW, RUNNING, SUCCEEDED]]
    go(experiment)
    finished = only(server)
    running = yaml.safe_load(yaml.safe_dump(finished))
    running["metadata"]["name"], running["status"] = "left-behind", RUNNING
    other = yaml.safe_load(yaml.safe_dump(running))
    other["metadata"]["name"], other["metadata"]["labels"]["wukong/run"] = "another-run", "another"
    server.jobs |= {"left-behind": running, "another-run": other}
    assert kuberay.end_run(experiment, "Nightly_7", "wukong") == ["left-behind"]
    assert set(server.jobs) == {finished["metadata"]["name"], "another-run"}


DRIVER = """
import sys
from ray_jobs import kuberay
from wukong import config, storage
crawl = {"queries": "file:///q", "endpoint": "http://x.invalid"}
experiment = config.parse({"name": "demo", "storage": sys.argv[1], "crawl": crawl})
timing = kuberay.Timing(watch=5, poll=0.05, patience=1.0)
kuberay.run_job("filter", experiment, "r", ["filter", "--run", "r"], {}, "wukong", timing)
"""


@pytest.fixture
def driver(server: ApiServer, tmp_path: Path) -> Iterator["subprocess.Popen[str]"]:
    """A launcher in a process of its own whose job runs and does not end."""
    server.scripts = [[NEW, RUNNING, ("log", "at work")]]
    environment = os.environ | {"KUBECONFIG": str(tmp_path / "kubeconfig"), "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-c", DRIVER, storage.from_path(tmp_path)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "at work\n"
        yield process
        process.kill()


def test_a_cancelled_run_deletes_its_job(server: ApiServer, driver: "subprocess.Popen[str]") -> None:
    driver.send_signal(signal.SIGTERM)
    assert driver.wait(120) == 128 + signal.SIGTERM
    assert not server.jobs


def test_the_job_of_a_killed_component_is_found_again(
    server: ApiServer, driver: "subprocess.Popen[str]", tmp_path: Path
) -> None:
    driver.kill()
    driver.wait(120)
    (job,) = server.jobs.values()
    job["status"] |= SUCCEEDED
    kuberay.run_job("filter", experiment_at(storage.from_path(tmp_path)), "r", ["filter"], {}, "wukong", FAST)
    assert sum(request.startswith("POST") for request in server.requests) == 1


@pytest.fixture
def on_cluster(server: ApiServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WUKONG_CLUSTER", "wukong")
    monkeypatch.setattr(kuberay, "Timing", lambda **_: FAST)


@pytest.mark.usefixtures("on_cluster")
def test_launching_on_a_cluster_hands_on_the_stages_manifest(server: ApiServer, experiment: config.Experiment) -> None:
    written = manifest.Stage(experiment.root, "filter", {}).commit([], counts={"train": 7})
    record = run_records.Record(stage="filter", state="succeeded", manifest=f"{written.uri}/manifest.json")
    server.scripts = [[NEW, RUNNING, ("call", partial(run_records.write, experiment, "r", record)), SUCCEEDED]]
    assert launch.launch("filter", experiment, "r", []).counts == {"train": 7}


@pytest.mark.usefixtures("on_cluster")
def test_the_stages_own_error_is_the_launchs_error(server: ApiServer, experiment: config.Experiment) -> None:
    record = run_records.Record(stage="filter", state="failed", error="part 7 is truncated; crawl again")
    server.scripts = [[NEW, RUNNING, ("call", partial(run_records.write, experiment, "r", record)), FAILED]]
    with pytest.raises(launch.JobError, match="part 7 is truncated"):
        launch.launch("filter", experiment, "r", [])


def test_a_watch_is_made_anew_when_its_time_is_over(server: ApiServer, experiment: config.Experiment) -> None:
    def watches() -> int:
        return sum(request.startswith("WATCH") for request in server.requests)

    server.scripts = [[NEW, ("until", lambda: watches() >= 2), RUNNING, SUCCEEDED]]
    short = kuberay.Timing(watch=1, poll=0.05, patience=1.0)
    kuberay.run_job("filter", experiment, "r", ["filter"], {}, "wukong", short)
