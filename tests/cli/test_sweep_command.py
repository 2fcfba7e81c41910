"""``wukong sweep`` with a real MLflow server and trials that train nothing; ``benchmarks/sweep`` trains real ones."""

import json
import math
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import measured
import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from cli import sweep as command
from cli.main import app
from wukong.registry import choices
from wukong.registry.sweep import Trial
from wukong.runs import run_records
from wukong.runs.run_records import Record
from wukong.store import storage
from wukong.store.manifest import Manifest, Stage
from wukong.tracking import mlflow_runs

pytestmark = pytest.mark.slow
HARD = np.random.default_rng(0).random(400)


class Trained:
    """Stands for the processes that train: more epochs give more right answers; ``killed`` ends it early."""

    runs: ClassVar[list[str]] = []
    made: ClassVar[dict[str, Manifest]] = {}
    killed = 100

    def __init__(self, *_: object) -> None:
        pass

    def work(self, trials: Sequence[Trial], _filtered: Manifest) -> Iterator[tuple[Trial, dict[str, str]]]:
        for trial in trials:
            if len(self.runs) == self.killed:
                raise KeyboardInterrupt
            self.runs.append(trial.run)
            if trial.experiment.pretrain.epochs == 13:
                yield trial, {"run": trial.run, "manifest": "", "error": "no memory"}
                continue
            hits = 0.2 + trial.experiment.pretrain.epochs / 100 + trial.experiment.seed / 50 > HARD
            model = Stage(trial.experiment.root, "finetune", {"run": trial.run}).commit([])
            made = measured.evaluation(trial.experiment.root, [measured.searched("x", hits)], [model], key=trial.run)
            self.made[trial.run] = made
            record = Record(stage="evaluate", state="succeeded", manifest=f"{made.uri}/manifest.json")
            run_records.write(trial.experiment, trial.run, record)
            mlflow_runs.complete_run(trial.experiment, trial.run, made.metrics)
            yield trial, {"run": trial.run, "manifest": f"{made.uri}/manifest.json", "error": ""}

    def close(self) -> None:
        pass


@pytest.fixture
def sweep(tmp_path: Path, mlflow_address: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_address)
    monkeypatch.setenv("WUKONG_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(command, "_Workers", Trained)
    monkeypatch.setattr(command, "_data", lambda *_: Stage(storage.from_path(tmp_path), "filter", {}).commit([]))
    monkeypatch.setattr(command, "_finished", lambda trial, _: Trained.made.get(trial.run))
    monkeypatch.setattr(Trained, "runs", [])
    monkeypatch.setattr(Trained, "made", {})
    crawl = {"queries": "file:///q", "endpoint": "http://site.test"}
    name = f"sw-{uuid.uuid4().hex[:8]}"
    value = {"name": name, "storage": storage.from_path(tmp_path / "data"), "crawl": crawl}
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(value), encoding="utf-8")

    def run(*epochs: int, seeds: Sequence[int] = ()) -> Any:
        file = tmp_path / "sweep.yaml"
        parameters = ({"pretrain.epochs": list(epochs)} if epochs else {}) | ({"seed": [*seeds]} if seeds else {})
        settings = {"name": name, "experiment": "x.yaml", "parameters": parameters}
        file.write_text(yaml.safe_dump(settings), encoding="utf-8")
        return CliRunner().invoke(app, ["sweep", str(file), "--html", str(tmp_path / "page.html")])

    run.name = name  # type: ignore[attr-defined]
    return run


def test_a_killed_sweep_goes_on_and_ends_in_one_page(
    sweep: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    client = MlflowClient()
    monkeypatch.setattr(Trained, "killed", 2)
    assert sweep(3, 30, 5).exit_code != 0
    found = client.get_experiment_by_name(sweep.name)
    assert found is not None
    states = {run.info.run_name: run.info.status for run in client.search_runs([found.experiment_id])}
    assert states[sweep.name] == "KILLED" and sorted(states.values()) == ["FINISHED", "FINISHED", "KILLED", "KILLED"]
    monkeypatch.setattr(Trained, "killed", 100)
    ended = sweep(3, 30, 5)
    assert ended.exit_code == 0, ended.output
    assert len(Trained.runs) == len(set(Trained.runs)) == 3, "no configuration ran twice"
    best = Trained.runs[1]
    assert f"Best: {best} with pretrain.epochs = 30" in ended.output and f"Baseline: {best}" in ended.output
    (parent,) = client.search_runs([found.experiment_id], "tags.`wukong.sweep` != ''")
    trials = client.search_runs([found.experiment_id], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'")
    assert {run.info.run_name for run in trials} == set(Trained.runs)
    assert {run.info.status for run in (parent, *trials)} == {"FINISHED"}
    assert parent.data.tags["wukong.best"] == best and parent.data.tags["wukong.best.pretrain.epochs"] == "30"
    document = json.loads(Path(client.download_artifacts(parent.info.run_id, "comparison.json")).read_text("utf-8"))
    assert document["parameters"] == {"pretrain.epochs": ["30", "5", "3"]}, "the best first"
    verdicts = [entry["verdict"] for entry in document["sets"][0]["results"]["mean_recall"]]
    assert verdicts == ["baseline", "worse", "worse"]
    assert best in (tmp_path / "page.html").read_text("utf-8")
    # The gate counts each trial, those before the sweep was killed too.
    root = storage.join(storage.from_path(tmp_path / "data"), sweep.name)
    model = Stage(root, "finetune", {"run": best}).finished()
    assert model is not None
    assert choices.of_model(root, model) == [
        choices.Choice(by=f"the sweep {sweep.name}", of=3, metric="retrieval/holdouts/mean_recall")
    ]


def test_a_trial_whose_metric_is_not_a_number_has_failed(sweep: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    searched = measured.searched

    def broken(task: str, hits: Any) -> Any:
        found = searched(task, hits)
        if hits.mean() < 0.25:
            found.results["mean_recall"] = replace(found.results["mean_recall"], value=math.nan)  # type: ignore[index]
        return found

    monkeypatch.setattr(measured, "searched", broken)
    ended = sweep(2, 20, 30)
    assert "1 of 3 trials failed" in str(ended.exception) and "is nan, which is no result" in str(ended.exception)
    assert f"Best: {Trained.runs[2]} with pretrain.epochs = 30" in ended.output


def test_a_trial_that_fails_does_not_end_the_others(sweep: Any) -> None:
    ended = sweep(13, 4, 6)
    assert len(Trained.runs) == 3 and "1 of 3 trials failed" in str(ended.exception)
    assert "no memory" in str(ended.exception) and "Best:" in ended.output
    assert "another sweep" in str(sweep(1, 2).exception), "the name belongs to the first sweep"


@pytest.mark.parametrize("epochs", [(), (3, 30)])
def test_a_sweep_over_seeds_ends_in_a_table_over_seeds(sweep: Any, tmp_path: Path, epochs: Sequence[int]) -> None:
    from mlflow import MlflowClient

    ended = sweep(*epochs, seeds=(0, 1, 2))
    assert ended.exit_code == 0, ended.output
    assert len(Trained.runs) == 3 * max(len(epochs), 1)
    of_best = [0.2 + (epochs[-1] if epochs else 20) / 100 + seed / 50 for seed in range(3)]
    expected = [float((share > HARD).mean()) for share in of_best]
    mean, spread = 100 * np.mean(expected), 100 * np.std(expected, ddof=1)
    assert "Over seeds 0, 1, 2" in ended.output and f"{mean:.1f}" in ended.output and f"{spread:.2f}" in ended.output
    said = "Best: pretrain.epochs = 30: " if epochs else ""
    assert f"{said}eval/retrieval/holdouts/mean_recall {mean / 100:.4f}, the mean of 3 seeds" in ended.output
    client = MlflowClient()
    found = client.get_experiment_by_name(sweep.name)
    assert found is not None
    (parent,) = client.search_runs([found.experiment_id], "tags.`wukong.sweep` != ''")
    document = json.loads(Path(client.download_artifacts(parent.info.run_id, "comparison.json")).read_text("utf-8"))
    assert len(document["configurations"]) == max(len(epochs), 1)
    first, *others = document["sets"][0]["over_seeds"]["mean_recall"]
    assert (first["value"], first["sd"]) == pytest.approx((np.mean(expected), np.std(expected, ddof=1)))
    assert [each["verdict"] for each in others] == ["worse"] * (len(epochs) - 1 if epochs else 0)
    assert "Over seeds, %" in (tmp_path / "page.html").read_text("utf-8")
