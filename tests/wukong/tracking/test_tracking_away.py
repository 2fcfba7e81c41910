"""Stages go on while a real MLflow server is killed and started again, or never answers."""

import logging
import socket
import threading
import time
from pathlib import Path

import pytest
from mlflow_server import MlflowServer

from wukong.config import documents
from wukong.config.experiment import Experiment
from wukong.errors import StorageError
from wukong.store import patience, storage
from wukong.store.manifest import Manifest, Stage
from wukong.tracking import availability, mlflow_runs, run_links, stage_results, training_metrics

mlflow = pytest.importorskip("mlflow")
pytestmark = pytest.mark.long


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """The waits of this process are short."""
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)
    for module in (mlflow_runs, run_links, stage_results):
        monkeypatch.setattr(module, "AT_START", 0.5)
    for module in (mlflow_runs, stage_results):
        monkeypatch.setattr(module, "AT_END", 0.5)
    monkeypatch.setattr(training_metrics, "_unsent", [])


@pytest.fixture
def experiment(tmp_path: Path) -> Experiment:
    crawl = {"queries": "file:///q", "endpoint": "http://site.test"}
    return documents.parse({"name": "away", "storage": storage.from_path(tmp_path / "data"), "crawl": crawl})


def trained(experiment: Experiment) -> Manifest:
    stage = Stage(experiment.root, "pretrain", {"seed": 1}, [])
    history = [{"epoch": epoch, "loss": 1 / epoch, "temperature": 0.5} for epoch in (1, 2, 3, 4)]
    storage.write_json(stage.path("history.json"), {"pairs": 7, "history": history})
    return stage.commit([stage.describe("history.json")], counts={"pairs": 7}, metrics={"loss": 0.25})


@pytest.mark.usefixtures("settings")
def test_a_server_killed_during_a_stage_gets_its_metrics_later(
    mlflow_server: MlflowServer,
    experiment: Experiment,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server.address)
    client = mlflow.MlflowClient()
    with caplog.at_level(logging.WARNING), mlflow_runs.stage_run(experiment, "first", "pretrain") as run_id:
        assert run_id
        monkeypatch.setenv("MLFLOW_RUN_ID", run_id)
        training_metrics.keep_metrics({"pretrain/epoch/loss": 1.0, "speed": 7.0}, 1)
        training_metrics.send_metrics()
        with mlflow_runs.stage_run(experiment, "first", "evaluate") as other:
            mlflow_server.kill()
            stage_results.log_stage(other, trained(experiment))
        assert "results of the pretrain stage are left out" in caplog.text
        assert "the end of evaluate is left out" in caplog.text

        began = time.monotonic()
        training_metrics.keep_metrics({"pretrain/epoch/loss": 1 / 2, "speed": 8.0}, 2)
        training_metrics.send_metrics()
        assert time.monotonic() - began < 5, "training does not wait"
        assert "metrics are kept for later, 1 sets so far" in caplog.text
        assert run_links.pages(experiment, "first") is None
        mlflow_runs.log_page(experiment, "first", "<p>", "report.html")
        with pytest.raises(ZeroDivisionError), mlflow_runs.stage_run(experiment, "first", "filter") as untracked:
            assert untracked is None
            raise ZeroDivisionError

        monkeypatch.setenv(patience.VARIABLE, "300")
        threading.Timer(1.0, mlflow_server.start).start()
        with mlflow_runs.stage_run(experiment, "first", "register", needed=True) as waited:
            assert waited

        training_metrics.keep_metrics({"pretrain/epoch/loss": 1 / 3, "speed": 9.0}, 3)
        training_metrics.send_metrics()
        speed = client.get_metric_history(run_id, "speed")
        assert [(entry.step, entry.value) for entry in speed] == [(1, 7.0), (2, 8.0), (3, 9.0)]
        stage_results.log_stage(run_id, trained(experiment))  # the worker could not send its last epoch
    history = client.get_metric_history(run_id, "pretrain/epoch/loss")
    assert [(entry.step, entry.value) for entry in history] == [(1, 1.0), (2, 1 / 2), (3, 1 / 3), (4, 1 / 4)]
    mlflow_runs.complete_run(experiment, "first", {"recall": 0.5})
    found = client.search_runs([client.get_experiment_by_name("away").experiment_id])
    assert {run.info.run_name: run.info.status for run in found} == dict.fromkeys(
        ("first", "pretrain", "evaluate", "register"), "FINISHED"
    )


@pytest.mark.usefixtures("settings")
def test_on_a_cluster_a_stage_waits_for_a_server_that_is_replaced(
    mlflow_server: MlflowServer, experiment: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server.address)
    mlflow_server.kill()
    with mlflow_runs.stage_run(experiment, "replaced", "crawl") as untracked:
        assert untracked is None
    monkeypatch.setenv("WUKONG_CLUSTER", "wukong")
    threading.Timer(1.0, mlflow_server.start).start()
    with mlflow_runs.stage_run(experiment, "replaced", "filter") as run_id:
        assert run_id


@pytest.mark.usefixtures("settings")
@pytest.mark.parametrize("hangs", [False, True])
def test_a_server_that_never_answers_holds_a_stage_for_seconds(
    experiment: Experiment,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    hangs: bool,
) -> None:
    monkeypatch.setattr(availability, "_PROBE_SECONDS", 0.5)
    monkeypatch.setenv(patience.VARIABLE, "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    listening = socket.create_server(("127.0.0.1", 0))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{listening.getsockname()[1]}")
    if not hangs:
        listening.close()
    began = time.monotonic()
    try:
        with mlflow_runs.stage_run(experiment, "first", "crawl") as run_id:
            assert run_id is None
        assert "the crawl stage is not tracked" in caplog.text
        needed = mlflow_runs.stage_run(experiment, "first", "register", needed=True)
        with (
            pytest.raises(
                StorageError, match=r"MLflow is away: http.* does not answer; so it was for \d+ s .*`wukong up`"
            ),
            needed,
        ):
            pytest.fail("it began")
    finally:
        listening.close()
    assert time.monotonic() - began < 30
