"""``wukong paper`` on records, stages and files in a folder, without MLflow."""

import json
import uuid
from pathlib import Path
from typing import Any

import mlflow
import pytest
from english import english
from mlflow_server import MlflowServer
from typer.testing import CliRunner

from cli import summary
from cli.main import app
from wukong.commands.output import Console
from wukong.config import documents, section
from wukong.config.experiment import Experiment
from wukong.errors import ConfigError, DataError, WukongError
from wukong.evaluate import results
from wukong.evaluate.interval import Interval
from wukong.evaluate.results import MeasuredModel, Outcome
from wukong.runs import run_records
from wukong.runs.run_records import Record
from wukong.store import storage
from wukong.store.manifest import Stage
from wukong.tracking.mlflow_rest import Server

MODEL = {"image": {"name": "vit_base_patch32_clip_quickgelu_224.openai"}, "similarity": "global"}


def document(value: float) -> dict[str, Any]:
    values = {"top1": Interval(value, value - 0.01, value + 0.01, 0.95, 100)}
    entry = Outcome("imagenet", "ImageNet", "classification", "val", "d" * 64, "paper", {}, "top1", values, {})
    models = [MeasuredModel("pretrained", "mine", "1" * 64, False)]
    return results.document(models, {"paper": ["Protocol paper."]}, [entry.as_json("pretrained")], {})


@pytest.fixture
def experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Experiment:
    """An experiment with a run whose evaluation ended, and one whose evaluation failed."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("WUKONG_HOME", str(tmp_path / "home"))
    crawl = {"queries": "file:///q", "endpoint": "http://site.test"}
    value = {"name": "one", "storage": storage.from_path(tmp_path / "data"), "crawl": crawl}
    experiment = documents.parse(value | {"evaluate": {"tasks": ["imagenet"], "sets": "file:///sets"}})
    trained = Stage(experiment.root, "pretrain", {"model": MODEL}).commit([], counts={"pairs": 1000})
    stage = Stage(experiment.root, "evaluate", {}, [trained])
    storage.write_json(stage.path(results.DOCUMENT), document(0.35))
    made = stage.commit([stage.describe(results.DOCUMENT)])
    run_records.claim(experiment, "good")
    record = Record(stage="evaluate", state="succeeded", manifest=f"{made.uri}/manifest.json")
    run_records.write(experiment, "good", record)
    run_records.claim(experiment, "bad")
    run_records.write(experiment, "bad", Record(stage="evaluate", state="failed", error="no"))
    return experiment


def table(experiment: Experiment, tmp_path: Path, *arguments: str) -> tuple[dict[str, Any], str]:
    command = ["paper", "table5", *arguments, "--storage", experiment.storage, "--output", str(tmp_path / "out")]
    ended = CliRunner().invoke(app, command, catch_exceptions=False, env={"COLUMNS": "200"})
    assert ended.exit_code == 0
    assert "<h1>Table 5" in english((tmp_path / "out" / "table5.html").read_text("utf-8"))
    return json.loads((tmp_path / "out" / "table5.json").read_text("utf-8")), ended.output


def test_a_run_a_stage_and_a_file_stand_side_by_side(experiment: Experiment, tmp_path: Path) -> None:
    (tmp_path / "theirs.json").write_text(json.dumps(document(0.2)), encoding="utf-8")
    record = run_records.read(experiment, "good", "evaluate")
    assert record is not None and record.manifest is not None
    stage = record.manifest.removesuffix("/manifest.json")
    names = ["good", stage, f"{stage}/evaluation.json", str(tmp_path / "theirs.json")]
    made, said = table(experiment, tmp_path, *names)
    assert [model["label"] for model in made["models"]] == names
    assert [model["column"] for model in made["models"]] == ["ViT-B/32"] * 3 + [None]
    (row,) = [row for row in made["rows"] if row["set"] == "imagenet"]
    assert [round(row["ours"][name]["value"]) for name in names] == [35, 35, 35, 20]
    assert row["ours"]["good"]["paper"] == 33.2 and "paper" not in row["ours"][names[3]]
    assert "35.0 ▲" in said and "NOT MEASURED: dtd" in said
    trained = [each for each in made["missing"] if each["set"] == "dtd"]
    assert "--model file:///" in trained[0]["how"] and "/pretrain/" in trained[0]["how"]


@pytest.mark.slow
def test_a_run_of_mlflow_is_read_by_its_id(
    experiment: Experiment, tmp_path: Path, mlflow_of_all: MlflowServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_of_all.address)
    server = Server()
    run = server.create_run(server.experiment(f"paper-{uuid.uuid4().hex[:6]}"), "good", {"wukong.run": "good"})
    params = section.flatten(experiment.model_dump(mode="json"))
    server.log(run.run_id, params={key: str(entry) for key, entry in params.items()})
    for name in (run.run_id, f"runs:/{run.run_id}"):
        made, _ = table(experiment, tmp_path, name)
        assert [(model["label"], model["column"]) for model in made["models"]] == [(name, "ViT-B/32")]


@pytest.mark.slow
def test_a_registered_model_stands_for_its_evaluation(
    experiment: Experiment, tmp_path: Path, mlflow_of_all: MlflowServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_of_all.address)
    record = run_records.read(experiment, "good", "evaluate")
    assert record is not None and record.manifest is not None
    client, name = mlflow.MlflowClient(mlflow_of_all.address), f"paper-{uuid.uuid4().hex[:6]}"
    client.create_registered_model(name)
    for tags in ({"wukong.evaluation.uri": record.manifest}, {}):
        client.create_model_version(name, "s3://nowhere/model", tags=tags)
    client.set_registered_model_alias(name, "champion", "1")
    addresses = [f"models:/{name}@champion", f"models:/{name}/1"]
    made, said = table(experiment, tmp_path, *addresses)
    assert [(model["label"], model["column"]) for model in made["models"]] == [(each, "ViT-B/32") for each in addresses]
    assert "35.0 ▲" in said
    with pytest.raises(DataError, match=r"/2 does not say where its evaluation is: it was not registered by Wukong"):
        table(experiment, tmp_path, f"models:/{name}/2")
    with pytest.raises(ConfigError, match=r"write models:/NAME/VERSION"):
        table(experiment, tmp_path, f"models:/{name}")


def test_a_column_can_be_told(experiment: Experiment, tmp_path: Path) -> None:
    made, _ = table(experiment, tmp_path, "good", "--column", "ResNet50")
    assert made["models"][0]["column"] == "ResNet50"
    made, _ = table(experiment, tmp_path, "good", "--column", "none")
    assert made["models"][0]["column"] is None
    for columns, message in (
        (["ResNet51"], "is no model of Table 5; write one of"),
        (["none"] * 2, "give one for each"),
    ):
        options = [part for column in columns for part in ("--column", column)]
        with pytest.raises(ConfigError, match=message):
            table(experiment, tmp_path, "good", *options)


def test_what_is_no_evaluation_is_said(experiment: Experiment, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="its evaluation has failed; `wukong show bad`"):
        table(experiment, tmp_path, "bad")
    with pytest.raises(ConfigError, match="named twice"):
        table(experiment, tmp_path, "good", "good")
    with pytest.raises(WukongError, match="nowhere"):
        table(experiment, tmp_path, "nowhere")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "x.txt").write_text("x", encoding="utf-8")
    with pytest.raises(DataError, match=r"no evaluation\.json at .*folder; name a run"):
        table(experiment, tmp_path, str(tmp_path / "folder"))


def test_a_run_ends_with_the_commands_of_its_tables(experiment: Experiment, capsys: pytest.CaptureFixture[str]) -> None:
    summary.print_tables(Console(), experiment, "good")
    assert capsys.readouterr().out.split() == [
        "Paper",
        *f"wukong paper table5 good --storage {experiment.storage}".split(),
    ]
    asked = {"tasks": ["muge"], "sets": "s3://b/sets"}
    crawl = {"queries": "file:///q", "endpoint": "http://site.test"}
    summary.print_tables(Console(), documents.parse({"name": "x", "crawl": crawl, "evaluate": asked}), "run")
    out = capsys.readouterr().out
    assert [line.split()[-3:] for line in out.splitlines()] == [["paper", "table6", "run"], ["paper", "table7", "run"]]
    summary.print_tables(Console(), documents.parse({"name": "x", "crawl": crawl}), "run")
    assert capsys.readouterr().out == ""
