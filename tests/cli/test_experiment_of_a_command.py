"""Which experiment, and which run of it, a command takes: by its file, by one's own pictures, or by a run."""

from pathlib import Path
from typing import Any

import polars as pl
import pytest
from typer.testing import CliRunner

from cli import own_data
from cli import sweep as sweep_command
from cli.main import app
from cli.run import retrying
from components import run_ends
from wukong.config.experiment import Experiment
from wukong.errors import ConfigError, DataError
from wukong.publish import release
from wukong.registry import sweep
from wukong.runs import run_records
from wukong.runs.run_records import Record
from wukong.stages import places
from wukong.store import storage
from wukong.store.manifest import Manifest, Stage


def pictures(place: Path) -> Path:
    place.mkdir(parents=True)
    for number in range(80):
        (place / f"{number}.jpg").write_bytes(b"1")
        (place / f"{number}.txt").write_text(f"第{number}张图片", encoding="utf-8")
    return place


def finished(experiment: Experiment, run: str) -> dict[str, Manifest]:
    """Leave what a run leaves of its data, without the work."""
    made = {"crawl": Stage(experiment.root, "crawl", {"of": experiment.crawl.endpoint}).commit([])}
    made["filter"] = places.filtering(experiment, made["crawl"]).commit([])
    made["validate"] = places.validation(experiment, made["filter"]).commit([])
    run_records.claim(experiment, run)
    for stage, found in made.items():
        record = Record(stage=stage, state="succeeded", manifest=f"{found.uri}/manifest.json")
        run_records.write(experiment, run, record)
    return made


class Folders:
    """Two folders of one name, and the storage that experiments of both share."""

    def __init__(self, tmp_path: Path) -> None:
        self.first, self.second = (pictures(tmp_path / name / "pictures") for name in ("a", "b"))
        self.overrides = [f"storage={storage.from_path(tmp_path / 'store')}"]
        self.settings = ["--set", self.overrides[0]]

    def of(self, folder: Path) -> Experiment:
        return own_data.experiment_of(str(folder), None, self.overrides)


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    return Folders(tmp_path)


@pytest.fixture
def released(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """The images and the validation of each release that is asked for; none is made."""
    asked: list[tuple[str, str]] = []

    def library(experiment: Experiment, validated: Manifest) -> Manifest:
        asked.append((experiment.crawl.endpoint, validated.uri))
        counts = {"counts": {"pairs": 1}, "dropped": {release.OPTED_OUT: 0}}
        return Manifest(stage="release", uri="file:///r", config={}, **counts)

    monkeypatch.setattr(release, "release", library)
    return asked


def test_the_newest_is_of_the_experiments_own_images(folders: Folders, tmp_path: Path) -> None:
    """For everything that takes the newest: what is newer is of the other folder, under the same name."""
    ours, theirs = folders.of(folders.first), folders.of(folders.second)
    assert ours.root == theirs.root
    finished(theirs, "theirs")
    assert run_records.latest(ours, "crawl") is None
    file = tmp_path / "sweep.yaml"
    file.write_text(f"name: s\nset: ['{folders.overrides[0]}']\nparameters: {{pretrain.epochs: [1, 2]}}\n")
    asked = ["sweep", str(file), "--data", str(folders.first), "--dry-run"]
    refused = CliRunner().invoke(app, asked)
    assert isinstance(refused.exception, ConfigError)
    assert "no run of pictures has filtered pairs" in str(refused.exception)
    assert "(runs there on other images: theirs)" in str(refused.exception)
    with pytest.raises(ConfigError, match="no crawl of the experiment 'pictures' has finished"):
        retrying(ours, "again")
    assert run_ends.continue_experiment(ours) == (ours, "")

    made = finished(ours, "ours")
    newer = finished(theirs.model_copy(update={"seed": 1}), "theirs-again")
    for stage in ("crawl", "filter", "validate"):
        found = run_records.latest(ours, stage)
        assert found == ("ours", f"{made[stage].uri}/manifest.json")
        assert run_records.latest(theirs, stage) != found
    assert newer["crawl"].uri != made["crawl"].uri
    planned = CliRunner().invoke(app, asked)
    assert planned.exit_code == 0, planned.output
    assert f"Trains on {made['filter'].uri}, of the crawl of the run ours on {ours.crawl.endpoint}" in planned.output
    assert retrying(ours, "again").crawl.previous == f"{made['crawl'].uri}/manifest.json"
    assert run_ends.continue_experiment(ours)[0].crawl.previous == f"{made['crawl'].uri}/manifest.json"
    base = sweep.load(file, lambda _, overrides: own_data.experiment_of(str(folders.first), None, overrides))[1]
    assert sweep_command._data(base, "wukong run") == made["filter"]


def test_a_release_is_named_by_its_pictures_or_by_a_run(
    folders: Folders, released: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = folders.of(folders.first), folders.of(folders.second)
    own, other = finished(ours, "ours"), finished(theirs, "theirs")
    folder = f"{ours.root}/runs"

    def asked(*options: str) -> Any:
        return CliRunner().invoke(app, ["release", *options])

    ended = asked("--data", str(folders.first), *folders.settings)
    assert ended.exit_code == 0, ended.output
    assert f"ours, {ours.crawl.endpoint}" in ended.output.replace("\n", "")
    assert asked("--run", f"{folder}/theirs").exit_code == 0, "a run needs no file and no pictures"
    assert asked("--data", str(folders.second), "--run", "theirs", *folders.settings).exit_code == 0
    expected = [(ours, own), (theirs, other), (theirs, other)]
    assert released == [(each.crawl.endpoint, made["validate"].uri) for each, made in expected]
    mixed = asked("--data", str(folders.first), "--run", "theirs", *folders.settings)
    assert isinstance(mixed.exception, DataError)
    assert "run theirs of pictures has no pairs that passed the gate of the images of" in str(mixed.exception)
    monkeypatch.setattr("wukong.commands.chosen.STORAGE", storage.from_path(Path(storage.filesystem(ours.storage)[1])))
    assert asked("--run", "theirs").exit_code == 0 and released[-1] == released[1], "by its name alone"
    unknown = asked("--run", "none")
    assert isinstance(unknown.exception, DataError) and "no run 'none'" in str(unknown.exception)


def test_a_takedown_is_named_by_pictures_or_by_a_run(folders: Folders, tmp_path: Path) -> None:
    experiment = folders.of(folders.first)
    finished(experiment, "ours")
    listed = tmp_path / "requests.txt"
    listed.write_text("site.test\n")
    for options in (["--data", str(folders.first), *folders.settings], ["--run", f"{experiment.root}/runs/ours"]):
        ended = CliRunner().invoke(app, ["takedown", str(listed), "--dry-run", *options])
        assert ended.exit_code == 0, ended.output
        assert f"covers 0 URLs at {experiment.root}" in ended.output


def test_a_list_of_urls_is_released_and_pictures_of_a_disk_are_not() -> None:
    """Both are the engine `files`: what the rows name decides."""
    urls = pl.DataFrame({"url": ["https://site.test/1.jpg", "http://site.test/2.jpg#caption-2"]})
    release._refuse_own_files(urls)
    for own in ("file:///home/me/cat.jpg", "s3://mine/cat.jpg", "cat.jpg"):
        with pytest.raises(ConfigError, match=f"{own} is a picture on a disk of your own.*train on a list of URLs"):
            release._refuse_own_files(pl.concat([urls, pl.DataFrame({"url": [own]})]))
