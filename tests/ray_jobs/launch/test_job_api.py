"""The launcher against a played job API of Ray, with the answers that Ray 2.60 gives."""

import asyncio
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from aiohttp import web

from ray_jobs import launch
from ray_jobs.launch import job_api
from wukong.config import documents
from wukong.runs import run_records
from wukong.runs.run_records import Record
from wukong.store import manifest, storage

FAST = job_api.Timing(poll=0.02, patience=0.5)
JOB = "raysubmit_ExDJ8mDYMV7RzUCF"
FAILED = (
    "Job entrypoint command failed with exit code 1, last available logs (truncated to 20,000 chars):\nlast words\n"
)


@dataclass
class Head:
    """A head whose job writes pieces of a log, one every ``pause`` seconds after it is first asked for, and ends."""

    pieces: Sequence[str] = ("one\n", "two\n")
    status: str = "SUCCEEDED"
    message: str = ""
    pause: float = 0.02
    drop_after: int | None = None
    """A connection that follows the log is broken after so many pieces; the next one is not."""
    unavailable: int = 0
    requests: list[str] = field(default_factory=list)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    tokens: set[str | None] = field(default_factory=set)
    before_end: Any = None
    address: str = ""
    began: float = 0.0
    log_bytes: int = 0
    followed: int = 0
    """Connections that follow the log, until the other end has taken the last piece and said so."""

    def written(self) -> int:
        """How many pieces of the log there are by now."""
        self.began = self.began or time.monotonic()
        return min(int((time.monotonic() - self.began) / self.pause), len(self.pieces))

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(f"{request.method} {request.path}")
        self.tokens.add(request.headers.get("Authorization"))
        if self.unavailable and request.method == "GET":
            self.unavailable -= 1
            return web.Response(status=503, text="no agent")
        match request.path.removeprefix("/api/jobs/"), request.method:
            case "", "POST":
                self.bodies.append(await request.json())
                return web.json_response({"job_id": JOB, "submission_id": JOB})
            case path, "POST" if path == f"{JOB}/stop":
                return web.json_response({"stopped": True})
            case path, "GET" if path == f"{JOB}/logs":
                text = "".join(self.pieces[: self.written()])
                self.log_bytes += len(text)
                return web.json_response({"logs": text})
            case path, "GET" if path == f"{JOB}/logs/tail":
                return await self._tail(request)
            case path, "GET" if path == JOB:
                # Not before a follower has all of it: how long that takes is the machine's, and no test's, to say.
                ended = self.written() == len(self.pieces) and not self.followed
                if ended and self.before_end:
                    self.before_end()
                shown = self.status if ended else "RUNNING"
                return web.json_response({"status": shown, "message": self.message if ended else ""})
        return web.Response(status=404, text=f"Job {request.path} does not exist")

    async def _tail(self, request: web.Request) -> web.StreamResponse:
        """As Ray does it: all of the log so far, then each piece as it is written; closed when the job has ended."""
        stream = web.WebSocketResponse()
        await stream.prepare(request)
        self.followed += 1
        try:
            await self._send_log(request, stream)
            await stream.close()
        finally:
            self.followed -= 1
        return stream

    async def _send_log(self, request: web.Request, stream: web.WebSocketResponse) -> None:
        sent, drop_after, self.drop_after = 0, self.drop_after, None
        while sent < len(self.pieces) and self.status:
            if sent == drop_after:
                assert request.transport is not None
                request.transport.abort()
                return
            if sent == self.written():
                await asyncio.sleep(self.pause / 4)
                continue
            self.log_bytes += len(self.pieces[sent])
            await stream.send_str(self.pieces[sent])
            sent += 1


@pytest.fixture
def head() -> Iterator[Head]:
    played, loop = Head(), asyncio.new_event_loop()

    async def start() -> web.AppRunner:
        application = web.Application()
        application.router.add_route("*", "/{path:.*}", played.answer)
        runner = web.AppRunner(application, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        played.address = f"http://127.0.0.1:{runner.addresses[0][1]}"
        return runner

    runner = loop.run_until_complete(start())
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    yield played
    asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(30)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(30)
    loop.close()


def test_the_driver_runs_on_the_head_and_its_log_comes_once(head: Head, capsys: pytest.CaptureFixture[str]) -> None:
    head.pieces = ("one\ntw", "o\n筛选", ": 2/2")
    assert job_api.run_job(["filter", "--run", "a b"], {"MLFLOW_RUN_ID": "abc"}, head.address, FAST) == 0
    assert capsys.readouterr().out == "one\ntwo\n筛选: 2/2"
    assert head.bodies == [{"entrypoint": "env MLFLOW_RUN_ID=abc python -m ray_jobs filter --run 'a b'"}]


def test_each_line_of_a_long_log_is_sent_once(head: Head, capsys: pytest.CaptureFixture[str]) -> None:
    head.pieces, head.pause = [f"{number:06d} {'x' * 92}\n" * 10 for number in range(200)], 0.01
    assert job_api.run_job(["filter"], {}, head.address, FAST) == 0
    assert capsys.readouterr().out == "".join(head.pieces)
    assert head.log_bytes == 200 * 10 * 100


def test_a_log_whose_connection_broke_goes_on_where_it_was(head: Head, capsys: pytest.CaptureFixture[str]) -> None:
    head.pieces, head.drop_after = ["one\ntw", "o\n筛选", ": 2/2\n", "three\n", "four"], 2
    assert job_api.run_job(["filter"], {}, head.address, FAST) == 0
    assert capsys.readouterr().out == "".join(head.pieces)
    assert head.requests.count(f"GET /api/jobs/{JOB}/logs/tail") == 2


def test_a_job_that_says_nothing_for_long_is_not_asked_for_its_log_again(
    head: Head, capsys: pytest.CaptureFixture[str]
) -> None:
    head.pause = 0.5
    timing = replace(FAST, silence=0.05)
    assert job_api.run_job(["filter"], {}, head.address, timing) == 0
    assert capsys.readouterr().out == "one\ntwo\n"
    assert head.requests.count(f"GET /api/jobs/{JOB}/logs/tail") == 1
    assert head.requests.count(f"GET /api/jobs/{JOB}") > 3


def test_a_line_without_an_end_does_not_fill_the_memory(head: Head, capsys: pytest.CaptureFixture[str]) -> None:
    head.pieces, head.pause = ["x" * 20_000] * 40, 0.002
    held = []
    write = job_api._Output.write

    def watched(self: job_api._Output, text: str) -> None:
        write(self, text)
        held.append(len(self._rest))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(job_api._Output, "write", watched)
        assert job_api.run_job(["filter"], {}, head.address, FAST) == 0
    assert capsys.readouterr().out == "x" * 800_000
    assert max(held) <= 1 << 16


def test_a_failed_command_is_the_stages_to_explain(head: Head) -> None:
    head.status, head.message = "FAILED", FAILED
    assert job_api.run_job(["filter"], {}, head.address, FAST) == 1


@pytest.mark.parametrize(
    ("status", "message"),
    [("STOPPED", "Job was intentionally stopped."), ("FAILED", "Unexpected error: the job supervisor actor died")],
)
def test_a_job_that_ray_ended_is_an_error_with_its_reason(head: Head, status: str, message: str) -> None:
    head.status, head.message = status, message
    with pytest.raises(job_api.JobApiError, match=f"ended as {status}: {message}"):
        job_api.run_job(["filter"], {}, head.address, FAST)


def test_the_token_is_shown(head: Head, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "hush")
    job_api.run_job(["filter"], {}, head.address, FAST)
    assert head.tokens == {"Bearer hush"}


def test_a_head_that_is_away_for_a_moment_is_asked_again(head: Head) -> None:
    head.unavailable = 4
    assert job_api.run_job(["filter"], {}, head.address, FAST) == 0


def test_a_head_that_stays_away_is_reported(head: Head) -> None:
    head.unavailable = 10_000
    with pytest.raises(job_api.JobApiError, match="answers 503: no agent"):
        job_api.run_job(["filter"], {}, head.address, FAST)
    with pytest.raises(job_api.JobApiError, match="cannot be reached"):
        job_api.run_job(["filter"], {}, "http://127.0.0.1:9", FAST)


def test_a_cancelled_component_stops_its_job(head: Head) -> None:
    head.pieces, head.pause = ["at work\n", *[""] * 10_000], 0.1
    script = "import sys; from ray_jobs.launch import job_api; job_api.run_job(['filter'], {}, sys.argv[1])"
    command = [sys.executable, "-c", script, head.address]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "at work\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(120) == 128 + signal.SIGTERM
    assert head.requests[-1] == f"POST /api/jobs/{JOB}/stop"


def test_a_component_that_waits_for_its_head_is_cancelled_at_once(head: Head) -> None:
    head.pieces, head.pause = ["at work\n", *[""] * 10_000], 0.1
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
    experiment = documents.parse({"name": "demo", "storage": root, "crawl": crawl})
    written = manifest.Stage(experiment.root, "filter", {}).commit([], counts={"train": 7})
    record = Record(stage="filter", state="succeeded", manifest=f"{written.uri}/manifest.json")
    head.before_end = lambda: run_records.write(experiment, "r", record)
    monkeypatch.setenv("RAY_ADDRESS", head.address)
    monkeypatch.setattr(job_api, "Timing", lambda: FAST)
    told = {"MLFLOW_RUN_ID": "abc", "AWS_SECRET_ACCESS_KEY": "hush"}
    assert launch.launch("filter", experiment, "r", [], told).counts == {"train": 7}
    (body,) = head.bodies
    assert body["entrypoint"].startswith("env MLFLOW_RUN_ID=abc python -m ray_jobs filter --experiment file://")
    assert "hush" not in str(body), "the head has the credentials"
    failed = Record(stage="filter", state="failed", error="part 7 is truncated; crawl again")
    head.before_end = lambda: run_records.write(experiment, "r", failed)
    head.status, head.message = "FAILED", FAILED
    with pytest.raises(launch.JobError, match="part 7 is truncated"):
        launch.launch("filter", experiment, "r", [])
