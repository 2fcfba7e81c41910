"""A finished run is found by its report, the newest first, with its experiment and its manifests."""

import json
import os
from pathlib import Path

import pytest

from wukong.config import documents
from wukong.config.experiment import Experiment
from wukong.errors import ConfigError
from wukong.runs import finished_run, run_records
from wukong.runs.run_records import Record
from wukong.store import storage
from wukong.store.manifest import Manifest, Stage


@pytest.fixture
def home(tmp_path: Path) -> Path:
    home = tmp_path / "home"
    home.mkdir()
    (home / "environment.json").write_text('{"DO_NOT_TRACK": "noted"}')
    return home


def experiment_at(tmp_path: Path, seed: int = 0) -> Experiment:
    crawl = {"queries": "file:///none", "endpoint": "http://127.0.0.1:1"}
    return documents.parse(
        {"name": "x", "storage": storage.from_path(tmp_path / "store"), "seed": seed, "crawl": crawl}
    )


def ended(home: Path, experiment: Experiment, run: str, when: int, *, with_report: bool = True) -> Manifest:
    """What ``wukong run`` leaves of a run whose crawl and filter have finished."""
    manifest = Stage(experiment.root, "crawl", {"run": run}).commit([])
    for record in (
        Record(stage="crawl", state="succeeded", manifest=storage.join(manifest.uri, "manifest.json")),
        Record(stage="register", state="succeeded"),
    ):
        run_records.write(experiment, run, record)
    folder = home / "runs" / run
    folder.mkdir(parents=True)
    (folder / "experiment.json").write_text(json.dumps({"experiment": experiment.model_dump(mode="json")}))
    if with_report:
        (folder / "report.html").write_text("a page")
        os.utime(folder / "report.html", (when, when))
    return manifest


def test_the_run_that_finished_last_is_opened(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DO_NOT_TRACK", "")
    newest, older = experiment_at(tmp_path, seed=1), experiment_at(tmp_path, seed=2)
    made = ended(home, newest, "b", when=2_000)
    ended(home, older, "a", when=1_000)
    ended(home, older, "c", when=3_000, with_report=False)
    found = finished_run.find(home=home)
    assert (found.name, found.experiment, found.folder) == ("b", newest, home / "runs" / "b")
    assert found.manifests == {"crawl": made}, "stages without a manifest are left out"
    assert found.uri("crawl", "x.json") == f"{made.uri}/x.json"
    assert os.environ["DO_NOT_TRACK"] == "noted", "the process is connected to the stack"
    assert finished_run.find("a", home).experiment == older


def test_what_is_missing_is_named(home: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no run has finished in .*home"):
        finished_run.find(home=home)
    ended(home, experiment_at(tmp_path), "a", when=1_000)
    with pytest.raises(ConfigError, match=r"no run 'b' has finished in .*; finished are a"):
        finished_run.find("b", home)
    with pytest.raises(ConfigError, match="no stage 'filter'; it has crawl"):
        finished_run.find("a", home).uri("filter", "x")
