"""``wukong runs`` and ``wukong report`` on records in a folder, without MLflow."""

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.main import app
from wukong import stages
from wukong.config import documents
from wukong.config.experiment import Experiment
from wukong.errors import DataError
from wukong.runs import run as library
from wukong.runs import run_records
from wukong.runs.run_records import Record
from wukong.stages import run_paths
from wukong.store import storage
from wukong.store.manifest import Stage
from wukong.tracking.run_links import Tracked

RECALL = "eval/retrieval/holdouts/mean_recall"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A storage with four runs of two experiments."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("WUKONG_HOME", str(tmp_path / "home"))
    place = storage.from_path(tmp_path / "data")
    for name, run, until in (("one", "first", 8), ("one", "second", 8), ("one", "stopped", 3), ("two", "other", 0)):
        begin(made(name, place), run, until)
    return place


def made(name: str, place: str) -> Experiment:
    crawl = {"queries": "file:///q", "endpoint": "http://site.test"}
    return documents.parse({"name": name, "storage": place, "crawl": crawl})


def begin(experiment: Experiment, run: str, until: int) -> None:
    """Write what a run leaves that ends after so many stages; the third stage of ``stopped`` fails."""
    run_records.claim(experiment, run)
    for number, stage in enumerate(stages.WHOLE_RUN[:until]):
        output = Stage(experiment.root, stage, {}).commit([], metrics={RECALL: 0.25} if stage == "evaluate" else {})
        failed = run == "stopped" and number == 2
        record = (
            Record(stage=stage, state="failed", error="no such thing")
            if failed
            else Record(stage=stage, state="succeeded", manifest=f"{output.uri}/manifest.json", reused=run == "second")
        )
        run_records.write(experiment, run, record)
    if until == len(stages.WHOLE_RUN):
        for page in ("report.html", "docs/card.html"):
            storage.write_bytes(run_paths.uri_of(experiment, run, page), f"<p>{run}</p>".encode())


def wukong(*arguments: str) -> str:
    ended = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert ended.exit_code == 0
    return ended.stdout


def test_runs_are_listed_with_how_they_ended(place: str) -> None:
    listed = {run["name"]: run for run in json.loads(wukong("runs", "--storage", place, "--json"))}
    assert [*listed] == ["other", "stopped", "second", "first"], "the newest first"
    assert {name: run["state"] for name, run in listed.items()} == {
        "first": "finished",
        "second": "finished",
        "stopped": "failed",
        "other": "unfinished",
    }
    assert listed["second"]["stages"] == dict.fromkeys(stages.WHOLE_RUN, "reused")
    assert listed["stopped"]["stages"] == {"crawl": "done", "filter": "done", "validate": "failed"}
    assert listed["first"]["metrics"] == {RECALL: 0.25} and listed["other"]["metrics"] == {}
    assert storage.exists(listed["first"]["report"]) and listed["stopped"]["report"] is None


def test_the_list_for_people_has_what_matters(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    lines = wukong("runs", "one", "--last", "2", "--storage", place).splitlines()
    assert [line.split()[0] for line in lines] == ["run", "stopped", "second", "1"]
    assert "3 of 8, failed: validate" in lines[1]
    assert "8 of 8, 8 reused" in lines[2] and "0.250" in lines[2]
    assert lines[3] == "1 older ones: --last 3"


@pytest.mark.parametrize("terminal", [False, True])
def test_no_name_is_broken_in_a_narrow_place(place: str, monkeypatch: pytest.MonkeyPatch, terminal: bool) -> None:
    long = "a-name-of-a-run-that-is-as-long-as-people-make-them-20261129"
    begin(made("one", place), long, 8)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(
        "wukong.tracking.run_links.tracked_runs", lambda _: {long: Tracked("FINISHED", "models:/one/7", "")}
    )
    if terminal:
        monkeypatch.setenv("FORCE_COLOR", "1")
    said = re.sub(r"\x1b\[[0-9;]*m", "", wukong("runs", "--storage", place))
    lines = said.splitlines()
    mine = next(number for number, line in enumerate(lines) if line.startswith(f"{long} "))
    shown = " ".join(lines[mine : mine + 2]) if terminal else lines[mine]
    for text in ("finished", "8 of 8", "0.250", "models:/one/7"):
        assert text in shown
    assert len(lines) == (2 * 3 + 2 if terminal else 1 + 5), "two lines for each that has something measured"


def test_an_experiment_without_runs_is_told_from_those_with_some(place: str) -> None:
    with pytest.raises(DataError, match=r"no run of an experiment 'three' .*there are runs of: one, two"):
        wukong("runs", "three", "--storage", place)


def test_the_newest_report_is_fetched_with_what_lies_beside_it(place: str, tmp_path: Path) -> None:
    page = Path(wukong("report", "--storage", place).strip())
    assert page == tmp_path / "home" / "runs" / "second" / "report.html"
    assert page.read_text() == "<p>second</p>" and (page.parent / "docs" / "card.html").is_file()
    found = json.loads(wukong("report", "first", "-o", str(tmp_path / "x"), "--storage", place, "--json"))
    assert Path(found["report"]).read_text() == "<p>first</p>"
    with pytest.raises(DataError, match="the run stopped has no report"):
        wukong("report", "stopped", "--storage", place)


def test_a_run_that_does_not_exist_is_told_from_those_that_do(place: str) -> None:
    with pytest.raises(DataError, match=r"no run 'frist' in .*the newest are other, stopped, second, first"):
        library.find("frist", place)
    assert library.find("other", place).experiment.name == "two"
