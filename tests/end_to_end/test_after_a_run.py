"""What follows a run: notebooks, changed values, the same again, takedowns. The run's demo lacks a collection."""

import json
import os
import re
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from keys_of_pods import Keys
from nbclient import NotebookClient
from test_workflow import first as first  # noqa: PLC0414 - fixtures
from test_workflow import keys as keys  # noqa: PLC0414
from test_workflow import stack_environment as stack_environment  # noqa: PLC0414
from trace_search import found, rows_of_database
from wukong_command import Wukong

from infra import corpus
from infra.corpus import packages
from infra.corpus.sources import SOURCES
from wukong.store import manifest, storage

pytestmark = pytest.mark.long

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))


@pytest.fixture(scope="module")
def wukong(keys: Keys, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Wukong]:
    """The stamps of Tux Paint cannot be had in any way: a cache without them, apt and the mirror refuse."""
    folder = tmp_path_factory.mktemp("lacking")
    whole, cache = corpus.cache_folder() / "packages", folder / "cache/corpus/packages"
    corpus.prepare(limit=400, progress=False)
    cache.mkdir(parents=True)
    for package in {package for source in SOURCES for package in source.packages} - {packages.STAMPS}:
        (cache / package.folder).symlink_to(whole / package.folder)
    refusing = folder / "bin" / "apt-get"
    refusing.parent.mkdir()
    refusing.write_text("#!/bin/sh\necho 'E: Version not found' >&2\nexit 100\n")
    refusing.chmod(0o755)
    lacking = {
        "PATH": f"{refusing.parent}:{os.environ['PATH']}",
        "WUKONG_CACHE": str(folder / "cache"),
        "WUKONG_DEBIAN_MIRROR": "http://127.0.0.1:9/debian",
    }
    command = Wukong(keys.home, **keys.environment, **lacking)
    yield command
    command("down")


def test_a_missing_collection_changes_the_demo_and_does_not_break_it(
    wukong: Wukong, first: subprocess.CompletedProcess[str]
) -> None:
    assert first.returncode == 0, first.stdout + first.stderr
    before, _, after = first.stdout.partition("✓ crawl")
    assert "E: Version not found" in before
    assert "WUKONG_DEBIAN_MIRROR" in before
    assert "The demo corpus lacks tuxpaint." in before, "it is said before the first stage ends"
    assert "the hold-out tuxpaint-captions" in before
    assert "fluent-style" in after
    assert "tuxpaint-captions" not in after
    page = (wukong.home / "runs" / "first" / "report.html").read_text(encoding="utf-8")
    assert "The demo corpus lacks tuxpaint." in page
    assert "No figure of this run can be compared" in page


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


def test_changing_one_value_runs_only_what_depends_on_it(
    wukong: Wukong, first: subprocess.CompletedProcess[str], stack_environment: dict[str, str]
) -> None:
    changed = wukong.run("changed", "finetune.epochs=2")
    assert changed.returncode == 0, changed.stdout + changed.stderr
    stages = ("crawl", "filter", "validate", "pretrain", "finetune", "evaluate")
    records = {stage: storage.read_json(f"s3://wukong/small/runs/changed/{stage}.json") for stage in stages}
    assert {stage for stage, record in records.items() if not record["reused"]} == {"finetune", "evaluate"}


def test_a_run_that_is_done_again_has_the_same_bytes(
    wukong: Wukong, first: subprocess.CompletedProcess[str], tmp_path: Path
) -> None:
    ended = wukong("reproduce", "first", "--into", str(tmp_path / "again"), "--json")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    compared = {each["stage"]: each for each in json.loads(ended.stdout)["stages"]}
    assert [*compared] == ["filter", "validate", "pretrain", "finetune", "evaluate"]
    assert {stage for stage, each in compared.items() if each["before"] != each["now"] or each["why"]} == set()
    assert list((tmp_path / "again" / "small" / "finetune").glob("*/model/*.safetensors"))


def test_the_plan_of_a_change_says_what_is_reused(wukong: Wukong, first: subprocess.CompletedProcess[str]) -> None:
    planned = wukong.run("planned", "evaluate.captions=first", "--dry-run")
    assert planned.returncode == 0, planned.stdout + planned.stderr
    states = dict(re.findall(r"^(\w+) +(reused|to do|goes on) ", planned.stdout, re.MULTILINE))
    reused = dict.fromkeys(("crawl", "filter", "validate", "pretrain", "finetune"), "reused")
    assert states.items() >= (reused | {"evaluate": "to do", "report": "to do"}).items()
    assert "Nothing was run" in planned.stdout
    assert not (wukong.home / "runs" / "planned").exists()


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
