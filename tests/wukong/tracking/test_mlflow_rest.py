"""MLflow's REST API: with a real server, and MLflow's own client as the judge; with a server that plays errors."""

import base64
import http.server
import json
import math
import sys
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from requests import RequestException

from wukong.tracking import mlflow_rest
from wukong.tracking.mlflow_rest import MlflowError, Server


@pytest.fixture
def client(mlflow_address: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """MLflow's own client of the server that ``Server`` asks too."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_address)
    return pytest.importorskip("mlflow").MlflowClient()


@pytest.fixture
def run(client: Any) -> mlflow_rest.Run:
    """A new run."""
    server = Server()
    return server.create_run(server.experiment(f"rest-{uuid.uuid4().hex[:8]}"), "悟空", {"a.tag": "1"})


@pytest.mark.slow
def test_a_run_is_what_mlflows_client_reads(client: Any, run: mlflow_rest.Run) -> None:
    server = Server()
    server.log(run.run_id, metrics=[mlflow_rest.Metric("loss", 0.5, mlflow_rest.now(), 3)], tags={"b": "2"})
    server.log_inputs(run.run_id, {"crawl": ("s3://bucket/crawl", "d1" * 18)})
    server.end(run.run_id, "FAILED")
    found = client.get_run(run.run_id)
    assert (found.info.run_name, found.info.status, found.data.metrics) == ("悟空", "FAILED", {"loss": 0.5})
    assert {"a.tag": "1", "b": "2"}.items() <= found.data.tags.items()
    assert found.info.end_time >= found.info.start_time > 1.7e12
    (entry,) = found.inputs.dataset_inputs
    assert (entry.dataset.name, entry.dataset.digest) == ("crawl", "d1" * 18)
    assert json.loads(entry.dataset.source) == {"uri": "s3://bucket/crawl"}
    server.resume(run.run_id)
    ours = server.run(run.run_id)
    assert (ours.name, ours.status, ours.metrics, ours.tags["b"]) == ("悟空", "RUNNING", {"loss": 0.5}, "2")
    assert [entry.run_id for entry in server.search_runs(run.experiment_id, "tags.b = '2'")] == [run.run_id]
    assert server.search_runs(run.experiment_id, "tags.b = '3'") == []


@pytest.mark.slow
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_no_number_is_logged(client: Any, run: mlflow_rest.Run, value: float) -> None:
    Server().log(run.run_id, metrics=[mlflow_rest.Metric("loss", value, mlflow_rest.now(), 1)])
    (entry,) = client.get_metric_history(run.run_id, "loss")
    # The server's database has no infinite numbers: it keeps the largest.
    assert math.isnan(entry.value) if math.isnan(value) else entry.value == math.copysign(sys.float_info.max, value)
    (ours,) = Server().metric_history(run.run_id, "loss")
    assert (math.isnan(ours.value), ours.step) == (math.isnan(value), 1)


@pytest.mark.slow
def test_parameters_beyond_one_request_arrive(client: Any, run: mlflow_rest.Run) -> None:
    params = {f"p{number}": "x" * number for number in range(1, 2 * mlflow_rest.MOST_PARAMS + 2)}
    Server().log(run.run_id, params=params)
    Server().log(run.run_id, params=params)  # by a component that goes on after another
    assert client.get_run(run.run_id).data.params == params


@pytest.mark.slow
def test_a_file_is_logged_by_the_server_or_by_its_client(client: Any, run: mlflow_rest.Run, tmp_path: Path) -> None:
    Server().write_file(run, "by/server.txt", b"1")
    Server().write_file(replace(run, artifacts="s3://elsewhere/1"), "by/client.txt", b"2")
    assert sorted(Server().files(run)) == ["by/client.txt", "by/server.txt"]
    folder = Path(client.download_artifacts(run.run_id, "by", str(tmp_path)))
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == {"client.txt": b"2", "server.txt": b"1"}


class Played(http.server.BaseHTTPRequestHandler):
    """Answers each request with the next of ``answers``, and the last one for ever."""

    answers: list[tuple[int, Any]]
    seen: list[tuple[str, Mapping[str, str]]]

    def do_GET(self) -> None:
        status, value = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.seen.append((f"{self.command} {self.path}", dict(self.headers)))
        body = value.encode() if isinstance(value, str) else json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET  # noqa: N815 - names of the standard library

    def log_message(self, *_: Any) -> None:
        pass


FOUND = (200, {"experiment": {"experiment_id": "7"}})
MISSING = (404, {"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "no such experiment"})
EXISTS = (400, {"error_code": "RESOURCE_ALREADY_EXISTS", "message": "it exists"})

Play = Callable[..., list[tuple[str, Mapping[str, str]]]]


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Play]:
    """A function that says what the server answers, and returns the list in which requests will appear."""
    handler = type("Handler", (Played,), {"seen": []})
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0.001")
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    mlflow_rest._session.cache_clear()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server.server_address[1]}/below/")

        def begin(*answers: tuple[int, Any]) -> list[tuple[str, Mapping[str, str]]]:
            handler.answers = list(answers)
            return handler.seen

        yield begin
        server.shutdown()
    mlflow_rest._session.cache_clear()


def test_an_overloaded_server_is_asked_three_times(play: Play) -> None:
    seen = play((503, "busy"), (500, {"error_code": "INTERNAL_ERROR", "message": "inside"}), FOUND)
    assert Server().experiment("x") == "7"
    assert [request for request, _ in seen] == [
        "GET /below/api/2.0/mlflow/experiments/get-by-name?experiment_name=x"
    ] * 3
    play((503, "busy"))
    with pytest.raises(MlflowError, match=r"answers experiments/get-by-name with 503: busy") as busy:
        Server().experiment("x")
    assert busy.value.status == 503
    assert len(seen) == 6


def test_an_experiment_is_made_once_where_two_make_it(play: Play) -> None:
    seen = play(MISSING, EXISTS, FOUND)
    assert Server().experiment("x") == "7"
    assert [request.split()[0] for request, _ in seen] == ["GET", "POST", "GET"]


def test_a_page_instead_of_an_answer_is_an_error_with_its_beginning(play: Play) -> None:
    play((200, "<html>Sign in"))
    with pytest.raises(MlflowError, match="with 200: <html>Sign in"):
        Server().experiment("x")


@pytest.mark.parametrize(
    ("variables", "header"),
    [
        ({}, None),
        ({"USERNAME": "stages", "PASSWORD": "密"}, "Basic " + base64.b64encode("stages:密".encode()).decode()),
        ({"TOKEN": "t0ken"}, "Bearer t0ken"),
    ],
)
def test_credentials_are_those_of_mlflows_client(
    play: Play, monkeypatch: pytest.MonkeyPatch, variables: Mapping[str, str], header: str | None
) -> None:
    for name in ("USERNAME", "PASSWORD", "TOKEN"):
        monkeypatch.delenv(f"MLFLOW_TRACKING_{name}", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(f"MLFLOW_TRACKING_{name}", value)
    seen = play(FOUND)
    Server().experiment("x")
    ((_, headers),) = seen
    assert headers.get("Authorization") == header


def test_the_workspace_is_that_of_mlflows_client_unless_one_is_given(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = play(FOUND, FOUND, FOUND, FOUND)
    Server().experiment("x")
    monkeypatch.setenv("MLFLOW_WORKSPACE", "vision")
    for server in (Server(), Server("speech"), Server("")):
        server.experiment("x")
    assert [headers.get("X-MLFLOW-WORKSPACE") for _, headers in seen] == [None, "vision", "speech", None]


def test_a_server_that_cannot_be_reached_is_requests_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    mlflow_rest._session.cache_clear()
    with pytest.raises(RequestException):
        Server().experiment("x")
    mlflow_rest._session.cache_clear()
