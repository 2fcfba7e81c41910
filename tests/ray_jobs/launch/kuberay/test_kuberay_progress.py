"""How far a stage has come, on its RayJob and in Argo's file."""

import itertools
import logging
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from api_server import ApiServer
from hypothesis import given
from hypothesis import strategies as st
from kubernetes.client import ApiException
from played_ray_job import (
    FAILED,
    FAST,
    NEW,
    REPOSITORY,
    RUNNING,
    SUCCEEDED,
    VALIDATION,
    change_settings,
    only_job,
    run,
)

from infra.cluster_api import ClusterError
from ray_jobs.launch.kuberay import RayJobError, run_job
from ray_jobs.launch.kuberay.client import KubernetesApi
from ray_jobs.launch.kuberay.progress import ShownProgress, label, percent
from wukong.config.experiment import Experiment
from wukong.runs import run_records
from wukong.runs.run_records import Record
from wukong.runtime import logs, progress
from wukong.runtime.events import Advanced
from wukong.store import manifest, storage

# apimachinery/pkg/util/validation: a valid label value, of at most 63 characters.
LABEL_VALUE = re.compile(r"(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?", re.ASCII)
SECONDS = {"d": 86_400, "h": 3_600, "m": 60, "s": 1}


def line(done: int, left: str = ", 480 s left") -> tuple[str, str]:
    """A step of the script: a line of a job's log that says how many of a thousand pictures there are."""
    return "log", f"12:00:00 | INFO | download: {done:,} of 1,000 pictures (1.2/s{left})"


def shown(server: ApiServer) -> tuple[str | None, str | None]:
    """The RayJob's label and annotation."""
    metadata = only_job(server)["metadata"]
    return metadata["labels"].get("wukong/progress"), metadata["annotations"].get("wukong/progress")


def until_label(server: ApiServer, value: str) -> tuple[str, Callable[[], bool]]:
    return "until", lambda: shown(server)[0] == value


def labels(server: ApiServer) -> list[str]:
    return [patch["metadata"]["labels"]["wukong/progress"] for _, patch in server.patches]


def test_a_rayjob_says_how_far_it_is_and_then_that_it_is_done(server: ApiServer, experiment: Experiment) -> None:
    seen = []
    look = ("call", lambda: seen.append(shown(server)))
    worker = "\x1b[36m(TrainWorker pid=121, ip=10.0.0.7)\x1b[0m 12:03:00 | INFO | training: 64 of 64 pairs (8.0/s)"
    steps = [
        line(420),
        until_label(server, "42pct-8m-left"),
        look,
        ("log", worker),
        until_label(server, "100pct"),
        look,
    ]
    server.scripts = [[NEW, RUNNING, *steps, SUCCEEDED]]
    run(experiment)
    assert seen == [("42pct-8m-left", "download: 420 of 1,000 pictures"), ("100pct", "training: 64 of 64 pairs")]
    assert shown(server) == ("done", "training: 64 of 64 pairs")
    assert only_job(server)["metadata"]["labels"]["wukong/run"] == "Nightly_7", "other labels stay"


def test_a_stage_that_reports_nothing_has_no_label(server: ApiServer, experiment: Experiment) -> None:
    seen = []
    other = ("log", "12:00:00 | INFO | part 3 of 4 pictures is there")
    server.scripts = [[NEW, RUNNING, other, ("sleep", 0.3), ("call", lambda: seen.append(shown(server))), SUCCEEDED]]
    run(experiment)
    assert seen == [(None, None)]
    assert shown(server) == ("done", None)


def test_a_rayjob_that_failed_says_how_far_it_had_come(server: ApiServer, experiment: Experiment) -> None:
    change_settings(server, retries=0)
    server.scripts = [[NEW, RUNNING, line(420), until_label(server, "42pct-8m-left"), FAILED]]
    with pytest.raises(RayJobError, match="AppFailed"):
        run(experiment)
    assert shown(server)[0] == "42pct"


def test_a_rayjob_that_never_ran_has_no_label(server: ApiServer, experiment: Experiment) -> None:
    server.scripts = [[VALIDATION]]
    with pytest.raises(RayJobError):
        run(experiment)
    assert not server.patches


def test_changes_are_written_now_and_then_and_the_last_one_is(server: ApiServer, experiment: Experiment) -> None:
    many = [line(number) for number in range(0, 1_000, 10)]
    same = [step for _ in range(3) for step in (line(990), ("sleep", 0.3))]
    server.scripts = [[NEW, RUNNING, *many, until_label(server, "99pct-8m-left"), *same, SUCCEEDED]]
    run_job("filter", experiment, "r", ["filter"], {}, "wukong", replace(FAST, progress=0.25))
    *working, (_, last) = server.patches
    assert 2 <= len(working) < 20
    assert all(later - earlier >= 0.2 for (earlier, _), (later, _) in itertools.pairwise(working))
    assert labels(server).count("99pct-8m-left") == 1
    assert last["metadata"]["labels"] == {"wukong/progress": "done"}


def test_a_service_account_that_may_not_patch_is_told_once(
    server: ApiServer, experiment: Experiment, caplog: pytest.LogCaptureFixture
) -> None:
    """An installation from before has such a Role until its manifests are applied again."""
    (rule,) = (rule for rule in server.rules["wukong"] if "rayjobs" in rule["resources"])
    rule["verbs"].remove("patch")
    server.scripts = [[NEW, RUNNING, *(step for done in (1, 2, 3) for step in (line(done), ("sleep", 0.2))), SUCCEEDED]]
    run(experiment)
    assert sum(request.startswith("PATCH") for request in server.requests) == 1
    (said,) = (record for record in caplog.records if "is not shown on it" in record.message)
    assert "ray-job-launcher" in said.message


def test_a_write_that_fails_is_told_once_and_tried_again(
    server: ApiServer, experiment: Experiment, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures = (ApiException(500, "Internal Server Error"), TimeoutError("no answer"), ApiException(409))
    answers = iter([ClusterError("PATCH", each) for each in failures])
    patch = KubernetesApi.patch_job

    def patch_in_the_end(*arguments: Any) -> None:
        for error in answers:
            raise error
        patch(*arguments)

    monkeypatch.setattr(KubernetesApi, "patch_job", patch_in_the_end)
    server.scripts = [[NEW, RUNNING, line(420), until_label(server, "42pct-8m-left"), SUCCEEDED]]
    run(experiment)
    assert sum("is not shown on it" in record.message for record in caplog.records) == 1


DRIVER = """
import sys
import time
from ray_jobs.launch import kuberay
from wukong.config import documents
crawl = {"queries": "file:///q", "endpoint": "http://x.invalid"}
experiment = documents.parse({"name": "demo", "storage": sys.argv[1], "crawl": crawl})
kuberay.run_job("filter", experiment, "r", ["filter"], {}, "wukong", kuberay.Timing(watch=5, poll=0.05, progress=0.05))
"""


def test_a_restarted_component_goes_on_with_the_label(
    server: ApiServer, experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def finish() -> None:
        written = manifest.Stage(experiment.root, "filter", {}).commit([])
        record = Record(stage="filter", state="succeeded", manifest=f"{written.uri}/manifest.json")
        run_records.write(experiment, "r", record)

    taken_over = ("until", lambda: sum(request.endswith("-submitter/log") for request in server.requests) == 2)
    labelled_again = ("until", lambda: labels(server).count("42pct-8m-left") == 2)
    later = [taken_over, labelled_again, line(500), until_label(server, "50pct-8m-left"), ("call", finish), SUCCEEDED]
    server.scripts = [[NEW, RUNNING, *(line(10 * number) for number in range(43)), *later]]
    environment = os.environ | {"KUBECONFIG": str(tmp_path / "kubeconfig"), "PYTHONPATH": str(REPOSITORY)}
    with subprocess.Popen([sys.executable, "-c", DRIVER, storage.from_path(tmp_path)], env=environment) as first:
        while not server.jobs or shown(server)[0] != "42pct-8m-left":
            assert first.poll() is None
            time.sleep(0.05)
        first.kill()
    before, read = len(server.patches), ShownProgress.read

    def read_slowly(reader: ShownProgress, text: str) -> None:
        time.sleep(0.005)
        read(reader, text)

    monkeypatch.setattr(ShownProgress, "read", read_slowly)
    run_job("filter", experiment, "r", ["filter"], {}, "wukong", replace(FAST, progress=1.5))
    assert len(server.jobs) == 1
    assert labels(server)[before:] == ["42pct-8m-left", "50pct-8m-left", "done"]


def test_argo_is_told_the_share(
    server: ApiServer, experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "progress"
    monkeypatch.setenv("ARGO_PROGRESS_FILE", str(file))
    told = [
        ("until", lambda share=share: file.exists() and file.read_text() == f"{share}/100\n") for share in (0, 42, 100)
    ]
    steps = [step for pair in zip((line(0, ""), line(420), line(1_000, "")), told, strict=True) for step in pair]
    server.scripts = [[NEW, RUNNING, ("log", "at work"), ("sleep", 0.2), *steps, SUCCEEDED]]
    run(experiment)


def test_a_file_of_argo_that_cannot_be_written_harms_nothing(
    server: ApiServer,
    experiment: Experiment,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("ARGO_PROGRESS_FILE", str(tmp_path / "missing" / "progress"))
    steps = [step for done in (420, 500) for step in (line(done), until_label(server, f"{done // 10}pct-8m-left"))]
    server.scripts = [[NEW, RUNNING, *steps, SUCCEEDED]]
    run(experiment)
    assert sum("Argo is not told" in record.message for record in caplog.records) == 1


@given(
    st.builds(
        Advanced,
        what=st.just("download"),
        done=st.integers(0, 10**15),
        total=st.integers(0, 10**15),
        unit=st.just("pictures"),
        rate=st.floats(0, 1e12),
    )
)
def test_a_label_is_one_of_kubernetes_and_says_what_is_so(advanced: Advanced) -> None:
    value = label(advanced)
    assert LABEL_VALUE.fullmatch(value) and len(value) <= 63
    share, _, time = value.partition("pct")
    assert int(share) == percent(advanced)
    # Argo's own test of a progress: 0 <= N <= M.
    assert 0 <= int(share) <= 100
    if advanced.total:
        assert advanced.done >= advanced.total or int(share) * advanced.total <= 100 * advanced.done
        assert int(share) == 100 or 100 * advanced.done < (int(share) + 1) * advanced.total
    if advanced.seconds_left is None or advanced.seconds_left >= 1_000 * SECONDS["d"]:
        assert not time
        return
    parts = re.findall(r"(\d+)([dhms])", time.removesuffix("-left"))
    assert time == f"-{''.join(number + unit for number, unit in parts)}-left"
    left = sum(int(number) * SECONDS[unit] for number, unit in parts)
    assert -0.5 <= advanced.seconds_left - left <= SECONDS[parts[-1][1]]


def test_the_lines_that_stages_log_are_understood(
    server: ApiServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now = 0.0
    monkeypatch.setattr("wukong.runtime.progress.time.monotonic", lambda: now)
    with caplog.at_level(logging.INFO), progress.track("compare vectors", 4_000, "pictures") as advance:
        now = 3_600.0
        advance(1_000)
        advance(3_000)
    reads = ShownProgress(KubernetesApi("wukong", FAST), "job")
    found = []
    for record in caplog.records:
        reads.read(logs.FORMATTER.format(record))
        found.append(reads._latest and label(reads._latest))
    assert found == ["25pct-3h0m-left", "100pct"]
