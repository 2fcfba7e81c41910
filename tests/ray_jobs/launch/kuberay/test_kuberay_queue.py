"""A RayJob that Kueue holds back, admits and suspends again: what the launcher says of it, and what it leaves alone."""

import json
import re
import signal
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import api_server
import pytest
import yaml
from api_server import ApiServer
from played_ray_job import (
    NEW,
    REPOSITORY,
    RESUMED,
    RUNNING,
    SUCCEEDED,
    SUSPENDED,
    SUSPENDING,
    UNREACHABLE,
    change_settings,
    experiment_at,
    only_job,
    read_documents,
    run,
    start_driver,
)

from ray_jobs.launch.kuberay.client import KubernetesApi
from ray_jobs.launch.kuberay.manifest import make_ray_job
from ray_jobs.launch.kuberay.progress import in_words
from ray_jobs.launch.kuberay.queue import workers_to_ask_for
from wukong import stages
from wukong.config.experiment import Experiment
from wukong.runs import run_records
from wukong.runs.run_records import Record
from wukong.stages.ray_job import parse
from wukong.store import storage

COMPONENT = REPOSITORY / "k8s" / "components" / "kueue"
LACKING = (
    "couldn't assign flavors to pod set workers: insufficient unused quota for cpu in flavor wukong, 2 more needed"
)


@pytest.fixture(autouse=True)
def queued(server: ApiServer) -> None:
    """The component's settings and its Role."""
    (change,) = read_documents(COMPONENT / "kustomization.yaml")[0]["patches"]
    server.config_maps["ray-job"] |= yaml.safe_load(change["patch"])["data"]
    access = read_documents(COMPONENT / "access.yaml")
    server.rules["wukong"] = [
        *server.rules["wukong"],
        *next(each["rules"] for each in access if each["kind"] == "Role"),
    ]


def workload(seconds: float, quota: str = "False", why: str = LACKING, *more: dict[str, Any]) -> dict[str, Any]:
    """Kueue's Workload of a RayJob whose quota has been lacking, or there, for so many seconds."""
    moment = (datetime.now(UTC) - timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%SZ")
    reserved = {"type": "QuotaReserved", "status": quota, "message": why, "lastTransitionTime": moment}
    metadata = {"name": "rayjob-nightly-1", "creationTimestamp": "2026-01-01T00:00:00Z"}
    return {"metadata": metadata, "status": {"conditions": [reserved, *more]}}


def waits_for_quota(server: ApiServer, made: dict[str, Any]) -> tuple[str, Any]:
    """A step of a script: Kueue has made the Workload of the RayJob."""
    return ("call", lambda: server.workloads.update({only_job(server)["metadata"]["name"]: made}))


def label(server: ApiServer) -> str | None:
    found: str | None = only_job(server)["metadata"]["labels"].get("wukong/progress")
    return found


def until_label(server: ApiServer, value: str | None) -> tuple[str, Any]:
    return ("until", lambda: label(server) == value)


def until_said(caplog: pytest.LogCaptureFixture, text: str) -> tuple[str, Any]:
    return ("until", lambda: text in caplog.text)


@pytest.fixture(autouse=True)
def log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")


def test_a_run_in_the_queue_says_what_it_waits_for_and_since_when(
    server: ApiServer, experiment: Experiment, caplog: pytest.LogCaptureFixture
) -> None:
    server.pending = ["rayjob-other-1", "rayjob-nightly-1"]
    change_settings(server, no_node_seconds=0)
    waiting = workload(3600)
    (since,) = (each["lastTransitionTime"] for each in waiting["status"]["conditions"])
    server.scripts = [
        [
            *(NEW, SUSPENDING, SUSPENDED, waits_for_quota(server, waiting)),
            *(until_said(caplog, LACKING), until_label(server, "queued"), ("sleep", 0.3)),
            *({"jobDeploymentStatus": ""}, RESUMED, until_label(server, None), RUNNING, SUCCEEDED),
        ]
    ]
    run(experiment)
    said = f"it waits for quota in queue wukong since {since.replace('T', ' ').removesuffix('Z')} UTC"
    assert f"{said}, as number 2 of those that wait: {LACKING}" in caplog.text
    assert label(server) == "done"
    assert in_words("queued") == "waits for its turn in the queue"


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (None, "Kueue has not taken it into queue wukong yet"),
        (workload(5, "True", ""), "it has quota of queue wukong and is about to start"),
        (
            workload(5, "True", "", {"type": "Evicted", "status": "True", "message": "Preempted to accommodate x"}),
            "it gives its quota back to queue wukong: Preempted to accommodate x",
        ),
    ],
)
def test_other_states_of_the_queue_are_said(
    server: ApiServer,
    experiment: Experiment,
    caplog: pytest.LogCaptureFixture,
    made: dict[str, Any] | None,
    said: str,
) -> None:
    steps = [waits_for_quota(server, made)] if made else []
    server.scripts = [[NEW, SUSPENDED, *steps, until_said(caplog, said), RESUMED, RUNNING, SUCCEEDED]]
    run(experiment)


def test_without_rights_in_kueue_the_queue_and_the_time_are_said(
    server: ApiServer, experiment: Experiment, caplog: pytest.LogCaptureFixture
) -> None:
    server.rules["wukong"] = [rule for rule in server.rules["wukong"] if "kueue" not in str(rule["apiGroups"])]
    text = "it waits for quota in queue wukong since 20"
    server.scripts = [[NEW, SUSPENDED, until_said(caplog, text), RESUMED, RUNNING, SUCCEEDED]]
    run(experiment)


def test_a_job_that_a_person_suspended_is_waited_for(
    server: ApiServer, experiment: Experiment, caplog: pytest.LogCaptureFixture
) -> None:
    del server.config_maps["ray-job"]["queue.yaml"]
    text = "it is suspended and in no queue"
    server.scripts = [[NEW, RUNNING, SUSPENDING, SUSPENDED, until_said(caplog, text), RESUMED, RUNNING, SUCCEEDED]]
    run(experiment)


def pods_of(cluster: str, name: str, seconds: float) -> list[dict[str, Any]]:
    """The pod of a Ray cluster, with one core, scheduled so many seconds ago."""
    made = api_server.pod(name, {"phase": "Running"}, {"ray.io/cluster": cluster})
    made["spec"]["containers"][0]["resources"] = {"requests": {"cpu": "1"}}
    moment = (datetime.now(UTC) - timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%SZ")
    made["status"]["conditions"] = [{"type": "PodScheduled", "status": "True", "lastTransitionTime": moment}]
    return [made]


def held(experiment: Experiment) -> dict[str, Any]:
    """What was written down of pods, by the pod's name."""
    folder = f"{experiment.root}/runs/Nightly_7/held/filter"
    sheets = [storage.read_json(uri) for uri in storage.list_files(folder, ".json")]
    return {one["name"]: one for sheet in sheets for one in sheet["held"]}


def test_a_run_that_is_preempted_goes_on_when_it_is_admitted_again(
    server: ApiServer, experiment: Experiment, capsys: pytest.CaptureFixture[str]
) -> None:
    def line(done: int) -> tuple[str, str]:
        return "log", f"12:00:00 | INFO | training: {done} of 100 pairs (8.0/s, 60 s left)"

    resumed = []
    server.scripts = [
        [
            *(("pods", pods_of(NEW["rayClusterName"], "first", 100)), NEW, RUNNING, line(40)),
            *(until_label(server, "40pct-1m-left"), ("until", lambda: "first" in held(experiment))),
            *(SUSPENDING, ("no submitter",), SUSPENDED, ("sleep", 0.3), ("pods", [])),  # they take a while to end
            *(until_label(server, "queued"), ("sleep", 1.5)),
            ("call", lambda: resumed.append(time.time())),
            *(("pods", pods_of(RESUMED["rayClusterName"], "second", 0)), RESUMED, RUNNING, line(30)),
            *(until_label(server, "30pct-1m-left"), ("until", lambda: "second" in held(experiment)), SUCCEEDED),
        ]
    ]
    run(experiment)
    assert [request.split()[0] for request in server.requests if request.startswith(("POST", "DELETE"))] == ["POST"]
    shown = re.findall(r"training: (\d+) of 100", capsys.readouterr().out)
    assert shown == ["40", "30"], "the log of both submitters, each line once"
    first, second = held(experiment)["first"], held(experiment)["second"]
    assert first["ended"] and first["until"] < resumed[0] - 1, "a suspended job holds nothing"
    assert second["ended"] and second["until"] > resumed[0]


def test_a_head_that_goes_with_a_suspension_is_not_taken_for_lost(server: ApiServer, experiment: Experiment) -> None:
    head = api_server.pod("head-1", {}, {"ray.io/cluster": NEW["rayClusterName"], "ray.io/node-type": "head"})
    head["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"  # long ago
    silent = {"jobStatusCheckFailureStartTime": "2026-01-01T00:00:40Z"}
    server.scripts = [
        [NEW, RUNNING, SUSPENDING | silent, ("pods", [head]), ("sleep", 1.2), SUSPENDED, RESUMED, RUNNING, SUCCEEDED]
    ]
    run(experiment)
    assert sum(request.startswith("POST") for request in server.requests) == 1


def test_what_the_driver_of_a_suspended_job_recorded_is_not_believed_later(
    server: ApiServer, experiment: Experiment
) -> None:
    """A driver whose workers are taken first may record that as its own failure."""
    record = Record(stage="filter", state="failed", error="RayTaskError: a worker died")
    own = ("call", partial(run_records.write, experiment, "Nightly_7", record))
    gone = ("until", lambda: run_records.read(experiment, "Nightly_7", "filter") is None)
    server.scripts = [
        [NEW, RUNNING, own, SUSPENDING, SUSPENDED, gone, RESUMED, RUNNING, UNREACHABLE],
        [NEW, SUSPENDED, RESUMED, RUNNING, SUCCEEDED],
    ]
    run(experiment)
    assert sum(request.startswith("POST") for request in server.requests) == 2, "the loss of a head is repeated"


def test_a_run_that_is_cancelled_in_the_queue_leaves_nothing(server: ApiServer, tmp_path: Any) -> None:
    server.scripts = [[NEW, SUSPENDED]]
    with start_driver(tmp_path, 1.0) as process:
        while not any(job.get("status", {}).get("jobDeploymentStatus") == "Suspended" for job in server.jobs.values()):
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 128 + signal.SIGTERM
    assert not server.jobs


def training(root: str, priority: str = "", **more: Any) -> Experiment:
    pretrain = {"workers": 4, "min_workers": 1, "batch_size": 24, **more}
    return experiment_at(root, pretrain=pretrain, priority=priority)


def workers_of(server: ApiServer) -> int:
    """How many workers' pods the RayJob asks for."""
    return sum(group["replicas"] for group in only_job(server)["spec"]["rayClusterSpec"]["workerGroupSpecs"])


@pytest.mark.parametrize(("waited", "expected"), [(0, 4), (60, 4), (150, 2), (250, 1), (90_000, 1)])
def test_a_training_that_has_waited_asks_for_fewer_workers(
    server: ApiServer, tmp_path: Any, caplog: pytest.LogCaptureFixture, waited: float, expected: int
) -> None:
    change_settings(server, fewer_workers_seconds=100)
    server.scripts = [
        [
            *(NEW, SUSPENDED, waits_for_quota(server, workload(waited))),
            *(until_said(caplog, LACKING), ("until", lambda: workers_of(server) == expected), ("sleep", 0.3)),
            *(RESUMED, RUNNING, SUCCEEDED),
        ]
    ]
    run(training(storage.from_path(tmp_path)), "pretrain")
    assert workers_of(server) == expected
    assert only_job(server)["metadata"]["annotations"]["wukong/workers"] == str(expected)
    assert (f"asks for {expected} workers, not 4" in caplog.text) == (expected < 4)
    assert sum(request.startswith("POST") for request in server.requests) == 1, "its place in the queue stays"
    changed = [patch for _, patch in server.patches if "spec" in patch]
    assert len(changed) == (expected < 4)


@pytest.mark.parametrize(
    ("settings", "more", "stage"),
    [
        ({}, {}, "pretrain"),
        ({"fewer_workers_seconds": 1}, {"min_workers": 0}, "pretrain"),
        ({"fewer_workers_seconds": 1}, {}, "filter"),
    ],
    ids=["unless the cluster says so", "unless it may have fewer", "unless it trains"],
)
def test_a_run_asks_for_all_workers(
    server: ApiServer,
    tmp_path: Any,
    caplog: pytest.LogCaptureFixture,
    settings: dict[str, Any],
    more: dict[str, Any],
    stage: str,
) -> None:
    change_settings(server, **settings)
    said = (until_said(caplog, LACKING), ("sleep", 0.5))
    server.scripts = [[NEW, SUSPENDED, waits_for_quota(server, workload(900)), *said, RESUMED, RUNNING, SUCCEEDED]]
    run(training(storage.from_path(tmp_path), **more), stage)
    assert not any("spec" in patch for _, patch in server.patches)


def test_a_training_that_is_admitted_meanwhile_is_not_changed(
    server: ApiServer, tmp_path: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kueue would suspend a job that runs with other pods than those that it has admitted."""
    change_settings(server, fewer_workers_seconds=1)
    look = KubernetesApi.workload

    def admitted_after_the_look(api: KubernetesApi, uid: str) -> dict[str, Any] | None:
        found = look(api, uid)
        if found is not None:
            job = only_job(server)
            job["metadata"]["resourceVersion"] = str(int(job["metadata"]["resourceVersion"]) + 1)
        return found

    monkeypatch.setattr(KubernetesApi, "workload", admitted_after_the_look)
    steps = [waits_for_quota(server, workload(900)), until_said(caplog, "still asks for 4 workers"), RESUMED, RUNNING]
    server.scripts = [[NEW, SUSPENDED, *steps, SUCCEEDED]]
    run(training(storage.from_path(tmp_path)), "pretrain")
    assert workers_of(server) == 4


@pytest.mark.parametrize(
    ("most", "least", "expected"),
    [(8, 1, [8, 4, 2, 1, 1]), (6, 2, [6, 3, 2, 2, 2]), (7, 1, [7, 3, 1, 1, 1]), (4, 4, [4] * 5), (1, 1, [1] * 5)],
)
def test_each_wait_halves_the_workers(most: int, least: int, expected: list[int]) -> None:
    assert [workers_to_ask_for(most, least, 60.0 * steps, 60.0) for steps in range(5)] == expected
    assert workers_to_ask_for(most, least, 59.9, 60.0) == most
    assert workers_to_ask_for(most, least, 1e12, 60.0) == expected[-1]
    assert workers_to_ask_for(most, least, -5.0, 60.0) == most, "clocks differ"


@pytest.fixture
def installed(server: ApiServer) -> Iterator[Any]:
    """Makes the RayJob of a stage from what is installed."""

    def made(experiment: Experiment, stage: str, size: int | None = None) -> dict[str, Any]:
        template, allowed = parse(server.config_maps["ray-job"], "wukong")
        return make_ray_job(template, allowed, experiment, "r", stage, ["python", "-m", "ray_jobs", stage], {}, size)

    yield made


def test_the_priority_is_the_experiments_or_else_the_clusters(server: ApiServer, installed: Any, tmp_path: Any) -> None:
    def priority(of: str) -> str | None:
        labels = installed(training(storage.from_path(tmp_path), of), "pretrain")["metadata"]["labels"]
        found: str | None = labels.get("kueue.x-k8s.io/priority-class")
        return found

    classes = {each["metadata"]["name"] for each in read_documents(COMPONENT / "priorities.yaml")}
    assert {priority(""), priority("wukong-high")} == {"wukong-normal", "wukong-high"} <= classes
    change_settings(server, priority="wukong-low")
    assert priority("") == "wukong-low", "settings.yaml counts before queue.yaml"
    change_settings(server, queue=None)
    assert priority("wukong-high") is None, "without a queue nobody reads it"


def test_a_smaller_training_differs_only_in_how_many_pods_it_has(installed: Any, tmp_path: Any) -> None:
    made = training(storage.from_path(tmp_path), gpus_per_worker=1)
    whole, half = installed(made, "pretrain"), installed(made, "pretrain", 2)
    for job, count in ((whole, 4), (half, 2)):
        (group,) = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
        assert {group.pop(key) for key in ("replicas", "minReplicas", "maxReplicas")} == {count}
        assert job["metadata"]["annotations"].pop("wukong/workers") == str(count)
    assert json.dumps(whole) == json.dumps(half)


def test_the_priority_is_in_no_stages_key(tmp_path: Any) -> None:
    one, other = (training(storage.from_path(tmp_path), of) for of in ("", "wukong-high"))
    assert [stages.of(name).config(one) for name in stages.JOBS] == [
        stages.of(name).config(other) for name in stages.JOBS
    ]
