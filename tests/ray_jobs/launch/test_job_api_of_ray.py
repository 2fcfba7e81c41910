"""The launcher against the job API of a real Ray head."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from free_ports import free_port

from ray_jobs.launch import job_api

ROOT = Path(__file__).parents[3]
LINES = 3000
JOB = f"""
import time
for number in range({LINES}):
    print(f"{{number:06d}} 筛选", flush=True)
    if number % 1000 == 999:
        time.sleep(3)
print("the end", end="")
"""


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of the dashboard of a Ray head."""
    folder = tmp_path_factory.mktemp("ray")
    own, client, agent, grpc, told, dashboard = (free_port() for _ in range(6))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | {
        "PYTHONPATH": str(ROOT),
        "RAY_AUTH_MODE": "disabled",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # else Ray takes another address than loopback
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_memory_monitor_refresh_ms": "0",
    }
    command = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", "--node-ip-address=127.0.0.1"]
    command += [f"--port={own}", f"--ray-client-server-port={client}", f"--dashboard-agent-listen-port={agent}"]
    command += [f"--dashboard-agent-grpc-port={grpc}", f"--metrics-export-port={told}", "--dashboard-host=127.0.0.1"]
    command += [f"--dashboard-port={dashboard}", "--include-dashboard=true", "--num-cpus=2", "--disable-usage-stats"]
    command += ["--object-store-memory=100000000", f"--temp-dir=/tmp/ray-{own}"]
    with (folder / "log.txt").open("wb") as log:
        ray = subprocess.Popen(command, env=environment, cwd=folder, stdout=log, stderr=log, start_new_session=True)
    try:
        end = time.monotonic() + 120
        while True:
            try:
                socket.create_connection(("127.0.0.1", dashboard), timeout=2).close()
                break
            except OSError:
                assert time.monotonic() < end and ray.poll() is None, (folder / "log.txt").read_text()
                time.sleep(0.5)
        yield f"http://127.0.0.1:{dashboard}"
    finally:
        ray.terminate()
        ray.wait(60)


@pytest.mark.long
def test_the_log_of_a_job_comes_whole_by_one_connection(head: str, capsys: pytest.CaptureFixture[str]) -> None:
    tails, connect = [], job_api.websocket.create_connection
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(job_api.websocket, "create_connection", lambda *a, **k: tails.append(a) or connect(*a, **k))
        ray = job_api._Head(head, job_api.Timing(patience=120.0))
        until = time.monotonic() + 120
        while True:  # the dashboard answers before it can start a job
            try:
                job = ray.submit(f"{sys.executable} -c '{JOB}'")
                break
            except job_api.JobApiError:
                assert time.monotonic() < until
                time.sleep(1)
        status, message = ray.follow(job)
    assert (status, len(tails)) == ("SUCCEEDED", 1), message
    written = capsys.readouterr().out
    assert written.endswith("".join(f"{number:06d} 筛选\n" for number in range(LINES)) + "the end")
    assert written.count("筛选\n") == LINES
    with pytest.raises(job_api.JobApiError, match="answers 404"):
        ray.follow("raysubmit_none")
