"""``wukong gc`` on a folder: a dry run, a deletion, JSON, and what it refuses without MLflow."""

import json
import os
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.main import app
from wukong.errors import ConfigError
from wukong.store import fence, storage
from wukong.store.manifest import Manifest, Stage

DAY = 86_400.0


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Manifest]:
    """A released set, and a model that nothing needs, of 40 days ago."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("WUKONG_HOME", str(tmp_path / "home"))
    monkeypatch.setenv(fence.VARIABLE, "")
    root = storage.from_path(tmp_path / "data" / "demo")
    crawl = Stage(root, "crawl", {}).commit([])
    filtered = Stage(root, "filter", {}, [crawl]).commit([])
    model = Stage(root, "pretrain", {}, [filtered])
    storage.write_bytes(model.path("model/weights"), b"0" * 2048)
    outputs = [crawl, filtered, Stage(root, "release", {}, [filtered]).commit([]), model.commit([])]
    then = time.time() - 40 * DAY
    for file in tmp_path.rglob("*"):
        if file.is_file():
            os.utime(file, (then, then))
    return outputs


def place_of(made: list[Manifest]) -> str:
    return made[0].uri.rsplit("/", 3)[0]


def test_without_delete_it_only_lists(made: list[Manifest]) -> None:
    *_, model = made
    before = storage.list_files(place_of(made))
    ended = CliRunner().invoke(app, ["gc", "--storage", place_of(made)])
    assert ended.exit_code == 0, ended.output
    lines = ended.output.splitlines()
    assert lines[0].split() == ["place", "stage", "size", "age", "why"]
    assert lines[1].split(maxsplit=5)[:2] == [f"demo/pretrain/{model.uri.rsplit('/', 1)[1]}", "pretrain"]
    assert "40.0 d" in lines[1] and lines[1].endswith("no run, alias or release leads to it")
    assert [line.split(", ")[0] for line in lines if line.startswith("kept")] == ["kept: 1 outputs", "kept: 2 outputs"]
    assert "MLflow was not asked" in ended.output and "1 places, 2." in lines[-1] and "say --delete" in lines[-1]
    assert storage.list_files(place_of(made)) == before


@pytest.mark.parametrize("address", [None, "http://127.0.0.1:9"])
def test_it_deletes_nothing_where_it_does_not_know_the_aliases(
    made: list[Manifest], monkeypatch: pytest.MonkeyPatch, address: str | None
) -> None:
    if address:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    before = storage.list_files(place_of(made))
    ended = CliRunner().invoke(app, ["gc", "--storage", place_of(made), "--delete"])
    assert isinstance(ended.exception, ConfigError) and "--without-mlflow" in str(ended.exception)
    assert storage.list_files(place_of(made)) == before


def test_it_deletes_and_says_so_to_programs(made: list[Manifest]) -> None:
    *kept, model = made
    arguments = ["gc", "--storage", place_of(made), "--delete", "--without-mlflow", "--json"]
    ended = CliRunner().invoke(app, arguments)
    assert ended.exit_code == 0, ended.output
    said = json.loads(ended.stdout)
    (gone,) = said["garbage"]
    assert (gone["uri"], gone["stage"], gone["deleted"]) == (model.uri, "pretrain", True)
    assert said["bytes"] == gone["bytes"] > 2048 and said["mlflow"] is False
    assert {each["reason"]: each["outputs"] for each in said["kept"]} == {
        "releases": 1,
        "what these were made from": 2,
    }
    assert not storage.list_files(model.uri)
    assert all(storage.exists(f"{each.uri}/manifest.json") for each in kept)
    again = CliRunner().invoke(app, [*arguments[:-1]])
    assert "Nothing is to be deleted" in again.output


def test_nothing_is_deleted_that_is_younger_than_asked(made: list[Manifest]) -> None:
    ended = CliRunner().invoke(app, ["gc", "--storage", place_of(made), "--older-than", "41", "--json"])
    assert json.loads(ended.stdout)["garbage"] == []
