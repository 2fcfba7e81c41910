"""Against a real MLflow server; MLflow's own client says what has arrived."""

import json
import logging
import socket
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import measured
import numpy as np
import pytest

from wukong.config import documents
from wukong.config.experiment import Experiment
from wukong.errors import ConfigError, DataError, StorageError
from wukong.evaluate import answers
from wukong.evaluate.interval import Interval
from wukong.evaluate.results import MeasuredModel, Outcome, document
from wukong.registry import comparison
from wukong.runtime.cancel import JobLeftError
from wukong.store import storage
from wukong.store.manifest import Manifest, Stage
from wukong.tracking import mlflow_runs, model_versions, run_links, stage_results, training_metrics
from wukong.tracking.mlflow_rest import Run, Server

mlflow = pytest.importorskip("mlflow")
pytestmark = pytest.mark.slow


@pytest.fixture
def experiment(tmp_path: Path, mlflow_address: str, monkeypatch: pytest.MonkeyPatch) -> Experiment:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_address)
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)
    crawl = {"queries": "file:///q", "endpoint": "http://site.test"}
    name = f"x-{uuid.uuid4().hex[:8]}"
    return documents.parse({"name": name, "storage": storage.from_path(tmp_path / "data"), "crawl": crawl})


def finished(experiment: Experiment, name: str, *parents: Manifest, **metrics: float) -> Manifest:
    stage = Stage(experiment.root, name, {"seed": 1, "nested": {"b": 2}}, parents)
    storage.write_json(stage.path("model/config.json"), {"model": {"similarity": "global"}})
    return stage.commit([stage.describe("model/config.json")], counts={"pairs": 7}, metrics=metrics)


def test_stages_nest_under_one_run_of_the_pipeline(experiment: Experiment) -> None:
    crawl = finished(experiment, "crawl")
    for manifest in (crawl, finished(experiment, "filter", crawl, share=0.5)):
        with mlflow_runs.stage_run(experiment, "first", manifest.stage) as run_id:
            stage_results.log_stage(run_id, manifest)
    mlflow_runs.complete_run(experiment, "first", {"eval/retrieval/holdouts/mean_recall": 0.4})
    runs = runs_of(experiment).values()
    (parent,) = (run for run in runs if "mlflow.parentRunId" not in run.data.tags)
    nested = {run.info.run_name: run for run in runs if run is not parent}
    assert {run.data.tags["mlflow.parentRunId"] for run in nested.values()} == {parent.info.run_id}
    assert nested["filter"].data.metrics == {"filter/count/pairs": 7.0, "filter/share": 0.5}
    assert nested["filter"].data.params == {"seed": "1", "nested.b": "2"}
    assert nested["filter"].data.tags["wukong.parent.crawl"] == crawl.digest
    assert nested["filter"].inputs.dataset_inputs[0].dataset.digest == crawl.digest[:36]
    assert parent.data.params["crawl.endpoint"] == "http://site.test"
    assert parent.data.metrics == {"eval/retrieval/holdouts/mean_recall": 0.4}
    assert {run.info.status for run in runs} == {"FINISHED"}


def test_the_runs_have_what_was_held_behind_the_metric_that_decides(experiment: Experiment) -> None:
    with mlflow_runs.stage_run(experiment, "first", "crawl") as run_id:
        stage_results.log_cost(run_id, "crawl", "It held little.", {"core_hours": 0.25})
    decides = "eval/retrieval/holdouts/mean_recall"
    mlflow_runs.complete_run(experiment, "first", {decides: 0.4})
    mlflow_runs.log_cost(experiment, "first", "It held more.", {"core_hours": 1.5, "idle_share": 0.5})
    runs = {run.data.tags.get("wukong.cost"): run for run in runs_of(experiment).values()}
    assert runs["It held little."].data.metrics == {"crawl/cost/core_hours": 0.25}
    metrics = runs["It held more."].data.metrics
    assert next(iter(metrics.items())) == (decides, 0.4), "MLflow's page that compares runs begins with it"
    assert (metrics["cost/core_hours"], metrics["cost/idle_share"]) == (1.5, 0.5)
    assert {run.info.status for run in runs.values()} == {"FINISHED"}


def test_the_runs_say_where_they_came_from_and_which_images_they_had(experiment: Experiment) -> None:
    tags = {"wukong.source.revision": "f00", "wukong.images": "data:1@sha256:aa"}
    for stage in ("crawl", "filter"):
        with mlflow_runs.stage_run(experiment, "first", stage, tags) as run_id:
            stage_results.log_images(run_id, stage, ["ray:1@sha256:bb", "ray:1@sha256:cc"])
    with mlflow_runs.stage_run(experiment, "first", "validate", tags | {"wukong.source.revision": "f01"}) as run_id:
        stage_results.log_images(run_id, "validate", [])
    found = {run.info.run_name: run.data.tags for run in runs_of(experiment).values()}
    assert found["first"].items() >= {"wukong.source.revision": "f01", "wukong.images": "data:1@sha256:aa"}.items()
    assert found["crawl"]["wukong.images"] == "ray:1@sha256:bb ray:1@sha256:cc"
    assert not {"wukong.images", "wukong.source.revision"} & found["validate"].keys()


def test_a_stage_that_raises_ends_as_failed(experiment: Experiment) -> None:
    with pytest.raises(ZeroDivisionError), mlflow_runs.stage_run(experiment, "first", "crawl"):
        raise ZeroDivisionError
    assert {run.info.status for run in runs_of(experiment).values()} == {"FAILED"}


def test_metrics_of_a_worker_reach_the_run_it_was_told(experiment: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    with mlflow_runs.stage_run(experiment, "first", "pretrain") as run_id:
        monkeypatch.setenv("MLFLOW_RUN_ID", str(run_id))
        training_metrics.keep_metrics({"loss": 2.0}, step=1)
        training_metrics.send_metrics()
        training_metrics.keep_metrics({"loss": 1.0}, step=2)
        training_metrics.send_metrics()
    history = mlflow.MlflowClient().get_metric_history(run_id, "loss")
    assert [(entry.step, entry.value) for entry in history] == [(1, 2.0), (2, 1.0)]


def runs_of(experiment: Experiment) -> dict[str, Any]:
    client = mlflow.MlflowClient()
    found = client.search_runs([client.get_experiment_by_name(experiment.name).experiment_id])
    return {run.info.run_name: run for run in found}


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit(143)])
def test_a_stage_that_is_cancelled_ends_as_killed(experiment: Experiment, error: Any) -> None:
    with pytest.raises((KeyboardInterrupt, SystemExit)), mlflow_runs.stage_run(experiment, "first", "crawl"):
        raise error
    assert {run.info.status for run in runs_of(experiment).values()} == {"KILLED"}
    with mlflow_runs.stage_run(experiment, "first", "crawl"):
        assert runs_of(experiment)["first"].info.status == "RUNNING", "it goes on under its name"


def test_a_server_that_is_gone_hides_nothing_and_holds_nobody(
    experiment: Experiment, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
    began = time.monotonic()
    with caplog.at_level(logging.WARNING):
        mlflow_runs.end_open_runs(experiment, "first", "KILLED")
    assert "could not be ended" in caplog.text
    assert time.monotonic() - began < 60, "MLflow's own patience is minutes"


def test_a_name_of_another_experiment_is_refused(experiment: Experiment) -> None:
    with mlflow_runs.stage_run(experiment, "first", "crawl"):
        pass
    elsewhere = experiment.model_copy(update={"storage": f"{experiment.storage}/elsewhere"})
    before = runs_of(experiment)["first"].to_dictionary()
    refused = pytest.raises(ConfigError, match=r"'first' belongs to another experiment .*another --name")
    with refused, mlflow_runs.stage_run(elsewhere, "first", "crawl"):
        pytest.fail("it began")
    assert runs_of(experiment)["first"].to_dictionary() == before
    assert len(runs_of(experiment)) == 2


def trained(experiment: Experiment) -> Manifest:
    stage = Stage(experiment.root, "pretrain", {"seed": 1})
    history = [{"epoch": epoch, "loss": 4.0 / epoch, "temperature": 0.5} for epoch in (1, 2)]
    storage.write_json(stage.path("history.json"), {"pairs": 7, "history": history})
    return stage.commit([stage.describe("history.json")], metrics={"loss": 2.0, "temperature": 0.5})


def test_the_curve_of_a_loss_is_in_the_run_that_trains_in_one_that_reuses_it_and_in_their_parents(
    experiment: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage, curve = trained(experiment), [(4, 3.0), (8, 2.0), (12, 1.0)]
    with mlflow_runs.stage_run(experiment, "first", "pretrain") as run_id:
        monkeypatch.setenv("MLFLOW_RUN_ID", str(run_id))
        for step, loss in curve:
            training_metrics.keep_metrics({"pretrain/loss": loss}, step)
            training_metrics.send_metrics()
        training_metrics.keep_metrics({"pretrain/epoch/loss": 4.0, "pretrain/epoch/temperature": 0.5}, 1)
        training_metrics.send_metrics()
        stage_results.log_stage(run_id, stage)
    with mlflow_runs.stage_run(experiment, "second", "pretrain") as reused:
        stage_results.log_stage(reused, stage)
        stage_results.log_stage(reused, stage)
    decides = "eval/retrieval/holdouts/mean_recall"
    for name in ("first", "second"):
        mlflow_runs.complete_run(experiment, name, {"eval/classification/holdouts/top1": 0.5, decides: 0.4})
    client = mlflow.MlflowClient()
    runs = [run_id, reused, *(runs_of(experiment)[name].info.run_id for name in ("first", "second"))]
    for run in runs:
        history = client.get_metric_history(run, "pretrain/loss")
        assert [(entry.step, entry.value) for entry in history] == curve
    for run in (run_id, reused):
        epochs = client.get_metric_history(run, "pretrain/epoch/loss")
        assert [(entry.step, entry.value) for entry in epochs] == [(1, 4.0), (2, 2.0)]
        assert [entry.value for entry in client.get_metric_history(run, "pretrain/temperature")] == [0.5]
    few = [decides, "eval/classification/holdouts/top1", "pretrain/loss"]
    assert list(runs_of(experiment)["second"].data.metrics) == few, (
        "MLflow's page that compares runs begins with the first"
    )


def test_the_report_has_a_suffix_that_mlflow_shows(experiment: Experiment, tmp_path: Path) -> None:
    storage.write_bytes(storage.from_path(tmp_path / "docs" / "validations" / "a.html"), b"<p>a</p>")
    with mlflow_runs.stage_run(experiment, "first", "report"):
        mlflow_runs.log_page(experiment, "first", "<p>悟空</p>", "report.html")
        mlflow_runs.log_docs(experiment, "first", storage.from_path(tmp_path / "docs"))
    client, parent = mlflow.MlflowClient(), runs_of(experiment)["first"].info.run_id
    assert {file.path for file in client.list_artifacts(parent)} == {"report.html", "docs"}
    assert [file.path for file in client.list_artifacts(parent, "docs/validations")] == ["docs/validations/a.html"]
    page = client.download_artifacts(parent, "report.html", str(tmp_path))
    assert Path(page).read_text(encoding="utf-8") == "<p>悟空</p>"


def test_a_metric_that_was_not_measured_is_named(experiment: Experiment) -> None:
    evaluation = finished(experiment, "evaluate", accuracy=0.5)
    with pytest.raises(DataError, match=r"'eval/retrieval/holdouts/mean_recall'.*accuracy"):
        model_versions.register(experiment, "no-run", evaluation, evaluation, {})


def test_without_a_server_nothing_is_tracked_and_the_log_says_so(
    experiment: Experiment, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    with caplog.at_level(logging.WARNING), mlflow_runs.stage_run(experiment, "first", "crawl") as run_id:
        stage_results.log_stage(run_id, finished(experiment, "crawl"))
        assert not training_metrics.keep_metrics({"loss": 1.0})
    assert run_id is None
    assert "not tracked" in caplog.text


def test_a_component_that_takes_a_job_over_goes_on_with_the_run_that_the_job_logs_to(
    experiment: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(JobLeftError), mlflow_runs.stage_run(experiment, "first", "pretrain") as left:
        monkeypatch.setenv("MLFLOW_RUN_ID", str(left))
        training_metrics.keep_metrics({"loss": 2.0}, step=1)
        training_metrics.send_metrics()
        raise JobLeftError(143)
    assert {run.info.status for run in runs_of(experiment).values()} == {"RUNNING"}
    with mlflow_runs.stage_run(experiment, "first", "pretrain") as taken_over:
        training_metrics.keep_metrics({"loss": 1.0}, step=2)
        training_metrics.send_metrics()
        stage_results.log_stage(taken_over, finished(experiment, "pretrain"))
    assert taken_over == left
    assert runs_of(experiment)["pretrain"].info.status == "FINISHED"
    assert [entry.value for entry in mlflow.MlflowClient().get_metric_history(left, "loss")] == [2.0, 1.0]
    with mlflow_runs.stage_run(experiment, "first", "pretrain") as again:
        pass
    assert again != left, "a stage that has ended is another run when it is repeated"


def test_links_lead_where_people_open_the_server(experiment: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    inside = run_links.pages(experiment, "first")
    assert inside is not None and inside.compare == "", "there is nothing to compare it with"
    monkeypatch.setenv("MLFLOW_PUBLIC_URL", "https://mlflow.example.org/")
    public = run_links.pages(experiment, "first")
    assert public is not None
    assert public.run == "https://mlflow.example.org/" + inside.run[inside.run.index("#") :]
    assert public.artifact("docs/card.html") == f"{public.run}/artifacts/docs/card.html"
    assert model_versions.model_url("wukong") == "https://mlflow.example.org/#/models/wukong"


def test_links_lead_into_the_workspace_of_a_team(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_PUBLIC_URL", "https://mlflow.example.org")
    monkeypatch.setenv("MLFLOW_WORKSPACE", "vision")
    assert model_versions.model_url("demo", "3") == (
        "https://mlflow.example.org/#/models/demo/versions/3?workspace=vision"
    )
    run = Run("0" * 32, "7", "first", "FINISHED", {}, {})
    page = mlflow_runs.page_of(run)
    assert page == f"https://mlflow.example.org/#/experiments/7/runs/{'0' * 32}?workspace=vision"
    file = run_links.Pages("", page).artifact("report.html")
    assert file == f"https://mlflow.example.org/#/experiments/7/runs/{'0' * 32}/artifacts/report.html?workspace=vision"
    compared = parse_qs(urlsplit(run_links.compare_url("7", ["a", "b"])).fragment.partition("?")[2])
    assert compared == {"runs": ['["a","b"]'], "experiments": ['["7"]'], "workspace": ["vision"]}


def test_the_compare_view_is_of_this_run_and_the_last_that_finished(experiment: Experiment) -> None:
    for name in ("first", "killed", "second"):
        with mlflow_runs.stage_run(experiment, name, "crawl"):
            pass
        if name != "killed":
            mlflow_runs.complete_run(experiment, name, {})
    mlflow_runs.end_open_runs(experiment, "killed", "KILLED")
    pages, runs = run_links.pages(experiment, "second"), runs_of(experiment)
    assert pages is not None
    asked = parse_qs(urlsplit(urlsplit(pages.compare).fragment).query)
    assert json.loads(asked["runs"][0]) == [runs[name].info.run_id for name in ("second", "first")]
    assert json.loads(asked["experiments"][0]) == [runs["first"].info.experiment_id]


def test_the_page_of_a_run_shows_its_model(experiment: Experiment) -> None:
    stage = Stage(experiment.root, "evaluate", {})
    storage.write_json(stage.path("evaluation.json"), evaluation(0.25))
    with mlflow_runs.stage_run(experiment, "first", "evaluate") as run_id:
        stage_results.log_stage(run_id, stage.commit([stage.describe("evaluation.json")]))
    for _ in range(2):
        mlflow_runs.describe_run(
            experiment, "first", "- [Report](x)", {"version": 3.0, "promoted": 1.0}, "finetuned" * 8
        )
    run, client = runs_of(experiment)["first"], mlflow.MlflowClient()
    assert run.data.tags["wukong.model"] == f"models:/{experiment.registry.model_name}/3"
    assert run.data.tags["mlflow.note.content"] == "- [Report](x)"
    (made,) = client.get_run(run.info.run_id).outputs.model_outputs
    assert client.get_logged_model(made.model_id).tags["wukong.digest"] == "finetuned" * 8


def test_an_address_that_is_no_servers_is_named(experiment: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
    refused = pytest.raises(ConfigError, match=r"MLFLOW_TRACKING_URI is 'sqlite:.*must be the address")
    with refused, mlflow_runs.stage_run(experiment, "first", "crawl"):
        pytest.fail("it began")


def test_a_stage_is_tracked_without_an_import_of_mlflow(experiment: Experiment) -> None:
    script = """
import sys
from wukong.config import documents
from wukong.store import storage
from wukong.tracking import mlflow_runs, stage_results
from wukong.store.manifest import Stage
experiment = documents.parse(storage.read_json(sys.argv[1]))
with mlflow_runs.stage_run(experiment, "first", "filter") as run_id:
    stage = Stage(experiment.root, "filter", {"seed": 1})
    storage.write_json(stage.path("docs/a.json"), {})
    stage_results.log_stage(run_id, stage.commit([stage.describe("docs/a.json")], counts={"pairs": 7}))
mlflow_runs.complete_run(experiment, "first", {})
print(" ".join({"mlflow", "torch", "pandas", "ray"} & sys.modules.keys()))
"""
    uri = storage.join(experiment.storage, "experiment.json")
    storage.write_json(uri, experiment.model_dump(mode="json"))
    loaded = subprocess.run([sys.executable, "-c", script, uri], check=True, capture_output=True, text=True)
    assert loaded.stdout.split() == []
    run = runs_of(experiment)["filter"]
    assert run.data.metrics == {"filter/count/pairs": 7.0}
    assert [file.path for file in mlflow.MlflowClient().list_artifacts(run.info.run_id, "docs")] == ["docs/a.json"]


def evaluation(value: float) -> dict[str, Any]:
    """The document of two models on a published set and a hold-out."""
    held = Interval(value, value, value, 0.95, 10)

    def outcome(task: str, split: str) -> Outcome:
        results = {"mean_recall": held, "text_to_image_r1": held}
        sizes = {"images": 2, "captions": 2}
        return Outcome(task, task, "retrieval", split, f"{task}-digest".ljust(64, "0"), "paper", sizes, "mean_recall",
                       results, {"text_to_image_r1": 0.1})  # fmt: skip

    models = [MeasuredModel(role, f"a/b:{role}", role * 8, token_wise=False) for role in ("pretrained", "finetuned")]
    tasks = [outcome(*each).as_json(model.role) for model in models for each in (("dtd", "val"), ("new", "holdout"))]
    return document(models, {"paper": ["Protocol paper."]}, tasks, {})


def test_each_metric_of_the_evaluate_stage_has_its_model_and_its_data_set(experiment: Experiment) -> None:
    stage = Stage(experiment.root, "evaluate", {})
    found = evaluation(0.25)
    storage.write_json(stage.path("evaluation.json"), found)
    manifest = stage.commit([stage.describe("evaluation.json")], metrics={"eval/retrieval/dtd/mean_recall": 0.25})
    with mlflow_runs.stage_run(experiment, "first", "evaluate") as run_id:
        stage_results.log_stage(run_id, manifest)
    client = mlflow.MlflowClient()
    run = client.get_run(run_id)
    names = [f"{task}/{name}" for task in ("dtd", "new") for name in ("mean_recall", "text_to_image_r1")]
    names.append("holdouts/mean_recall")
    beside = client.get_run(runs_of(experiment)["evaluate zero-shot"].info.run_id)
    assert beside.data.tags["mlflow.parentRunId"] == runs_of(experiment)["first"].info.run_id
    digests = {"dtd": "dtd-digest".ljust(36, "0"), "new": "new-digest".ljust(36, "0")}
    models = {model.tags["wukong.digest"]: model for model in client.search_logged_models([run.info.experiment_id])}
    assert set(models) == {"pretrained" * 8, "finetuned" * 8}
    for role, logged_to in (("pretrained", beside), ("finetuned", run)):
        assert logged_to.info.status == "FINISHED"
        assert logged_to.data.metrics == {f"eval/retrieval/{name}": 0.25 for name in names}, "one name for both"
        logged = models[role * 8]
        assert [each.model_id for each in logged_to.inputs.model_inputs] == [logged.model_id]
        assert logged.name == f"a-b-{role}" and logged.status == "READY"
        of = {metric.key: (metric.dataset_name, metric.dataset_digest) for metric in logged.metrics or []}
        assert set(of) == {f"eval/retrieval/{name}" for name in names}
        assert of["eval/retrieval/dtd/mean_recall"] == ("dtd", digests["dtd"])
        assert of["eval/retrieval/holdouts/mean_recall"][0] == "holdouts"
    inputs = {each.dataset.name: each.dataset for each in run.inputs.dataset_inputs}
    assert {name: each.digest for name, each in inputs.items()} == digests
    assert "split val, protocol paper" in inputs["dtd"].source


def test_an_evaluation_is_a_run_for_each_model_and_a_model_is_known_again(experiment: Experiment) -> None:
    stage_results.log_evaluation(experiment.name, evaluation(0.25), "<p>悟空</p>", {})
    addresses = stage_results.log_evaluation(experiment.name, evaluation(0.5), "<p>悟空</p>", {})
    client = mlflow.MlflowClient()
    known = client.get_experiment_by_name(experiment.name)
    runs = client.search_runs([known.experiment_id])
    assert len(runs) == 4 and {run.info.status for run in runs} == {"FINISHED"}
    assert len(client.search_logged_models([known.experiment_id])) == 2
    newest = [run for run in runs if run.info.run_id in "".join(addresses)]
    assert {run.info.run_name for run in newest} == {"a/b:pretrained", "a/b:finetuned"}
    for run in newest:
        assert run.data.metrics["eval/retrieval/dtd/mean_recall"] == 0.5, "the compare view has one name for both"
        assert {file.path for file in client.list_artifacts(run.info.run_id)} == {"evaluation.html", "evaluation.json"}


def test_two_evaluations_that_were_logged_alone_are_compared_query_by_query(experiment: Experiment) -> None:
    """The model of each run is the one that the run is of, and its answers pair the two."""
    hard = np.random.default_rng(0).random(1000)
    right = {"weak": hard < 0.50, "strong": hard < 0.54}
    addresses = []
    for name, hits in right.items():
        outcome = measured.classified("birds", hits)
        assert outcome.answers is not None
        logged = document(
            [MeasuredModel("pretrained", name, name * 8, token_wise=False)],
            {"own": ["Protocol own."]},
            [outcome.as_json("pretrained")],
            {},
        )
        table = answers.table({"pretrained": outcome.answers}, task="birds", digest=outcome.digest, protocol="own")
        addresses += stage_results.log_evaluation(experiment.name, logged, "", {"pretrained": {"birds": table}})
    server = Server()
    runs = comparison.find(server, [address.rsplit("/", 1)[1] for address in addresses])
    found = comparison.compare(comparison.read(server, runs))
    assert [run["model"] for run in found["runs"]] == ["weak" * 8, "strong" * 8]
    (birds,) = found["sets"]
    difference = birds["results"]["top1"][1]["difference"]
    gains = right["strong"].astype(float) - right["weak"]
    assert difference["paired"] and difference["value"] == pytest.approx(gains.mean())
    alone = birds["results"]["top1"][1]
    assert difference["high"] - difference["low"] < alone["high"] - alone["low"]


def test_an_evaluation_is_not_logged_to_a_server_that_is_away(
    experiment: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage_results, "AT_START", 0.0)
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
    with pytest.raises(StorageError, match="does not answer"):
        stage_results.log_evaluation("y", evaluation(0.5), "", {})
