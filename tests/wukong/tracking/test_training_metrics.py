"""Against servers on loopback: one that is slow, one that never answers, and one that refuses."""

import http.server
import json
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from wukong.tracking import availability, training_metrics
from wukong.tracking.mlflow_rest import MlflowError
from wukong.tracking.training_metrics import MetricSender


@pytest.fixture(autouse=True)
def settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_metrics, "_unsent", [])
    monkeypatch.setattr(availability, "_PROBE_SECONDS", 0.5)
    monkeypatch.setenv("MLFLOW_RUN_ID", "of-the-stage")


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., list[Any]]]:
    """Start a server that gives each request to log metrics this answer after a pause; return what it was sent."""
    servers = []

    def start(status: int, seconds: float) -> list[Any]:
        sent: list[Any] = []

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._answer(200, b"OK")

            def do_POST(self) -> None:
                sent.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                time.sleep(seconds)
                self._answer(status, b"{}")

            def _answer(self, status: int, body: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server.server_port}")
        return sent

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def add(sender: MetricSender, count: int) -> None:
    for step in range(1, count + 1):
        sender.add({"loss": 1 / step, "speed": float(step)}, step)


def test_a_slow_server_gets_each_metric_once_in_few_requests(serve: Callable[..., list[Any]]) -> None:
    sent = serve(200, 0.2)
    sender = MetricSender("pretrain")
    add(sender, 120)
    sender.finish(30.0)
    sender.close()
    logged = [(value["key"], value["step"], value["value"]) for body in sent for value in body["metrics"]]
    assert logged == [
        each for step in range(1, 121) for each in (("loss", step, 1 / step), ("speed", step, float(step)))
    ]
    assert len(sent) <= 4
    assert {body["run_id"] for body in sent} == {"of-the-stage"}


def test_the_end_waits_once_for_a_server_that_never_answers(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=100) as silent:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{silent.getsockname()[1]}")
        sender = MetricSender("pretrain")
        began = time.monotonic()
        with caplog.at_level(logging.WARNING):
            add(sender, 1000)
            sender.finish(0.8)
        sender.close()
        assert time.monotonic() - began < 3
    assert "1000 sets of metrics of pretrain are left out" in caplog.text


def test_what_mlflow_refuses_is_an_error(serve: Callable[..., list[Any]]) -> None:
    serve(403, 0.0)
    sender = MetricSender("pretrain")
    add(sender, 1)
    with pytest.raises(MlflowError):
        sender.finish(10.0)
    sender.close()


def test_without_a_run_nothing_is_sent(monkeypatch: pytest.MonkeyPatch, serve: Callable[..., list[Any]]) -> None:
    sent = serve(200, 0.0)
    monkeypatch.delenv("MLFLOW_RUN_ID")
    sender = MetricSender("pretrain")
    add(sender, 3)
    sender.finish(10.0)
    sender.close()
    assert (sent, training_metrics.unsent()) == ([], 0)
