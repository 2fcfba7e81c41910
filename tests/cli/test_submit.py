"""`wukong submit` against a Kubeflow Pipelines API (v2beta1) on loopback."""

from pathlib import Path
from typing import Any

import api_server
import pytest
import yaml
from played_cluster import running
from played_kfp import Kfp
from typer.testing import CliRunner

from cli import main, run_result, submit
from wukong.config import documents
from wukong.errors import ConfigError, WukongError

COMPILED = Path(__file__).parents[2] / "pipelines" / "compiled"


def call(kfp: Kfp, file: Path, *arguments: str) -> str:
    """Run the command; its output, or the error it raises."""
    result = CliRunner().invoke(main.app, ["submit", *arguments, "--config", str(file), "--host", kfp.url])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


def test_what_cannot_be_run_is_not_uploaded(kfp: Kfp, file: Path) -> None:
    none = ["--set", "filter.split.holdouts=[]"]
    for pipeline in ("training", "recurring"):
        with pytest.raises(ConfigError, match=r"filter\.split\.holdouts: there is none"):
            call(kfp, file, pipeline, *none)
    with pytest.raises(ConfigError, match=r"--name: run name '\.\./x'"):
        call(kfp, file, "--name", "../x")
    assert kfp.pipelines == kfp.runs == []
    call(kfp, file, "data", *none, "--no-wait")
    assert len(kfp.runs) == 1


def test_a_dry_run_submits_nothing_and_says_what_does_not_fit(
    kfp: Kfp, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running(tmp_path, monkeypatch) as cluster:
        node = cluster.objects["/api/v1/nodes/a"]["status"]
        arguments = ["submit", "data", "--config", str(file), "--host", kfp.url, "--dry-run", "--name", "first"]
        short = CliRunner().invoke(main.app, arguments)
        node["allocatable"] = {"cpu": "64", "memory": "256Gi", "pods": "110"}
        fits = CliRunner().invoke(main.app, arguments)
        cluster.forbid = {"/api/v1/nodes"}
        unseen = CliRunner().invoke(main.app, arguments)
    assert "crawl: " in short.output
    assert isinstance(short.exception, WukongError)
    assert f"data can be submitted to {kfp.url} as first; nothing was" in fits.output
    assert "All 3 jobs fit on the cluster now" in fits.output
    assert "not looked at: nodes and their pods (Forbidden)" in unseen.output
    assert "fit on the cluster now" not in unseen.output
    assert kfp.pipelines == kfp.runs == []


@pytest.mark.usefixtures("fast")
def test_a_run_is_started_and_waited_for(kfp: Kfp, file: Path) -> None:
    kfp.tasks = [{"display_name": name, "state": "RUNNING"} for name in ("crawl", "executor", "crawl-driver(0)")]
    output = call(kfp, file, "--set", "seed=3", "--param", "epochs=2", "--param", "learning_rate=1", "--name", "first")
    (run,) = kfp.runs
    assert run["display_name"] == "first"
    given = run["runtime_config"]["parameters"]
    assert (given["epochs"], given["learning_rate"], given["run"]) == ("2", "1", "first")
    assert given["experiment"]["seed"] == 3
    assert documents.parse(given["experiment"]) == documents.load(file, ["seed=3"])
    assert kfp.experiments[0]["display_name"] == "demo"
    assert run["pipeline_version_reference"] == {"pipeline_id": "p0", "pipeline_version_id": "v0"}
    assert (COMPILED / "training.yaml").read_bytes() in kfp.versions[0]["file"]
    assert f"{kfp.url}/#/runs/details/runs-0" in output
    states = [line.strip() for line in output.splitlines() if line.startswith("  ")]
    assert states == ["Crawl: running", "first: pending", "first: running", "first: succeeded"]


def test_who_waits_is_told_how_far_stages_are(
    kfp: Kfp, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def job(stage: str, progress: str = "", experiment: str = "demo") -> dict[str, Any]:
        labels = {"wukong/run": "first", "wukong/stage": stage} | ({"wukong/progress": progress} if progress else {})
        metadata = {"name": f"{stage}-{experiment}", "labels": labels, "annotations": {"wukong/experiment": experiment}}
        status = {"jobStatus": "SUCCEEDED" if progress == "done" else "RUNNING", "jobDeploymentStatus": "Running"}
        return {"metadata": metadata, "status": status}

    kfp.script = ["RUNNING"] * 5 + ["SUCCEEDED"]
    states = iter([["", "42pct-8m-left"], ["", "42pct-8m-left"], ["1pct", "done"], ["100pct", "done"], ["done"] * 2])

    def pause(_: float) -> None:
        crawl, filtered = next(states)
        jobs = [job("filter", filtered), job("crawl", crawl), job("crawl", "7pct-1h0m-left", "other")]
        api.jobs = {each["metadata"]["name"]: each for each in jobs}

    monkeypatch.setattr("cli.kfp_api.time.sleep", pause)
    with api_server.running(tmp_path, monkeypatch) as api:
        output = call(kfp, file, "--name", "first")
        lines = [line.strip() for line in output.splitlines() if line.startswith("  ")]
        assert lines == ["first: running", "filter: 42 %, 8m left", "crawl: 1 %", "crawl: 100 %", "first: succeeded"]

        api.forbid, kfp.script, states = {"GET"}, ["RUNNING"] * 4 + ["SUCCEEDED"], iter([["", ""]] * 4)
        asked = len(api.requests)
        output = call(kfp, file, "--name", "second")
        assert [line.strip() for line in output.splitlines() if line.startswith("  ")] == [
            "second: running",
            "second: succeeded",
        ]
        assert len(api.requests) == asked + 1, "who may not look is refused once"


def test_the_same_pipeline_is_uploaded_once(kfp: Kfp, file: Path) -> None:
    for _ in range(2):
        call(kfp, file, "data", "--no-wait")
    assert (len(kfp.pipelines), len(kfp.versions), len(kfp.runs), len(kfp.experiments)) == (1, 1, 2, 1)


def test_a_team_uploads_a_pipeline_of_its_own(kfp: Kfp, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    call(kfp, file, "data", "--no-wait", "--namespace", "vision")
    monkeypatch.setenv("WUKONG_KFP_NAMESPACE", "speech")
    for _ in range(2):
        call(kfp, file, "data", "--no-wait")
    assert [each["namespace"] for each in kfp.pipelines] == ["vision", "speech"]
    assert [each["namespace"] for each in kfp.experiments] == ["vision", "speech"]
    assert [each["pipeline_version_reference"]["pipeline_id"] for each in kfp.runs] == ["p0", "p1", "p1"]


def test_the_version_says_how_to_fill_in_the_form(kfp: Kfp, file: Path) -> None:
    call(kfp, file, "training", "--no-wait")
    assert kfp.pipelines[0]["description"] == "From a list of Chinese words to an evaluated vision-language model."
    assert "`epochs`" in kfp.versions[0]["description"]


def test_a_changed_pipeline_is_a_new_version(kfp: Kfp, file: Path, tmp_path: Path) -> None:
    changed = tmp_path / "data.yaml"
    text = (COMPILED / "data.yaml").read_text()
    for content in (text, text.replace("100m", "500m")):
        changed.write_text(content)
        call(kfp, file, str(changed), "--no-wait")
    assert (len(kfp.pipelines), len(kfp.versions)) == (1, 2)


@pytest.mark.parametrize("every", ["12h", "0 0 3 * * 1"])
def test_a_recurring_run_leaves_the_names_to_kfp(kfp: Kfp, file: Path, every: str) -> None:
    call(kfp, file, "recurring", "--every", every, "--name", "weekly")
    (made,) = kfp.recurring
    assert made["display_name"] == "weekly"
    assert made["runtime_config"]["parameters"]["run"] == ""
    assert (int(made["max_concurrency"]), made["no_catchup"]) == (1, True)
    trigger = made["trigger"]
    if every == "12h":
        assert int(trigger["periodic_schedule"]["interval_second"]) == 43200
    else:
        assert trigger["cron_schedule"]["cron"] == every
    assert not kfp.runs


@pytest.mark.usefixtures("fast")
@pytest.mark.parametrize("state", ["FAILED", "CANCELED", "SKIPPED"])
def test_a_run_that_does_not_succeed_is_an_error(kfp: Kfp, file: Path, state: str) -> None:
    kfp.script = ["RUNNING", state]
    states = {
        "crawl": "SUCCEEDED",
        "pretrain": "FAILED",
        "pretrain(0)": "FAILED",
        "executor": "FAILED",
        "root": "FAILED",
    }
    kfp.tasks = [{"display_name": name, "state": each} for name, each in states.items()]
    with pytest.raises(run_result.SubmitError, match=rf"ended as {state}. tasks that failed: Pre-train(;|\n)"):
        call(kfp, file)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["epochs=many"], "epochs: 'many' is not a whole number"),
        (["epochs=1.5"], "epochs: '1.5' is not a whole number"),
        (["epochs=0"], r"pretrain\.epochs"),
        (["overrides=[seeds=1]"], "seeds"),
        (["overrides=seed"], "overrides is a list"),
        (["epoch=1"], "has the parameters batch_size, epochs"),
        (["epochs"], "name=value"),
        (["run=x"], "has the parameters"),
    ],
)
def test_a_wrong_parameter_is_explained(file: Path, given: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        submit.parameters(COMPILED / "training.yaml", documents.load(file), "r", given)


def test_a_missing_parameter_is_asked_for(file: Path) -> None:
    with pytest.raises(ConfigError, match=r"--param of_run=.*name of the run"):
        submit.parameters(COMPILED / "evaluate.yaml", documents.load(file), "r", [])


def test_lists_and_texts_are_taken_as_they_are(file: Path) -> None:
    given = ['overrides=["seed=1", "crawl.max_queries=2"]', "of_run=2026"]
    made = submit.parameters(COMPILED / "evaluate.yaml", documents.load(file), "r", given)
    assert made["overrides"] == ["seed=1", "crawl.max_queries=2"]
    assert made["of_run"] == "2026", "a text stays one, whatever YAML would make of it"


def test_an_unknown_pipeline_names_the_known(kfp: Kfp, file: Path) -> None:
    with pytest.raises(ConfigError, match="data, evaluate, recurring, training"):
        call(kfp, file, "trainig")


@pytest.mark.parametrize("every", ["daily", "5", "0 3 * * 1"])
def test_a_wrong_schedule_is_explained(kfp: Kfp, file: Path, every: str) -> None:
    with pytest.raises(ConfigError, match="six cron fields"):
        call(kfp, file, "recurring", "--every", every)


def test_every_compiled_pipeline_can_be_submitted() -> None:
    for compiled in COMPILED.glob("*.yaml"):
        known = next(yaml.safe_load_all(compiled.read_text()))["root"]["inputDefinitions"]["parameters"]
        assert {"experiment", "run", "overrides"} <= known.keys()
        assert {definition["parameterType"] for definition in known.values()} <= submit._TYPES.keys()
