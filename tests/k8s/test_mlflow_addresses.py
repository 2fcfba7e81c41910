"""The names under which MLflow's server answers: the container's own script, with the real server on loopback."""

import http.client
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from free_ports import free_port
from manifests import named, plain

SERVICE_IP = "10.96.7.7"
PUBLIC = "https://mlflow.example.org"


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The server's port. What belongs to the cluster is left out: users, PostgreSQL, the object store."""
    number = free_port()
    folder = tmp_path_factory.mktemp("mlflow")
    container = named(plain(), "Deployment")["mlflow"]["spec"]["template"]["spec"]["containers"][0]
    (script,) = container["args"]
    for old, new in [
        ("--app-name=basic-auth ", ""),
        ("--host=0.0.0.0 --port=5000 --workers=2", f"--host=127.0.0.1 --port={number} --workers=1"),
        ("s3://mlflow", f"file://{folder}/artifacts"),
    ]:
        assert old in script
        script = script.replace(old, new)
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "MLFLOW_BACKEND_STORE_URI": f"sqlite:///{folder}/mlflow.db",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_PUBLIC_URL": PUBLIC,
        "MLFLOW_SERVICE_HOST": SERVICE_IP,
    }
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(
            [*container["command"], script], env=environment, stdout=log, stderr=log, start_new_session=True
        )
    try:
        until = time.monotonic() + 100
        while ask(number, "localhost", path="/health") != 200:
            assert server.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < until, (folder / "log").read_text()
            time.sleep(0.2)
        yield number
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def ask(port: int, host: str, origin: str | None = None, path: str = "/ajax-api/2.0/mlflow/experiments/search") -> int:
    """The status of an answer, as a browser or a program asks; 0 if there is none."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    headers = {"Host": host, "Content-Type": "application/json"} | ({"Origin": origin} if origin else {})
    try:
        if path == "/health":
            connection.request("GET", path, headers=headers)
        else:
            connection.request("POST", path, body='{"max_results": 1}', headers=headers)
        return connection.getresponse().status
    except OSError:
        return 0
    finally:
        connection.close()


@pytest.mark.long
def test_every_name_it_is_reached_by_is_answered_and_no_other(port: int) -> None:
    names = ["mlflow", "mlflow.wukong", "mlflow.wukong.svc", "mlflow.wukong.svc.cluster.local", SERVICE_IP]
    ours = [*names, *(f"{name}:5000" for name in names), "mlflow.example.org"]
    forwarded = ["localhost", "localhost:5000", "127.0.0.1:5000", "127.0.0.1:18080"]
    assert {name: ask(port, name) for name in [*ours, *forwarded]} == dict.fromkeys([*ours, *forwarded], 200)
    foreign = ["evil.example", "mlflow.example.org.evil.example", "10.96.7.8:5000", "notlocalhost:5000", "mlflow:80"]
    assert {name: ask(port, name) for name in foreign} == dict.fromkeys(foreign, 403)
    assert ask(port, "10.244.0.9:5000", path="/health") == 200, "the kubelet asks by the pod's address"
    # A page sends its origin with what it asks.
    assert ask(port, "mlflow.example.org", origin=PUBLIC) == 200
    assert ask(port, "localhost:5000", origin="http://localhost:5000") == 200
    assert ask(port, "mlflow.example.org", origin="https://evil.example") == 403
