"""What a run has cost is stored beside its records and logged, and what cannot be found out stops nothing."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from components import cost
from components import stage as components
from wukong.config import documents, stored
from wukong.config.experiment import Experiment
from wukong.errors import StorageError
from wukong.runs import run_costs, run_records
from wukong.runs.run_costs import Holding, Sheet
from wukong.runs.run_records import Record
from wukong.stages import run_paths
from wukong.store import storage
from wukong.store.manifest import Manifest, Stage


@pytest.fixture
def logged(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, float], dict[str, str]]]:
    """What is logged to MLflow: the run's ID, metrics, tags."""
    sent: list[tuple[str, dict[str, float], dict[str, str]]] = []

    class Server:
        def log(self, run_id: str, *, metrics: Any = (), tags: Any = None) -> None:
            sent.append((run_id, {metric.key: metric.value for metric in metrics}, dict(tags)))

    monkeypatch.setattr("wukong.tracking.stage_results.Server", Server)
    monkeypatch.setattr("wukong.tracking.stage_results.unless_away", lambda send, *_: send())
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("WUKONG_CURRENCY", raising=False)
    monkeypatch.setenv("WUKONG_PRICES", "cpu=2")
    return sent


@pytest.fixture
def experiment(tmp_path: Path) -> Experiment:
    crawl = {"queries": "file:///q", "endpoint": "http://site.test"}
    return documents.parse({"name": "x", "storage": storage.from_path(tmp_path), "crawl": crawl})


def hold(experiment: Experiment, stage: str) -> None:
    held = Holding(key=stage, name="n", cores=2, memory=2**30, gpus=1, began=0, until=3600, ended=True, used=1800.0)
    run_costs.write(experiment, "r", stage, "ray-1", Sheet(source="ray", held=(held,), written={stage: 7}))


def document(experiment: Experiment) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(storage.read_bytes(run_paths.uri_of(experiment, "r", "cost.json")))
    return found


def test_a_stage_that_has_ended(experiment: Experiment, logged: list[Any]) -> None:
    hold(experiment, "crawl")
    hold(experiment, "filter")
    run_records.write(experiment, "r", Record(stage="filter", state="succeeded"))
    cost.note_stage(experiment, "r", "filter", "id-of-filter")
    ((run_id, metrics, tags),) = logged
    assert run_id == "id-of-filter"
    assert metrics == {
        "filter/cost/core_hours": 2.0,
        "filter/cost/gib_hours": 1.0,
        "filter/cost/gpu_hours": 1.0,
        "filter/cost/idle_share": 0.75,
        "filter/cost/bytes_written": 7.0,
        "filter/cost/money": 4.0,
        "filter/cost/money_a_month": 0.0,
    }
    said = "This run held 2.0 core-hours and 1.0 GPU-hours, 75 % idle. The run costs 4.00, what it stores 0.00 a month."
    assert tags == {"wukong.cost": said}
    assert document(experiment)["run"]["money"] == 8.0, "with the stage before it"
    cost.note_stage(experiment, "r", "filter", None)
    assert len(logged) == 1, "a run without MLflow"


@pytest.mark.parametrize("fails", [False, True])
def test_every_stage_notes_its_cost_whether_or_not_it_fails(
    experiment: Experiment, logged: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    made = Stage(experiment.root, "crawl", {}).commit([])

    def launch(stage: str, *_: object) -> Manifest:
        hold(experiment, stage)
        if fails:
            raise StorageError("no such bucket")
        run_records.write(experiment, "r", Record(stage=stage, state="succeeded", manifest=f"{made.uri}/manifest.json"))
        return made

    monkeypatch.setattr("components.stage.launch", launch)
    before = made.digest, storage.read_bytes(f"{made.uri}/manifest.json")
    uri = stored.store(experiment)
    if fails:
        with pytest.raises(StorageError, match="no such bucket"):
            components.run_stage("crawl", uri, "r", [], str(tmp_path / "artifact"))
    else:
        components.run_stage("crawl", uri, "r", [], str(tmp_path / "artifact"))
        assert (made.digest, storage.read_bytes(f"{made.uri}/manifest.json")) == before
    found = document(experiment)["stages"]["crawl"]
    assert (found["core_hours"], found["bytes_written"]) == (2.0, None if fails else 7)


def test_wrong_prices_and_unreadable_sheets_stop_nothing(
    experiment: Experiment, logged: list[Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    hold(experiment, "crawl")
    with caplog.at_level(logging.WARNING):
        monkeypatch.setenv("WUKONG_PRICES", "cpu=cheap")
        assert cost.note_run(experiment, "r") == {}
        monkeypatch.delenv("WUKONG_PRICES")
        storage.write_json(run_paths.uri_of(experiment, "r", "held/crawl/ray-2.json"), {"source": "of a later version"})
        cost.note_stage(experiment, "r", "crawl", "id")
    assert not logged
    assert ["WUKONG_PRICES" in caplog.messages[0], "source" in caplog.messages[1]] == [True, True]
