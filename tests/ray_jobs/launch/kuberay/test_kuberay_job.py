"""One stage run as a RayJob, against a Kubernetes API on loopback."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from api_server import ApiServer
from played_ray_job import (
    FAILED,
    FAST,
    NEW,
    PENDING,
    REPOSITORY,
    RUNNING,
    SUBMITTED,
    SUCCEEDED,
    experiment_at,
    only_job,
    run,
)

from ray_jobs import launch
from ray_jobs.launch.kuberay import RayJobError, end_run, run_job
from wukong import config, manifest, places, run_records, stages, storage
from wukong.crawl.status import Status
from wukong.manifest import Manifest


def test_a_job_that_succeeds(server: ApiServer, experiment: config.Experiment, capsys: Any) -> None:
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


@pytest.mark.parametrize("changed", ["experiment", "parent", "image"])
def test_a_run_repeated_with_other_work_does_not_find_the_old_job(
    server: ApiServer, experiment: config.Experiment, changed: str
) -> None:
    server.scripts = [[NEW, RUNNING, SUCCEEDED], [NEW, RUNNING, SUCCEEDED]]
    arguments = ["filter", "--experiment", "s3://wukong/demo/experiments/1.json", "--run", "r", "--parent", "s3://a"]
    run_job("filter", experiment, "r", arguments, {}, "wukong", FAST)
    run_job("filter", experiment, "r", arguments, {}, "wukong", FAST)
    assert len(server.jobs) == 1
    if changed == "image":
        data = server.config_maps["ray-job"]
        data["settings.yaml"] = data["settings.yaml"].replace("ray:0.1.0", "ray:0.2.0")
    else:
        old, new = {"experiment": ("1.json", "2.json"), "parent": ("s3://a", "s3://b")}[changed]
        arguments = [argument.replace(old, new) for argument in arguments]
    run_job("filter", experiment, "r", arguments, {}, "wukong", FAST)
    assert len(server.jobs) == 2


def _head_container(job: dict[str, Any]) -> dict[str, Any]:
    container: dict[str, Any] = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    return container


def test_jobs_that_succeed_are_left_for_their_time_to_live(server: ApiServer, experiment: config.Experiment) -> None:
    server.scripts = [[NEW, RUNNING, SUCCEEDED]]
    run(experiment)
    spec = only_job(server)["spec"]
    assert (spec["shutdownAfterJobFinishes"], spec["ttlSecondsAfterFinished"]) == (True, 300)
    assert not any(request.startswith("DELETE") for request in server.requests)


def test_a_job_whose_creation_was_answered_too_late_is_found(server: ApiServer, experiment: config.Experiment) -> None:
    server.lose_create = True
    server.scripts = [[NEW, RUNNING, SUCCEEDED]]
    run(experiment)
    assert len(server.jobs) == 1


def test_a_restarted_component_goes_on_with_the_job(server: ApiServer, experiment: config.Experiment) -> None:
    server.scripts = [[NEW, RUNNING, SUCCEEDED]]
    run(experiment)
    run(experiment)
    assert sum(request.startswith("POST") for request in server.requests) == 1


def test_after_a_failed_attempt_comes_the_next(server: ApiServer, experiment: config.Experiment) -> None:
    server.scripts = [[NEW, RUNNING, FAILED], [NEW, RUNNING, SUCCEEDED]]
    with pytest.raises(RayJobError):
        run(experiment)
    run(experiment)
    assert sorted(name[-2:] for name in server.jobs) == ["-1", "-2"]


def test_the_stages_own_record_of_an_earlier_attempt_is_not_believed(
    server: ApiServer, experiment: config.Experiment
) -> None:
    run_records.write(experiment, "Nightly_7", run_records.Record(stage="filter", state="succeeded", manifest="stale"))
    server.scripts = [[NEW, RUNNING, SUCCEEDED]]
    run(experiment)
    assert run_records.read(experiment, "Nightly_7", "filter") is None


def test_a_pod_of_the_same_namespace_owns_its_job(
    server: ApiServer, experiment: config.Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "namespace").write_text("wukong\n")
    monkeypatch.setattr("ray_jobs.launch.kuberay.job._NAMESPACE_FILE", tmp_path / "namespace")
    server.scripts = [[NEW, RUNNING, SUCCEEDED]]
    for name in ("component-1", "component-2"):
        monkeypatch.setenv("KFP_POD_NAME", name)
        monkeypatch.setenv("KFP_POD_UID", f"uid-{name}")
        run(experiment)
        (owner,) = only_job(server)["metadata"]["ownerReferences"]
        assert (owner["kind"], owner["uid"]) == ("Pod", f"uid-{name}"), "who goes on with a job takes it over"


def test_a_pod_of_another_namespace_cannot_own_it(
    server: ApiServer, experiment: config.Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "namespace").write_text("kubeflow")
    monkeypatch.setattr("ray_jobs.launch.kuberay.job._NAMESPACE_FILE", tmp_path / "namespace")
    monkeypatch.setenv("KFP_POD_NAME", "component-1")
    monkeypatch.setenv("KFP_POD_UID", "uid-1")
    server.scripts = [[NEW, RUNNING, SUCCEEDED]]
    run(experiment)
    assert "ownerReferences" not in only_job(server)["metadata"]


def test_the_jobs_of_a_run_that_have_not_ended_are_ended(server: ApiServer, experiment: config.Experiment) -> None:
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


DRIVER = """
import sys
from ray_jobs.launch import kuberay
from wukong import config, storage
crawl = {"queries": "file:///q", "endpoint": "http://x.invalid"}
experiment = config.parse({"name": "demo", "storage": sys.argv[1], "crawl": crawl})
timing = kuberay.Timing(watch=5, poll=0.05, patience=float(sys.argv[2]))
kuberay.run_job("filter", experiment, "r", ["filter", "--run", "r"], {}, "wukong", timing)
"""


def start_driver(tmp_path: Path, patience: float) -> "subprocess.Popen[str]":
    """Start a launcher in a process of its own."""
    environment = os.environ | {"KUBECONFIG": str(tmp_path / "kubeconfig"), "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-c", DRIVER, storage.from_path(tmp_path), str(patience)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


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
    job["status"] |= SUCCEEDED
    run_job("filter", experiment_at(storage.from_path(tmp_path)), "r", ["filter", "--run", "r"], {}, "wukong", FAST)
    assert sum(request.startswith("POST") for request in server.requests) == 1


@pytest.fixture
def on_cluster(server: ApiServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WUKONG_CLUSTER", "wukong")
    monkeypatch.setattr("ray_jobs.launch.kuberay.job.Timing", lambda **_: FAST)


@pytest.mark.usefixtures("on_cluster")
def test_launching_on_a_cluster_hands_on_the_stages_manifest(server: ApiServer, experiment: config.Experiment) -> None:
    written = manifest.Stage(experiment.root, "filter", {}).commit([], counts={"train": 7})
    record = run_records.Record(stage="filter", state="succeeded", manifest=f"{written.uri}/manifest.json")
    server.scripts = [[NEW, RUNNING, ("call", partial(run_records.write, experiment, "r", record)), SUCCEEDED]]
    environment = {"MLFLOW_RUN_ID": "abc", "AWS_SECRET_ACCESS_KEY": "hush"}
    assert launch.launch("filter", experiment, "r", [], environment).counts == {"train": 7}
    job = only_job(server)
    assert {"name": "MLFLOW_RUN_ID", "value": "abc"} in _head_container(job)["env"]
    assert "hush" not in str(job), "credentials come from the namespace's Secrets"


@pytest.mark.usefixtures("on_cluster")
def test_the_stages_own_error_is_the_launchs_error(server: ApiServer, experiment: config.Experiment) -> None:
    record = run_records.Record(stage="filter", state="failed", error="part 7 is truncated; crawl again")
    server.scripts = [[NEW, RUNNING, ("call", partial(run_records.write, experiment, "r", record)), FAILED]]
    with pytest.raises(launch.JobError, match="part 7 is truncated"):
        launch.launch("filter", experiment, "r", [])


def finish(name: str, experiment: config.Experiment, parents: Mapping[str, Manifest]) -> Manifest:
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
    server: ApiServer, experiment: config.Experiment, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    (tmp_path / "queries.txt").write_text("猫\n狗\n", encoding="utf-8")

    def run_all(run_name: str) -> dict[str, Manifest]:
        found: dict[str, Manifest] = {}
        for name in stages.JOBS:
            parents = {parent: found[parent] for parent in stages.of(name).parents}

            def work(name: str = name, parents: Mapping[str, Manifest] = parents) -> None:
                uri = finish(name, experiment, parents).uri
                record = run_records.Record(stage=name, state="succeeded", manifest=f"{uri}/manifest.json")
                run_records.write(experiment, run_name, record)

            server.scripts = [[NEW, RUNNING, ("call", work), SUCCEEDED]]
            found[name] = launch.launch(name, experiment, run_name, [parent.uri for parent in parents.values()])
        return found

    first = run_all("first")
    assert len(server.jobs) == len(stages.JOBS)
    asked = len(server.requests)
    assert run_all("second") == first
    assert len(server.requests) == asked, "a finished stage asks Kubernetes for nothing"
    records = run_records.read_all(experiment, "second")
    assert [(record.stage, record.reused) for record in records] == [(name, True) for name in stages.JOBS]
    assert f"crawl was finished already, found in 0.0 s: {first['crawl'].uri}" in caplog.text
