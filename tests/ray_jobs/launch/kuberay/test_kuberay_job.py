"""One stage run as a RayJob, against a Kubernetes API on loopback."""

import re
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import api_server
import pytest
import yaml
from api_server import ApiServer
from played_ray_job import (
    DEADLINE,
    FAILED,
    FAST,
    NEW,
    PENDING,
    PRE_DEADLINE,
    RUNNING,
    SUBMISSION,
    SUBMITTED,
    SUCCEEDED,
    UNREACHABLE,
    VALIDATION,
    change_settings,
    experiment_at,
    leave_output,
    only_job,
    run,
    start_driver,
)

from ray_jobs import launch
from ray_jobs.launch.kuberay import RayJobError, end_run, pipeline_run, run_job, was_terminated
from ray_jobs.launch.kuberay.client import KubernetesApi
from ray_jobs.launch.kuberay.pipeline_run import is_ending
from wukong import stages
from wukong.config.experiment import Experiment
from wukong.crawl.status import Status
from wukong.runs import run_records
from wukong.runs.run import Run
from wukong.runs.run_records import Record
from wukong.stages import places
from wukong.store import manifest, storage
from wukong.store.manifest import Manifest


def test_a_job_that_succeeds(server: ApiServer, experiment: Experiment, capsys: Any) -> None:
    steps = [NEW, SUBMITTED, PENDING, RUNNING, ("log", "filter: 1/2 parts"), ("log", "筛选: 2/2 parts"), SUCCEEDED]
    server.scripts = [steps]
    run(experiment, MLFLOW_RUN_ID="abc")
    assert capsys.readouterr().out == "filter: 1/2 parts\n筛选: 2/2 parts\n"
    job = only_job(server)
    assert job["spec"]["entrypoint"] == (
        "python -m ray_jobs filter --experiment s3://wukong/demo/experiments/1.json --run Nightly_7"
    )
    assert job["metadata"]["labels"]["wukong/run"] == "Nightly_7"
    assert {"name": "MLFLOW_RUN_ID", "value": "abc"} in _head_container(job)["env"]


@pytest.mark.parametrize("own", [False, True])
def test_the_pods_of_a_job_start_from_the_secret_of_their_stage_or_of_the_job(
    server: ApiServer, experiment: Experiment, own: bool
) -> None:
    """A job that is made in the place of another has another Secret: the store refuses the first one's key."""
    server.config_maps["ray-job"] |= {"keys.yaml": "own_keys: true"} if own else {}
    server.scripts = [[NEW, RUNNING, {"jobDeploymentStatus": "Failed", "reason": "SubmissionFailed"}], [SUCCEEDED]]
    made: list[tuple[str, list[set[str]]]] = []
    real = KubernetesApi.create_job

    def create_job(api: KubernetesApi, body: dict[str, Any]) -> bool:
        cluster = body["spec"]["rayClusterSpec"]
        groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
        sources = [group["template"]["spec"]["containers"][0]["envFrom"] for group in groups]
        held = [{each["secretRef"]["name"] for each in source if "secretRef" in each} for source in sources]
        made.append((body["metadata"]["name"], held))
        return real(api, body)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(KubernetesApi, "create_job", create_job)
        run(experiment)
    assert len(made) == 2
    for name, held in made:
        assert held == [{f"{name}-s3" if own else "job-filter-s3"}] * 2


@pytest.mark.parametrize("changed", ["experiment", "parent", "image"])
def test_a_run_repeated_with_other_work_does_not_find_the_old_job(
    server: ApiServer, experiment: Experiment, changed: str
) -> None:
    done = [NEW, RUNNING, ("call", partial(leave_output, experiment, "r")), SUCCEEDED]
    server.scripts = [done, done]
    arguments = ["filter", "--experiment", "s3://wukong/demo/experiments/1.json", "--run", "r", "--parent", "s3://a"]
    run_job("filter", experiment, "r", arguments, {}, "wukong", FAST)
    run_job("filter", experiment, "r", arguments, {}, "wukong", FAST)
    assert len(server.jobs) == 1
    if changed == "image":
        data = server.config_maps["ray-job"]
        data["settings.yaml"] = data["settings.yaml"].replace("ray:0.2.0", "ray:0.3.0")
    else:
        old, new = {"experiment": ("1.json", "2.json"), "parent": ("s3://a", "s3://b")}[changed]
        arguments = [argument.replace(old, new) for argument in arguments]
    run_job("filter", experiment, "r", arguments, {}, "wukong", FAST)
    assert len(server.jobs) == 2


def _head_container(job: dict[str, Any]) -> dict[str, Any]:
    container: dict[str, Any] = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    return container


def test_what_kuberay_deletes_and_when(server: ApiServer, experiment: Experiment) -> None:
    server.scripts = [[NEW, RUNNING, SUCCEEDED]]
    run(experiment)
    spec = only_job(server)["spec"]
    rules: dict[str, dict[str, int]] = {"SUCCEEDED": {}, "Failed": {}}
    for rule in spec["deletionStrategy"]["deletionRules"]:
        condition = rule["condition"]
        ended = condition.get("jobStatus") or condition["jobDeploymentStatus"]
        rules[ended][rule["policy"]] = condition["ttlSeconds"]
    assert rules == {
        "SUCCEEDED": {"DeleteCluster": 0, "DeleteSelf": 86_400},
        "Failed": {"DeleteCluster": 300, "DeleteSelf": 604_800},
    }
    # KubeRay refuses rules beside these (ray-operator/controllers/ray/utils/validation.go).
    assert (spec["shutdownAfterJobFinishes"], "ttlSecondsAfterFinished" in spec) == (False, False)
    assert not any(request.startswith("DELETE") for request in server.requests)


def test_a_queued_job_has_no_rules_which_kuberay_refuses_with_suspend(
    server: ApiServer, experiment: Experiment
) -> None:
    change_settings(server, queue="training")
    server.scripts = [[NEW, RUNNING, SUCCEEDED]]
    run(experiment)
    spec = only_job(server)["spec"]
    assert (spec["suspend"], spec["shutdownAfterJobFinishes"], spec["ttlSecondsAfterFinished"]) == (True, True, 0)
    assert "deletionStrategy" not in spec
    assert end_run(experiment, "Nightly_7", "wukong") == [], "it has ended"
    assert not server.jobs, "nothing else would delete it"


def test_a_job_whose_creation_was_answered_too_late_is_found(server: ApiServer, experiment: Experiment) -> None:
    server.lose_create = True
    server.scripts = [[NEW, RUNNING, ("call", partial(leave_output, experiment)), SUCCEEDED]]
    run(experiment)
    assert len(server.jobs) == 1


def test_a_restarted_component_goes_on_with_the_job(server: ApiServer, experiment: Experiment) -> None:
    server.scripts = [[NEW, RUNNING, ("call", partial(leave_output, experiment)), SUCCEEDED]]
    run(experiment)
    run(experiment)
    assert sum(request.startswith("POST") for request in server.requests) == 1


def test_a_job_that_succeeded_is_made_again_when_its_output_is_gone(server: ApiServer, experiment: Experiment) -> None:
    server.scripts = [[NEW, RUNNING, ("call", partial(leave_output, experiment)), SUCCEEDED], [NEW, RUNNING, SUCCEEDED]]
    run(experiment)
    storage.delete(storage.join(experiment.root, "filter"))
    run(experiment)
    assert sorted(name[-2:] for name in server.jobs) == ["-1", "-2"]


def test_after_a_failed_attempt_comes_the_next(server: ApiServer, experiment: Experiment) -> None:
    change_settings(server, retries=0)
    server.scripts = [[NEW, RUNNING, FAILED], [NEW, RUNNING, SUCCEEDED]]
    with pytest.raises(RayJobError):
        run(experiment)
    run(experiment)
    assert sorted(name[-2:] for name in server.jobs) == ["-1", "-2"]


def test_the_stages_own_record_of_an_earlier_attempt_is_not_believed(server: ApiServer, experiment: Experiment) -> None:
    run_records.write(experiment, "Nightly_7", Record(stage="filter", state="succeeded", manifest="stale"))
    server.scripts = [[NEW, RUNNING, SUCCEEDED]]
    run(experiment)
    assert run_records.read(experiment, "Nightly_7", "filter") is None


LOST = [FAILED, SUBMISSION, UNREACHABLE]


@pytest.mark.parametrize("lost", LOST, ids=lambda status: str(status["reason"]))
def test_what_infrastructure_did_is_repeated_on_a_new_cluster(
    server: ApiServer, experiment: Experiment, lost: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    change_settings(server, retries=2)
    server.scripts = [[NEW, RUNNING, lost], [NEW, RUNNING, lost], [NEW, RUNNING, SUCCEEDED]]
    run(experiment)
    assert sum(request.startswith("POST") for request in server.requests) == 3
    assert len(server.jobs) == 1, "the lost ones are deleted: their drivers may still write"
    assert lost["reason"] in caplog.text
    assert "another RayJob is made in 0 s (2 of at most 2)" in caplog.text


def test_infrastructure_that_is_lost_again_and_again_ends_the_stage(server: ApiServer, experiment: Experiment) -> None:
    change_settings(server, retries=1)
    server.scripts = [[NEW, SUBMITTED, SUBMISSION]] * 3
    with pytest.raises(RayJobError, match="BackoffLimitExceeded") as caught:
        run(experiment)
    assert caught.value.reason == "SubmissionFailed"
    assert sum(request.startswith("POST") for request in server.requests) == 2
    assert only_job(server)["spec"]["backoffLimit"] == 0, "KubeRay itself repeats nothing"


@pytest.mark.parametrize("ended", [*LOST, DEADLINE, PRE_DEADLINE, VALIDATION], ids=lambda status: str(status["reason"]))
def test_a_stages_own_failure_and_a_deadline_are_not_repeated(
    server: ApiServer, experiment: Experiment, ended: dict[str, Any]
) -> None:
    record = Record(stage="filter", state="failed", error="part 7 is truncated")
    own = [("call", partial(run_records.write, experiment, "Nightly_7", record))] if ended in LOST else []
    server.scripts = [[NEW, RUNNING, *own, ended], [NEW, RUNNING, SUCCEEDED]]
    with pytest.raises(RayJobError):
        run(experiment)
    assert sum(request.startswith("POST") for request in server.requests) == 1


def test_the_loss_of_a_node_that_the_driver_recorded_is_repeated(server: ApiServer, experiment: Experiment) -> None:
    record = Record(stage="filter", state="failed", error="NodeDiedError: ...", infrastructure=True)
    write = ("call", partial(run_records.write, experiment, "Nightly_7", record))
    server.scripts = [[NEW, RUNNING, write, FAILED], [NEW, RUNNING, SUCCEEDED]]
    run(experiment)
    assert run_records.read(experiment, "Nightly_7", "filter") is None, (
        "the lost attempt's record is not the next one's"
    )


def test_a_driver_that_was_done_before_its_head_was_lost_has_succeeded(
    server: ApiServer, experiment: Experiment
) -> None:
    server.scripts = [[NEW, RUNNING, ("call", partial(leave_output, experiment)), UNREACHABLE]]
    run(experiment)
    assert sum(request.startswith("POST") for request in server.requests) == 1


def head_that_ends(seconds: float) -> dict[str, Any]:
    """A head whose grace period ends in some seconds, as the API shows it."""
    labels = {"ray.io/cluster": NEW["rayClusterName"], "ray.io/node-type": "head"}
    head = api_server.pod("head-1", {"phase": "Running"}, labels)
    moment = datetime.now(UTC) + timedelta(seconds=seconds)
    head["metadata"]["deletionTimestamp"] = moment.isoformat(timespec="seconds").replace("+00:00", "Z")
    return head


SILENT = {"jobStatusCheckFailureStartTime": "2026-01-01T00:00:40Z"}


@pytest.mark.parametrize("steps", [[NEW, RUNNING, SILENT], [NEW]], ids=["that worked", "that came up"])
def test_a_head_that_went_with_its_node_is_not_waited_for(
    server: ApiServer, experiment: Experiment, caplog: pytest.LogCaptureFixture, steps: list[Any]
) -> None:
    server.scripts = [
        [("pods", [head_that_ends(-60)]), *steps, ("sleep", 600)],
        [("pods", []), NEW, RUNNING, SUCCEEDED],
    ]
    run(experiment)
    assert sum(request.startswith("POST") for request in server.requests) == 2
    assert "HeadLost: the head head-1 was to be deleted and is still there" in caplog.text


@pytest.mark.parametrize(
    ("ends", "silent"),
    [([0.0], True), ([], True), ([-60.0], False)],
    ids=["in its grace period", "none", "and the job answers"],
)
def test_a_head_that_may_yet_end_or_come_is_waited_for(
    server: ApiServer, experiment: Experiment, ends: list[float], silent: bool
) -> None:
    pods = [head_that_ends(seconds) for seconds in ends]
    server.scripts = [[NEW, RUNNING, ("pods", pods), *([SILENT] if silent else []), ("sleep", 0.5), SUCCEEDED]]
    run(experiment)
    assert sum(request.startswith("POST") for request in server.requests) == 1


def test_a_later_attempt_is_found_when_the_first_is_gone(server: ApiServer, experiment: Experiment) -> None:
    """Two RayJobs would do the same work at once."""
    change_settings(server, retries=0)
    done = ("call", partial(leave_output, experiment))
    server.scripts = [[NEW, RUNNING, FAILED], [NEW, RUNNING, done, SUCCEEDED]]
    with pytest.raises(RayJobError):
        run(experiment)
    run(experiment)
    first, second = sorted(server.jobs)
    del server.jobs[first]
    run(experiment)
    assert list(server.jobs) == [second]


def test_no_pod_owns_a_job(server: ApiServer, experiment: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kubernetes deletes what a deleted pod owns, and a component's pod may be deleted at any time."""
    monkeypatch.setenv("KFP_POD_NAME", "component-1")
    monkeypatch.setenv("KFP_POD_UID", "uid-1")
    server.scripts = [[NEW, RUNNING, SUCCEEDED]]
    run(experiment)
    assert "ownerReferences" not in only_job(server)["metadata"]


def test_the_jobs_of_a_run_that_have_not_ended_are_ended(server: ApiServer, experiment: Experiment) -> None:
    server.scripts = [[NEW, RUNNING, SUCCEEDED]]
    run(experiment)
    finished = only_job(server)
    running = yaml.safe_load(yaml.safe_dump(finished))
    running["metadata"]["name"], running["status"] = "left-behind", RUNNING
    other = yaml.safe_load(yaml.safe_dump(running))
    other["metadata"]["name"], other["metadata"]["labels"]["wukong/run"] = "another-run", "another"
    server.jobs |= {"left-behind": running, "another-run": other}
    assert end_run(experiment, "Nightly_7", "wukong") == ["left-behind"]
    assert set(server.jobs) == {finished["metadata"]["name"], "another-run"}


@pytest.mark.parametrize(
    ("spec", "terminated"),
    [({"activeDeadlineSeconds": 0}, True), ({"shutdown": "Terminate"}, True), ({}, False), (None, False)],
)
def test_a_terminated_run_is_told_from_a_failed_one(
    server: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spec: dict[str, Any] | None, terminated: bool
) -> None:
    if spec is not None:
        server.change_workflow("wukong-training-x", spec)
    (tmp_path / "namespace").write_text("kubeflow\n")
    monkeypatch.setattr(pipeline_run, "NAMESPACE_FILE", tmp_path / "namespace")
    monkeypatch.setenv("ARGO_NODE_ID", "wukong-training-x-3104409763")
    assert was_terminated() == terminated


@pytest.fixture
def driver(server: ApiServer, tmp_path: Path) -> Iterator["subprocess.Popen[str]"]:
    """A launcher in a process of its own whose job runs and does not end."""
    server.scripts = [[NEW, RUNNING, ("log", "at work")]]
    with start_driver(tmp_path, 1.0) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "at work\n"
        yield process
        process.kill()


def test_a_cancelled_run_deletes_its_job(server: ApiServer, driver: "subprocess.Popen[str]") -> None:
    driver.send_signal(signal.SIGTERM)
    assert driver.wait(120) == 128 + signal.SIGTERM
    assert not server.jobs


def test_a_run_that_waits_for_the_api_server_is_cancelled_at_once(server: ApiServer, tmp_path: Path) -> None:
    server.unavailable = 10_000
    with start_driver(tmp_path, 600.0) as process:
        while server.unavailable > 9_997:
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 128 + signal.SIGTERM


def test_the_job_of_a_killed_component_is_found_again(
    server: ApiServer, driver: "subprocess.Popen[str]", tmp_path: Path
) -> None:
    driver.kill()
    driver.wait(120)
    (job,) = server.jobs.values()
    leave_output(experiment_at(storage.from_path(tmp_path)), "r")
    job["status"] |= SUCCEEDED
    run_job("filter", experiment_at(storage.from_path(tmp_path)), "r", ["filter", "--run", "r"], {}, "wukong", FAST)
    assert sum(request.startswith("POST") for request in server.requests) == 1


@pytest.fixture
def component(server: ApiServer, tmp_path: Path) -> Iterator["subprocess.Popen[str]"]:
    """A launcher as in the pod of a pipeline run that goes on; its job runs and does not end."""
    server.change_workflow("run-x7k2p", {"entrypoint": "entrypoint"})
    server.scripts = [[NEW, RUNNING, ("log", "at work")]]
    with start_driver(tmp_path, 1.0, "run-x7k2p") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "at work\n"
        yield process
        process.kill()


def test_the_job_of_a_component_that_is_drained_goes_on_and_the_next_takes_it_over(
    server: ApiServer, component: "subprocess.Popen[str]", tmp_path: Path
) -> None:
    component.send_signal(signal.SIGTERM)
    assert component.wait(60) == 128 + signal.SIGTERM
    (job,) = server.jobs.values()
    leave_output(experiment_at(storage.from_path(tmp_path)), "r")
    job["status"] |= SUCCEEDED
    run_job("filter", experiment_at(storage.from_path(tmp_path)), "r", ["filter", "--run", "r"], {}, "wukong", FAST)
    assert sum(request.startswith("POST") for request in server.requests) == 1
    assert not any(request.startswith("DELETE") for request in server.requests)
    assert run_records.read(experiment_at(storage.from_path(tmp_path)), "r", "run") is None


def test_a_terminated_run_deletes_its_job_before_argo_signals_it(
    server: ApiServer, component: "subprocess.Popen[str]", tmp_path: Path
) -> None:
    began = time.monotonic()
    server.change_workflow("run-x7k2p", {"activeDeadlineSeconds": 0})
    assert component.wait(60) == 128 + signal.SIGTERM
    assert not server.jobs
    assert time.monotonic() - began < 10
    record = run_records.read(experiment_at(storage.from_path(tmp_path)), "r", "run")
    assert record == Record(stage="run", state="failed", error="terminated")


def test_a_run_that_cannot_be_read_counts_as_going_on(server: ApiServer, component: "subprocess.Popen[str]") -> None:
    server.rules["kubeflow"] = []
    component.send_signal(signal.SIGTERM)
    assert component.wait(60) == 128 + signal.SIGTERM
    assert len(server.jobs) == 1


def test_a_terminated_run_that_cannot_be_watched_is_asked_for(server: ApiServer, tmp_path: Path) -> None:
    server.change_workflow("run-x7k2p", {})
    server.rules["kubeflow"][0]["verbs"] = ["get"]
    server.scripts = [[NEW, RUNNING, ("log", "at work")]]
    with start_driver(tmp_path, 1.0, "run-x7k2p") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "at work\n"
        server.change_workflow("run-x7k2p", {"activeDeadlineSeconds": 0})
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 128 + signal.SIGTERM
    assert not server.jobs


@pytest.mark.parametrize(
    ("workflow", "ending"),
    [
        ({}, False),
        ({"spec": {"activeDeadlineSeconds": 0}}, True),
        ({"spec": {"activeDeadlineSeconds": 60}}, False),
        ({"spec": {"activeDeadlineSeconds": 60}, "status": {"startedAt": "2026-01-01T00:00:00Z"}}, True),
        ({"spec": {"activeDeadlineSeconds": 10**10}, "status": {"startedAt": "2026-01-01T00:00:00Z"}}, False),
        ({"spec": {"shutdown": "Terminate"}}, True),
        ({"status": {"phase": "Running"}}, False),
        ({"status": {"phase": "Failed"}}, True),
        ({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}}, True),
    ],
)
def test_when_a_workflow_is_ending(workflow: dict[str, Any], ending: bool) -> None:
    assert is_ending(workflow) == ending


@pytest.fixture
def on_cluster(server: ApiServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WUKONG_CLUSTER", "wukong")
    monkeypatch.setattr("ray_jobs.launch.kuberay.job.Timing", lambda **_: FAST)


@pytest.mark.usefixtures("on_cluster")
def test_launching_on_a_cluster_hands_on_the_stages_manifest(server: ApiServer, experiment: Experiment) -> None:
    written = manifest.Stage(experiment.root, "filter", {}).commit([], counts={"train": 7})
    record = Record(stage="filter", state="succeeded", manifest=f"{written.uri}/manifest.json")
    server.scripts = [[NEW, RUNNING, ("call", partial(run_records.write, experiment, "r", record)), SUCCEEDED]]
    environment = {"MLFLOW_RUN_ID": "abc", "AWS_SECRET_ACCESS_KEY": "hush"}
    assert launch.launch("filter", experiment, "r", [], environment).counts == {"train": 7}
    job = only_job(server)
    assert {"name": "MLFLOW_RUN_ID", "value": "abc"} in _head_container(job)["env"]
    assert "hush" not in str(job), "credentials come from the namespace's Secrets"


@pytest.mark.usefixtures("on_cluster")
def test_the_champions_evaluation_is_filed_beside_the_runs_own(server: ApiServer, experiment: Experiment) -> None:
    made = [manifest.Stage(experiment.root, "evaluate", {"of": of}).commit([]) for of in ("candidate", "champion")]
    names = ["evaluate", "champion"]
    own, champion = (
        Record(stage=name, state="succeeded", manifest=f"{found.uri}/manifest.json")
        for name, found in zip(names, made, strict=True)
    )
    server.scripts = [
        [NEW, RUNNING, ("call", partial(run_records.write, experiment, "r", record)), SUCCEEDED]
        for record in (own, champion)
    ]
    assert launch.launch("evaluate", experiment, "r", []) == made[0]
    assert launch.evaluate_champion(experiment, "r", []) == made[1]
    assert run_records.read(experiment, "r", "evaluate") == own
    jobs = list(server.jobs.values())
    assert len(jobs) == 2 and [job["metadata"]["labels"]["wukong/stage"] for job in jobs] == ["evaluate", "evaluate"]
    assert "--filed-as champion" in jobs[1]["spec"]["entrypoint"] and "--filed-as" not in jobs[0]["spec"]["entrypoint"]


@pytest.mark.usefixtures("on_cluster")
def test_the_stages_own_error_is_the_launchs_error(server: ApiServer, experiment: Experiment) -> None:
    record = Record(stage="filter", state="failed", error="part 7 is truncated; crawl again")
    server.scripts = [[NEW, RUNNING, ("call", partial(run_records.write, experiment, "r", record)), FAILED]]
    with pytest.raises(launch.JobError, match="part 7 is truncated"):
        launch.launch("filter", experiment, "r", [])


def finish(name: str, experiment: Experiment, parents: Mapping[str, Manifest]) -> Manifest:
    """Leave what a stage's job leaves, without its work."""
    if name == "crawl":
        nothing = dict.fromkeys(("urls", "queries", "queries_failed", "transient", *Status), 0)
        return places.crawl(experiment).stage.commit([], counts=nothing | {"urls": 1, Status.SUCCESS: 1})
    if name == "filter":
        return places.filtering(experiment, parents["crawl"]).commit([])
    filtered = parents["filter"]
    if name == "validate":
        return places.validation(experiment, filtered).commit([])
    if name == "evaluate":
        computed = places.features(experiment, filtered, pairs="holdouts").commit([])
        return places.evaluation(experiment, parents, [computed]).commit([])
    computed = places.features(experiment, filtered).commit([])
    return places.training(name, experiment, filtered, computed, parents.get("pretrain")).commit([])


@pytest.mark.usefixtures("on_cluster")
def test_a_run_whose_stages_have_finished_makes_no_rayjob(
    server: ApiServer, experiment: Experiment, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    (tmp_path / "queries.txt").write_text("猫\n狗\n", encoding="utf-8")

    def run_all(run_name: str) -> dict[str, Manifest]:
        found: dict[str, Manifest] = {}
        for name in stages.JOBS:
            parents = {parent: found[parent] for parent in stages.of(name).parents}

            def work(name: str = name, parents: Mapping[str, Manifest] = parents) -> None:
                uri = finish(name, experiment, parents).uri
                record = Record(stage=name, state="succeeded", manifest=f"{uri}/manifest.json")
                run_records.write(experiment, run_name, record)

            server.scripts = [[NEW, RUNNING, ("call", work), SUCCEEDED]]
            found[name] = launch.launch(name, experiment, run_name, [parent.uri for parent in parents.values()])
        return found

    first = run_all("first")
    assert len(server.jobs) == len(stages.JOBS)
    asked = len(server.requests)
    assert run_all("second") == first
    assert len(server.requests) == asked, "a finished stage asks Kubernetes for nothing"
    records = [*Run.of(experiment, "second").records.values()]
    assert [(record.stage, record.reused) for record in records] == [(name, True) for name in stages.JOBS]
    assert re.search(rf"crawl was finished already, found in \d\.\d s: {first['crawl'].uri}", caplog.text)
