"""The pipeline on a small sample of the demo corpus, by the command a user types, through the real servers."""

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import keys_of_pods
import psutil
import pytest
from english import english
from keys_of_pods import Keys
from wukong_command import Wukong

from infra import stack
from wukong import stages
from wukong.stages import access
from wukong.store import manifest, storage

pytestmark = pytest.mark.slow

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Keys]:
    """The stack's stores run, with the keys that pods have on a cluster."""
    home = tmp_path_factory.mktemp("home")
    with keys_of_pods.held(home) as held:
        yield held
    left = [process.pid for process in psutil.process_iter() if str(home) in " ".join(_command_line(process))]
    assert left == []


@pytest.fixture(scope="module")
def wukong(keys: Keys) -> Iterator[Wukong]:
    command = Wukong(keys.home, **keys.environment)
    yield command
    command("down")


@pytest.fixture(scope="module")
def first(wukong: Wukong) -> subprocess.CompletedProcess[str]:
    return wukong.run("first")


def _command_line(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def test_the_workflow_runs_to_its_end(first: subprocess.CompletedProcess[str]) -> None:
    assert first.returncode == 0, first.stdout + first.stderr
    for heading in ("From query to pair", "On held-out pairs", "Times", "MLflow"):
        assert heading in first.stdout


def test_each_pod_of_the_run_may_do_its_work(keys: Keys, first: subprocess.CompletedProcess[str]) -> None:
    """Each process has had the key and the user that its pod has on a cluster, and none was refused anything."""
    assert first.returncode == 0
    assert keys.refused() == []
    pods = {access.key_of_component(stage) for stage in stages.WHOLE_RUN}
    pods |= {access.key_of_job(stage) for stage in stages.JOBS}
    assert keys.used() == pods | {"wukong", "mlflow-s3"}


def test_a_stage_has_one_time(wukong: Wukong, first: subprocess.CompletedProcess[str]) -> None:
    told = re.findall(r"^✓ (\w+)  ([\d.]+) s$", first.stdout, re.M)
    table = re.findall(r"^(\w+) +([\d.]+)$", first.stdout.partition("Times")[2], re.M)
    assert {"crawl", "evaluate", "report"} <= {stage for stage, _ in told} and set(told) < set(table)
    page = english((wukong.home / "runs" / "first" / "report.html").read_text(encoding="utf-8"))
    shown = re.findall(r"<span>(\w+)</span>.*<span class=\"n\">(?:(\d+) min )?([\d.]+) s</span>", page)
    assert {"crawl", "evaluate"} <= {stage for stage, _, _ in shown}
    for stage, minutes, seconds in shown:
        assert 60 * int(minutes or 0) + float(seconds) == pytest.approx(float(dict(told)[stage]), abs=1)


def test_every_number_leads_back_to_the_crawl(
    wukong: Wukong, first: subprocess.CompletedProcess[str], stack_environment: dict[str, str]
) -> None:
    records = {file.rsplit("/", 1)[1] for file in storage.list_files("s3://wukong/small/runs/first", ".json")}
    assert {f"{stage}.json" for stage in stages.WHOLE_RUN} <= records
    evaluated = manifest.load(storage.read_json("s3://wukong/small/runs/first/evaluate.json")["manifest"])
    seen, pending = set(), [evaluated]
    while pending:
        current = pending.pop()
        seen.add(current.stage)
        for parent in current.parents:
            found = manifest.load(parent.uri)
            assert found.digest == parent.digest
            pending.append(found)
    assert {"crawl", "filter", "pretrain", "finetune", "evaluate"} <= seen


def test_pairs_are_accounted_for(first: subprocess.CompletedProcess[str], stack_environment: dict[str, str]) -> None:
    crawl, kept = (
        manifest.load(storage.read_json(f"s3://wukong/small/runs/first/{stage}.json")["manifest"])
        for stage in ("crawl", "filter")
    )
    rows = sum(storage.read_table(uri, ["key"]).num_rows for uri in kept.part_uris(suffix=".parquet"))
    succeeded = [
        value
        for uri in crawl.part_uris("parts/", ".parquet")
        for value in storage.read_table(uri, ["status"]).column("status").to_pylist()
        if value == "success"
    ]
    assert rows == len(succeeded), "each downloaded pair is kept or dropped, once"
    assert sum(kept.dropped.values()) == sum(
        storage.read_table(uri, ["key"]).num_rows for uri in kept.part_uris("dropped/", ".parquet")
    )


def test_the_report_is_one_page_that_needs_nothing_else(
    wukong: Wukong, first: subprocess.CompletedProcess[str]
) -> None:
    assert "Table 5" in (wukong.home / "runs" / "first" / "evaluation.html").read_text(encoding="utf-8")
    page = (wukong.home / "runs" / "first" / "report.html").read_text(encoding="utf-8")
    assert re.search(r"""(?:src|href)=["'](?!data:|#|docs/|evaluation\.html["']|http://127\.0\.0\.1)""", page) is None
    for beside in re.findall(r'href="(docs/[^"]+)"', page):
        assert (wukong.home / "runs" / "first" / beside).is_file()
    card = (wukong.home / "runs" / "first" / "docs" / "card.html").read_text(encoding="utf-8")
    assert "GPL-2.0-only" in card and 'href="index.html"' in card
    title = '<title data-zh-text="small · first · Wukong 报告">small · first · Wukong report</title>'
    assert title in page
    assert re.search("<figcaption>[^<]*[人猫的]", page)


def test_mlflow_holds_the_run_and_the_model(
    first: subprocess.CompletedProcess[str], stack_environment: dict[str, str]
) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(stack_environment["MLFLOW_TRACKING_URI"])
    found = client.get_experiment_by_name("small")
    assert found is not None
    (parent,) = client.search_runs([found.experiment_id], "tags.`wukong.run` = 'first'")
    nested = client.search_runs([found.experiment_id], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'")
    assert {run.info.status for run in (parent, *nested)} == {"FINISHED"}
    assert {run.info.run_name for run in nested} >= {"crawl", "filter", "validate", "pretrain", "finetune", "evaluate"}
    assert "eval/retrieval/holdouts/mean_recall" in parent.data.metrics
    assert {"report.html", "evaluation.html", "docs"} <= {
        file.path for file in client.list_artifacts(parent.info.run_id)
    }
    (trained,) = (run for run in nested if run.info.run_name == "pretrain")
    assert [entry.step for entry in client.get_metric_history(trained.info.run_id, "pretrain/epoch/loss")] == [1, 2]
    curve = client.get_metric_history(parent.info.run_id, "pretrain/loss")
    assert curve and curve == client.get_metric_history(trained.info.run_id, "pretrain/loss")
    assert len(parent.data.metrics) <= 20, "a person who compares runs sees the few that matter"
    assert parent.data.tags["wukong.model"] == "models:/small/1" and len(parent.outputs.model_outputs) == 1
    assert "artifacts/docs/card.html" in parent.data.tags["mlflow.note.content"]
    version = client.get_model_version_by_alias("small", "champion")
    assert version.tags["wukong.metric"] == "eval/retrieval/holdouts/mean_recall"


def test_a_second_run_reuses_what_is_finished(wukong: Wukong, first: subprocess.CompletedProcess[str]) -> None:
    again = wukong.run("again")
    assert again.returncode == 0, again.stdout + again.stderr
    assert again.stdout.count("(reused)") == 6
    assert "compare-runs?runs=" in again.stdout
    log = (wukong.home / "runs" / "again" / "log.txt").read_text(encoding="utf-8")
    assert "crawl was finished already" in log and "KFP Executor" not in log, "no component was a process"


def test_a_name_of_another_experiment_is_refused(wukong: Wukong, first: subprocess.CompletedProcess[str]) -> None:
    report = wukong.home / "runs" / "first" / "report.html"
    before = report.read_bytes()
    refused = wukong.run("first", "finetune.epochs=2")
    assert refused.returncode == 1
    assert "'first' belongs to another experiment" in refused.stderr
    assert "finetune.epochs: 1 there, 2 now" in refused.stderr
    assert report.read_bytes() == before


@pytest.fixture
def stack_environment(
    wukong: Wukong, first: subprocess.CompletedProcess[str], monkeypatch: pytest.MonkeyPatch
) -> dict[str, str]:
    environment = stack.load(wukong.home).environment()
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert json.loads((wukong.home / "stack.json").read_text())
    return environment
