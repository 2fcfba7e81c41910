"""The register component: what it hands on, and what its evaluation of a champion leaves."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from components import stage as components
from wukong.config import documents
from wukong.config.experiment import Experiment
from wukong.registry import aliases
from wukong.runs import run_records
from wukong.stages import places
from wukong.store import storage
from wukong.store.manifest import Manifest, Stage
from wukong.tracking import mlflow_runs


@contextmanager
def opened(*_: Any, **__: Any) -> Iterator[str]:
    yield "0" * 32


def test_a_champion_is_evaluated_as_the_stage_does_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The component's way to evaluate finds an evaluation that is there, and files it beside the run's own."""
    crawl = {"queries": "file:///q", "endpoint": "http://site.test"}
    experiment = documents.parse({"name": "x", "storage": storage.from_path(tmp_path), "crawl": crawl})
    uri = storage.from_path(tmp_path / "experiment.json")
    storage.write_json(uri, experiment.model_dump(mode="json"))
    made = {"filter": places.filtering(experiment, Stage(experiment.root, "crawl", {}).commit([])).commit([])}
    computed = places.features(experiment, made["filter"]).commit([])
    for name in ("pretrain", "finetune"):
        made[name] = places.training(name, experiment, made["filter"], computed, made.get("pretrain")).commit([])
    place = places.evaluation(
        experiment, made, [places.features(experiment, made["filter"], pairs="holdouts").commit([])]
    )
    storage.write_json(place.path("evaluation.json"), {"tasks": []})
    made["evaluate"] = place.commit([place.describe("evaluation.json")])
    for name, each in made.items():
        components.save_artifact(each, str(tmp_path / name))
    found: list[Manifest] = []

    def register(given: Experiment, _id: str, model: Manifest, evaluated: Manifest, evaluate: Any) -> dict[str, float]:
        changed, parents = places.rematch(given, evaluated, model)
        found.append(evaluate(changed, "first", parents))
        return {"version": 1.0}

    monkeypatch.setattr(mlflow_runs, "stage_run", opened)
    monkeypatch.setattr(mlflow_runs, "complete_run", lambda *_: None)
    monkeypatch.setattr(aliases, "register", register)
    outcome = components.register_model(uri, "first", str(tmp_path / "finetune"), str(tmp_path / "evaluate"))
    assert (outcome, found) == ({"version": 1.0}, [made["evaluate"]])
    record = run_records.read(experiment, "first", "champion")
    assert record is not None and record.reused and record.manifest == f"{made['evaluate'].uri}/manifest.json"
    assert run_records.read(experiment, "first", "evaluate") is None, "that is the run's own"
