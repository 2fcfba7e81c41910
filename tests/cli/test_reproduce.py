"""``wukong reproduce`` with stages that write a file each; tests/end_to_end/test_after_a_run.py repeats a whole run."""

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.main import app
from wukong import stages
from wukong.config import documents
from wukong.config.experiment import Experiment
from wukong.errors import DataError
from wukong.runs import run_records
from wukong.runs.run_records import Record
from wukong.store import manifest, storage
from wukong.store.manifest import Manifest, Stage

JOBS = [name for name in stages.JOBS if stages.of(name).in_whole_run]


class Launched:
    """Stands for the jobs: each writes a file; what ``changed`` names has other bytes."""

    def __init__(self) -> None:
        self.stages: list[str] = []
        self.changed = ""

    def __call__(self, name: str, experiment: Experiment, run: str, parents: Sequence[str]) -> Manifest:
        self.stages.append(name)
        os.write(1, f"job of {name}\n".encode())
        read = [manifest.load(uri) for uri in parents]
        assert [each.stage for each in read] == list(stages.of(name).parents)
        stage = Stage(experiment.root, name, {"epochs": experiment.pretrain.epochs}, read)
        storage.write_bytes(stage.path("out.bin"), b"other" if name == self.changed else name.encode())
        made = stage.commit([stage.describe("out.bin")])
        record = Record(stage=name, state="succeeded", manifest=f"{made.uri}/manifest.json")
        run_records.write(experiment, run, record)
        return made


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> Launched:
    launched = Launched()
    monkeypatch.setattr("cli.reproduce.launch", launched)
    return launched


@pytest.fixture
def place(tmp_path: Path, launched: Launched, monkeypatch: pytest.MonkeyPatch) -> str:
    """A storage with a finished run."""
    monkeypatch.setenv("WUKONG_HOME", str(tmp_path / "home"))
    place = storage.from_path(tmp_path / "data")
    crawl = {"queries": "file:///q", "endpoint": "http://site.test"}
    experiment = documents.parse({"name": "x", "storage": place, "crawl": crawl, "pretrain": {"epochs": 3}})
    run_records.claim(experiment, "first")
    made: dict[str, Manifest] = {}
    for name in JOBS:
        parents = [f"{made[parent].uri}/manifest.json" for parent in stages.of(name).parents]
        made[name] = launched(name, experiment, "first", parents)
    launched.stages.clear()
    return place


def test_equal_outputs_end_with_status_0_and_nothing_of_the_run_is_touched(
    place: str, launched: Launched, tmp_path: Path
) -> None:
    before = {uri: storage.read_bytes(uri) for uri in storage.list_files(place)}
    ended = CliRunner().invoke(app, ["reproduce", "first", "--storage", place], catch_exceptions=False)
    assert ended.exit_code == 0 and "Every output is the same" in ended.stdout, ended.output
    assert launched.stages == JOBS[1:] and JOBS[0] == "crawl", "the crawl is taken"
    (folder,) = (tmp_path / "home" / "reproduced").iterdir()
    assert (folder / "log.txt").read_text().splitlines() == [f"job of {name}" for name in JOBS[1:]]
    assert folder.name.startswith("first-") and (folder / "x" / "evaluate").is_dir()
    assert {uri: storage.read_bytes(uri) for uri in storage.list_files(place)} == before


def test_the_first_stage_that_differs_is_named_with_the_reason(place: str, launched: Launched, tmp_path: Path) -> None:
    launched.changed = "pretrain"
    arguments = ["reproduce", "first", "--storage", place, "--from-crawl", "--into", str(tmp_path / "again")]
    ended = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert ended.exit_code == 1 and launched.stages == JOBS
    lines = [" ".join(line.split()) for line in ended.stdout.splitlines()]
    states = {line.split()[0]: line.split()[-1] for line in lines[1 : 1 + len(JOBS)]}
    changed = {"pretrain", "finetune", "evaluate"}
    assert {stage for stage, state in states.items() if state == "differs"} == changed
    assert lines[1 + len(JOBS) :] == ["pretrain is the first that differs:", "1 of 1 files differ: out.bin"]
    told = json.loads(CliRunner().invoke(app, [*arguments, "--json"]).stdout)
    assert [each["stage"] for each in told["stages"]] == JOBS
    assert told["stages"][-1]["why"] == [
        f"it was made from another output of {name}" for name in ("pretrain", "finetune")
    ]


def test_a_run_that_has_not_finished_is_refused(place: str, launched: Launched) -> None:
    storage.delete(f"{place}/x/runs/first/evaluate.json")
    refused = CliRunner().invoke(app, ["reproduce", "first", "--storage", place])
    assert isinstance(refused.exception, DataError)
    assert "has not finished evaluate: only a finished run" in str(refused.exception) and launched.stages == []


def test_its_own_code_is_another_process_with_the_same_arguments(
    place: str, launched: Launched, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The code that is checked out here tells its arguments and ends with 1, as if a digest differed."""
    code = tmp_path / "again" / "code"

    def check_out(revision: str, folder: Path) -> Path:
        assert (revision, folder) == (manifest.code_revision(), code)
        (folder / "cli").mkdir(parents=True)
        (folder / "cli" / "__init__.py").touch()
        (folder / "cli" / "main.py").write_text(
            "import os, pathlib, sys\n"
            "pathlib.Path('told').write_text(' '.join([*sys.argv[1:], os.environ['WUKONG_HOME']]))\nsys.exit(1)\n"
        )
        return Path(sys.executable)

    monkeypatch.setattr("cli.reproduce.check_out", check_out)
    into = str(tmp_path / "again")
    arguments = ["reproduce", "first", "--storage", place, "--into", into, "--own-code", "--from-crawl"]
    assert CliRunner().invoke(app, arguments).exit_code == 1
    home = tmp_path / "home"
    assert (code / "told").read_text() == f"reproduce first --storage {place} --from-crawl --into {into} {home}"
    assert launched.stages == []
