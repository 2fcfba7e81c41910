"""The register component: what it hands on, and what its evaluation of a champion leaves."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from components import stage as components
from wukong import config, model_registry, places, run_records, storage, tracking
from wukong.manifest import Manifest, Stage


@contextmanager
def opened(*_: Any, **__: Any) -> Iterator[str]:
    yield "0" * 32


def test_a_champion_is_evaluated_as_the_stage_does_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The component's way to evaluate finds an evaluation that is there, and files it beside the run's own."""
    crawl = {"queries": "file:///q", "endpoint": "http://site.test"}
    experiment = config.parse({"name": "x", "storage": storage.from_path(tmp_path), "crawl": crawl})
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

    def register(
        given: config.Experiment, _id: str, model: Manifest, evaluated: Manifest, evaluate: Any
    ) -> dict[str, float]:
        changed, parents = places.rematch(given, evaluated, model)
        found.append(evaluate(changed, "first", parents))
        return {"version": 1.0}

    monkeypatch.setattr(tracking, "stage_run", opened)
    monkeypatch.setattr(tracking, "complete_run", lambda *_: None)
    monkeypatch.setattr(model_registry, "register", register)
    outcome = components.register_model(uri, "first", str(tmp_path / "finetune"), str(tmp_path / "evaluate"))
    assert (outcome, found) == ({"version": 1.0}, [made["evaluate"]])
    record = run_records.read(experiment, "first", "champion")
    assert record is not None and record.reused and record.manifest == f"{made['evaluate'].uri}/manifest.json"
    assert run_records.read(experiment, "first", "evaluate") is None, "that is the run's own"
