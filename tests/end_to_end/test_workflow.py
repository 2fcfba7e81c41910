"""The pipeline on a small sample of the demo corpus, by the command a user types, through the real servers."""

import json
import os
import re
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import keys_of_pods
import nbformat
import psutil
import pytest
from english import english
from keys_of_pods import Keys
from nbclient import NotebookClient
from trace_search import found, rows_of_database
from wukong_command import Wukong

from infra import corpus, stack
from infra.corpus import packages
from infra.corpus.sources import SOURCES
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
    assert [entry.step for entry in client.get_metric_history(trained.info.run_id, "pretrain/epoch/loss")] == [1, 2, 3]
    curve = client.get_metric_history(parent.info.run_id, "pretrain/loss")
    assert curve and curve == client.get_metric_history(trained.info.run_id, "pretrain/loss")
    assert len(parent.data.metrics) <= 20, "a person who compares runs sees the few that matter"
    assert parent.data.tags["wukong.model"] == "models:/small/1" and len(parent.outputs.model_outputs) == 1
    assert "artifacts/docs/card.html" in parent.data.tags["mlflow.note.content"]
    version = client.get_model_version_by_alias("small", "champion")
    assert version.tags["wukong.metric"] == "eval/retrieval/holdouts/mean_recall"


@pytest.mark.long
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_to_its_conclusion(
    wukong: Wukong, first: subprocess.CompletedProcess[str], notebook: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the home and the run in its environment alone, as nbconvert starts it."""
    assert first.returncode == 0
    monkeypatch.setenv("WUKONG_HOME", str(wukong.home))
    monkeypatch.setenv("WUKONG_RUN", "first")
    document = nbformat.read(notebook, as_version=4)
    # The peak that getrusage tells begins with that of the process of the tests, from which the kernel is forked.
    memory = (
        "from pathlib import Path\n"
        "status = dict(line.split(':', 1) for line in Path('/proc/self/status').read_text().splitlines())\n"
        "assert int(status['VmHWM'].split()[0]) < 2 * 2**20, 'over 2 GiB'"
    )
    document.cells.append(nbformat.v4.new_code_cell(memory))
    NotebookClient(document, timeout=None, resources={"metadata": {"path": str(notebook.parent)}}).execute()
    images = [
        output for cell in document.cells for output in cell.get("outputs", ()) if "image/png" in output.get("data", {})
    ]
    assert len(images) >= 2, "a story has plots"


def test_a_second_run_reuses_what_is_finished(wukong: Wukong, first: subprocess.CompletedProcess[str]) -> None:
    again = wukong.run("again")
    assert again.returncode == 0, again.stdout + again.stderr
    assert again.stdout.count("(reused)") == 6
    assert "compare-runs?runs=" in again.stdout
    log = (wukong.home / "runs" / "again" / "log.txt").read_text(encoding="utf-8")
    assert "crawl was finished already" in log and "KFP Executor" not in log, "no component was a process"


@pytest.mark.long
@pytest.mark.parametrize(
    ("value", "repeated"),
    [("evaluate.captions=first", {"evaluate"}), ("finetune.epochs=2", {"finetune", "evaluate"})],
)
def test_changing_one_value_runs_only_what_depends_on_it(
    wukong: Wukong,
    first: subprocess.CompletedProcess[str],
    stack_environment: dict[str, str],
    value: str,
    repeated: set[str],
) -> None:
    name = f"changed-{len(repeated)}"
    changed = wukong.run(name, value)
    assert changed.returncode == 0, changed.stdout + changed.stderr
    stages = ("crawl", "filter", "validate", "pretrain", "finetune", "evaluate")
    records = {stage: storage.read_json(f"s3://wukong/small/runs/{name}/{stage}.json") for stage in stages}
    assert {stage for stage, record in records.items() if not record["reused"]} == repeated


@pytest.mark.long
def test_a_run_that_is_done_again_has_the_same_bytes(
    wukong: Wukong, first: subprocess.CompletedProcess[str], tmp_path: Path
) -> None:
    ended = wukong("reproduce", "first", "--into", str(tmp_path / "again"), "--json")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    compared = {each["stage"]: each for each in json.loads(ended.stdout)["stages"]}
    assert [*compared] == ["filter", "validate", "pretrain", "finetune", "evaluate"]
    assert {stage for stage, each in compared.items() if each["before"] != each["now"] or each["why"]} == set()
    assert list((tmp_path / "again" / "small" / "finetune").glob("*/model/*.safetensors"))


def test_a_name_of_another_experiment_is_refused(wukong: Wukong, first: subprocess.CompletedProcess[str]) -> None:
    report = wukong.home / "runs" / "first" / "report.html"
    before = report.read_bytes()
    refused = wukong.run("first", "finetune.epochs=2")
    assert refused.returncode == 1
    assert "'first' belongs to another experiment" in refused.stderr
    assert "finetune.epochs: 1 there, 2 now" in refused.stderr
    assert report.read_bytes() == before


@pytest.mark.long
def test_the_plan_of_a_change_says_what_is_reused(wukong: Wukong, first: subprocess.CompletedProcess[str]) -> None:
    planned = wukong.run("planned", "finetune.epochs=2", "--dry-run")
    assert planned.returncode == 0, planned.stdout + planned.stderr
    states = dict(re.findall(r"^(\w+) +(reused|to do|goes on) ", planned.stdout, re.MULTILINE))
    assert {stage for stage, state in states.items() if state == "reused"} >= {
        "crawl",
        "filter",
        "validate",
        "pretrain",
    }
    assert states["report"] == "to do"
    assert "Nothing was run" in planned.stdout
    assert not (wukong.home / "runs" / "planned").exists()


@pytest.mark.long
def test_a_failing_gate_ends_the_run_with_its_own_message(
    wukong: Wukong, first: subprocess.CompletedProcess[str], stack_environment: dict[str, str]
) -> None:
    stopped = wukong.run("stopped", "validation.min_pairs=1000000")
    assert stopped.returncode == 1
    assert "the validate stage failed" in stopped.stderr
    assert "1000000" in stopped.stderr.replace(",", "")
    assert "Traceback" not in stopped.stderr
    assert "Inner task" not in stopped.stderr
    records = {
        stage: storage.read_json(f"s3://wukong/small/runs/stopped/{stage}.json") for stage in ("crawl", "filter")
    }
    assert all(record["reused"] for record in records.values()), "what does not depend on the value"


@pytest.mark.long
def test_after_a_takedown_only_its_record_names_the_pairs(
    wukong: Wukong, first: subprocess.CompletedProcess[str], stack_environment: dict[str, str], tmp_path: Path
) -> None:
    """In all objects of all buckets, in MLflow's database and in the home; pairs of all kinds of pages and records."""
    import boto3

    client = boto3.client("s3", endpoint_url=stack_environment["AWS_ENDPOINT_URL_S3"])

    def everything() -> Iterator[tuple[str, bytes]]:
        for bucket in client.list_buckets()["Buckets"]:
            for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket["Name"]):
                for entry in page.get("Contents", []):
                    body = client.get_object(Bucket=bucket["Name"], Key=entry["Key"])["Body"].read()
                    yield f"{bucket['Name']}/{entry['Key']}", body
        yield from rows_of_database(wukong.home / "mlflow.db")
        yield from ((str(file), file.read_bytes()) for file in (wukong.home / "runs").rglob("*") if file.is_file())

    def of(stage: str) -> manifest.Manifest:
        return manifest.load(storage.read_json(f"s3://wukong/small/runs/first/{stage}.json")["manifest"])

    tables = [storage.read_table(uri) for uri in of("crawl").part_uris("parts/", ".parquet")]
    rows = {row["key"]: row for table in tables for row in table.to_pylist()}
    captions = Counter(row["caption"] for row in rows.values())
    page = (wukong.home / "runs" / "first" / "report.html").read_text(encoding="utf-8")
    measured = (wukong.home / "runs" / "first" / "evaluation.html").read_text(encoding="utf-8")
    card = storage.read_json(f"{of('validate').uri}/card.json")
    chosen = [re.findall(r'data-key="(\w+)"', each)[0] for each in (page, measured)]
    chosen += [card["pairs"][0]["key"], min(rows), next(key for key in rows if rows[key]["status"] != "success")]
    chosen += [key for key in rows if rows[key]["status"] == "success" and captions[rows[key]["caption"]] == 1][-2:]
    gone = [rows[key] for key in chosen if key in rows]
    assert len(gone) == len(chosen)
    wanted = {row["key"]: row["key"] for row in gone} | {row["url"]: row["url"] for row in gone}
    wanted |= {f"digest of {row['key']}": row["sha256"] for row in gone if row["sha256"]}
    alone = [row["caption"] for row in gone if captions[row["caption"]] == 1 and len(row["caption"]) > 3]
    wanted |= {caption: caption for caption in alone}
    before = {name for name, _ in found(everything(), wanted)}
    assert {name.split("/")[0] for name in before} >= {"wukong", "mlflow", ""}
    listed = tmp_path / "requests.txt"
    listed.write_text("\n".join(row["sha256"] or row["url"] for row in gone), encoding="utf-8")
    done = wukong("takedown", str(listed), "--reason", "case 1", "--config", "configs/demo.yaml", "--set", "name=small")
    assert done.returncode == 0, done.stdout + done.stderr
    left = found(everything(), wanted)
    assert left and all(name.startswith("wukong/small/takedowns/") for name, _ in left), sorted(left)
    evaluated = of("evaluate")
    for part in evaluated.parts:
        assert manifest.describe(evaluated.uri, part.path, part.rows) == part


@pytest.mark.long
def test_a_missing_collection_changes_the_demo_and_does_not_break_it(tmp_path: Path) -> None:
    """The stamps of Tux Paint cannot be had in any way: a cache without them, apt and the mirror refuse."""
    whole, cache = corpus.cache_folder() / "packages", tmp_path / "cache/corpus/packages"
    corpus.prepare(progress=False)
    cache.mkdir(parents=True)
    for package in {package for source in SOURCES for package in source.packages} - {packages.STAMPS}:
        (cache / package.folder).symlink_to(whole / package.folder)
    refusing = tmp_path / "bin" / "apt-get"
    refusing.parent.mkdir()
    refusing.write_text("#!/bin/sh\necho 'E: Version not found' >&2\nexit 100\n")
    refusing.chmod(0o755)
    wukong = Wukong(
        tmp_path / "home",
        PATH=f"{refusing.parent}:{os.environ['PATH']}",
        WUKONG_CACHE=str(tmp_path / "cache"),
        WUKONG_DEBIAN_MIRROR="http://127.0.0.1:9/debian",
    )
    try:
        done = wukong.run("partial")
    finally:
        wukong("down")
    assert done.returncode == 0, done.stdout + done.stderr
    before, _, after = done.stdout.partition("✓ crawl")
    assert "E: Version not found" in before
    assert "WUKONG_DEBIAN_MIRROR" in before
    assert "The demo corpus lacks tuxpaint." in before, "it is said before the first stage ends"
    assert "the hold-out tuxpaint-captions" in before
    assert "fluent-style" in after
    assert "tuxpaint-captions" not in after
    page = (wukong.home / "runs" / "partial" / "report.html").read_text(encoding="utf-8")
    assert "The demo corpus lacks tuxpaint." in page
    assert "No figure of this run can be compared" in page


@pytest.fixture
def stack_environment(
    wukong: Wukong, first: subprocess.CompletedProcess[str], monkeypatch: pytest.MonkeyPatch
) -> dict[str, str]:
    environment = stack.load(wukong.home).environment()
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert json.loads((wukong.home / "stack.json").read_text())
    return environment
