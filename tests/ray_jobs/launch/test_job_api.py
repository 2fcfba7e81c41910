"""The launcher against a played job API of Ray, with the answers that Ray 2.60 gives."""

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from ray_jobs import launch
from ray_jobs.launch import job_api
from wukong import config, manifest, run_records, storage

FAST = job_api.Timing(poll=0.02, patience=0.5)
JOB = "raysubmit_ExDJ8mDYMV7RzUCF"
FAILED = (
    "Job entrypoint command failed with exit code 1, last available logs (truncated to 20,000 chars):\nlast words\n"
)


@dataclass
class Head:
    """A head whose job goes through its looks: (status, log so far, message)."""

    looks: list[tuple[str, str, str]]
    unavailable: int = 0
    requests: list[str] = field(default_factory=list)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    tokens: set[str | None] = field(default_factory=set)
    before_end: Any = None
    address: str = ""
    at: int = -1

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, Any]:
        self.requests.append(f"{method} {path}")
        if self.unavailable and method == "GET":
            self.unavailable -= 1
            return 503, "no agent"
        if path == "/api/jobs/" and method == "POST":
            self.bodies.append(json.loads(body))
            return 200, {"job_id": JOB, "submission_id": JOB}
        if path == f"/api/jobs/{JOB}/stop":
            return 200, {"stopped": True}
        if path == f"/api/jobs/{JOB}/logs":
            return 200, {"logs": self.looks[self.at][1]}
        if path == f"/api/jobs/{JOB}":
            self.at = min(self.at + 1, len(self.looks) - 1)
            status, _, message = self.looks[self.at]
            if self.before_end and status in ("SUCCEEDED", "FAILED"):
                self.before_end()
            return 200, {"type": "SUBMISSION", "submission_id": JOB, "status": status, "message": message}
        return 404, f"Job {path} does not exist"


@pytest.fixture
def head() -> Iterator[Head]:
    played = Head([("PENDING", "", ""), ("RUNNING", "one\n", ""), ("SUCCEEDED", "one\ntwo\n", "")])

    class Handler(BaseHTTPRequestHandler):
        def _any(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            played.tokens.add(self.headers.get("Authorization"))
            status, value = played.answer(self.command, self.path, body)
            data = (value if isinstance(value, str) else json.dumps(value)).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = _any  # noqa: N815

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        played.address = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield played
        server.shutdown()


def test_the_driver_runs_on_the_head_and_its_log_comes_once(head: Head, capsys: pytest.CaptureFixture[str]) -> None:
    head.looks[1:2] = [("RUNNING", "one\ntw", ""), ("RUNNING", "one\ntwo\n筛选", "")]
    head.looks[-1] = ("SUCCEEDED", "one\ntwo\n筛选: 2/2", "Job finished successfully.")
    assert job_api.run_job(["filter", "--run", "a b"], {"MLFLOW_RUN_ID": "abc"}, head.address, FAST) == 0
    assert capsys.readouterr().out == "one\ntwo\n筛选: 2/2"
    assert head.bodies == [{"entrypoint": "env MLFLOW_RUN_ID=abc python -m ray_jobs filter --run 'a b'"}]


def test_a_failed_command_is_the_stages_to_explain(head: Head) -> None:
    head.looks[-1] = ("FAILED", "last words\n", FAILED)
    assert job_api.run_job(["filter"], {}, head.address, FAST) == 1


@pytest.mark.parametrize(
    ("status", "message"),
    [("STOPPED", "Job was intentionally stopped."), ("FAILED", "Unexpected error: the job supervisor actor died")],
)
def test_a_job_that_ray_ended_is_an_error_with_its_reason(head: Head, status: str, message: str) -> None:
    head.looks[-1] = (status, "", message)
    with pytest.raises(job_api.JobApiError, match=f"ended as {status}: {message}"):
        job_api.run_job(["filter"], {}, head.address, FAST)


def test_the_token_is_shown(head: Head, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "hush")
    job_api.run_job(["filter"], {}, head.address, FAST)
    assert head.tokens == {"Bearer hush"}


def test_a_head_that_is_away_for_a_moment_is_asked_again(head: Head) -> None:
    head.unavailable = 3
    assert job_api.run_job(["filter"], {}, head.address, FAST) == 0


def test_a_head_that_stays_away_is_reported(head: Head) -> None:
    head.unavailable = 10_000
    with pytest.raises(job_api.JobApiError, match="answers 503: no agent"):
        job_api.run_job(["filter"], {}, head.address, FAST)
    with pytest.raises(job_api.JobApiError, match="cannot be reached"):
        job_api.run_job(["filter"], {}, "http://127.0.0.1:9", FAST)


def test_a_cancelled_component_stops_its_job(head: Head) -> None:
    head.looks = [("RUNNING", "at work\n", "")]
    script = "import sys; from ray_jobs.launch import job_api; job_api.run_job(['filter'], {}, sys.argv[1])"
    command = [sys.executable, "-c", script, head.address]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "at work\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(120) == 128 + signal.SIGTERM
    assert head.requests[-1] == f"POST /api/jobs/{JOB}/stop"


def test_a_component_that_waits_for_its_head_is_cancelled_at_once(head: Head) -> None:
    head.looks = [("RUNNING", "at work\n", "")]
    script = (
        "import sys; from ray_jobs.launch.job_api import Timing, run_job; "
        "run_job(['filter'], {}, sys.argv[1], Timing(poll=0.05, patience=600.0))"
    )
    command = [sys.executable, "-c", script, head.address]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "at work\n"
        head.unavailable = 10_000
        while head.unavailable > 9_990:
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 128 + signal.SIGTERM
    assert head.requests[-1] == f"POST /api/jobs/{JOB}/stop"


def test_an_http_address_means_the_job_api(head: Head, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    root = storage.from_path(tmp_path)
    crawl = {"queries": f"{root}/queries.txt", "endpoint": "http://site.invalid/search"}
    experiment = config.parse({"name": "demo", "storage": root, "crawl": crawl})
    written = manifest.Stage(experiment.root, "filter", {}).commit([], counts={"train": 7})
    record = run_records.Record(stage="filter", state="succeeded", manifest=f"{written.uri}/manifest.json")
    head.before_end = lambda: run_records.write(experiment, "r", record)
    monkeypatch.setenv("RAY_ADDRESS", head.address)
    monkeypatch.setattr(job_api, "Timing", lambda: FAST)
    told = {"MLFLOW_RUN_ID": "abc", "AWS_SECRET_ACCESS_KEY": "hush"}
    assert launch.launch("filter", experiment, "r", [], told).counts == {"train": 7}
    (body,) = head.bodies
    assert body["entrypoint"].startswith("env MLFLOW_RUN_ID=abc python -m ray_jobs filter --experiment file://")
    assert "hush" not in str(body), "the head has the credentials"
    failed = run_records.Record(stage="filter", state="failed", error="part 7 is truncated; crawl again")
    head.before_end = lambda: run_records.write(experiment, "r", failed)
    head.at, head.looks[-1] = -1, ("FAILED", "", FAILED)
    with pytest.raises(launch.JobError, match="part 7 is truncated"):
        launch.launch("filter", experiment, "r", [])
