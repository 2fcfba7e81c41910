"""``wukong diff`` on crawls in a folder: how they are named, and what is printed."""

import json
from pathlib import Path
from typing import Any

import pytest
from crawl_tables import crawl
from typer.testing import CliRunner

from cli.main import app
from wukong.config import documents
from wukong.errors import DataError
from wukong.runs import run_records
from wukong.runs.run_records import Record
from wukong.store import storage
from wukong.store.manifest import Manifest, Stage


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A storage with two runs: of three URLs one is gone and one is new, and a picture has changed."""
    monkeypatch.setenv("WUKONG_HOME", str(tmp_path / "home"))
    place = storage.from_path(tmp_path / "data")
    both = {"url": "http://a.test/both.jpg", "sha256": "a" * 64, "caption": "[红]的花"}
    gone, new = (
        {"url": f"http://b.test/{name}.jpg", "sha256": "b" * 64, "queries": ["猫"]} for name in ("gone", "new")
    )
    refused = {**gone, "status": "http_error", "http_status": 404, "sha256": None}
    begin(place, "monday", crawl(f"{place}/x", [both, gone], min_side=200, seed={"a": 1}))
    begin(place, "tuesday", crawl(f"{place}/x", [{**both, "sha256": "c" * 64}, refused, new], min_side=100))
    return place


def begin(place: str, run: str, made: Manifest | None) -> None:
    named = {"name": "x", "storage": place, "crawl": {"queries": "file:///q", "endpoint": "http://site.test"}}
    experiment = documents.parse(named)
    run_records.claim(experiment, run)
    if made:
        record = Record(stage="crawl", state="succeeded", manifest=storage.join(made.uri, "manifest.json"))
        run_records.write(experiment, run, record)


def wukong(*arguments: str) -> str:
    ended = CliRunner().invoke(app, ["diff", *arguments], catch_exceptions=False)
    assert ended.exit_code == 0
    return ended.stdout


def test_what_differs_is_told_to_programs(place: str) -> None:
    found: dict[str, Any] = json.loads(wukong("monday", "tuesday", "--storage", place, "--json"))
    assert found["kinds"] == {"only_first": 1, "only_second": 1, "other_picture": 1, "other_captions": 0, "same": 0}
    assert found["why"] == {"only_first": {"http_error 404": 1}, "only_second": {"not_found": 1}}
    assert found["config"] == {"min_side": [200, 100], "seed.a": [1, None]}
    assert found["queries"] == found["hosts"] == []
    assert found["examples"]["only_second"][0]["url"] == "http://b.test/new.jpg"
    again = json.loads(wukong(found["first"], found["second"].removesuffix("/manifest.json"), "--json"))
    assert again == found, "by address"


def test_what_differs_is_told_to_people(place: str) -> None:
    lines = [" ".join(line.split()) for line in wukong("monday", "tuesday", "--storage", place).splitlines()]
    for line in (
        "pairs only in the first 1 there in the second: 1 http_error 404",
        "pairs only in the second 1 there in the first: 1 not_found",
        "http_error 404 0 1 +1",
        "min_side 200 100",
        "http://a.test/both.jpg",
        "first success, picture aaaaaaaaaaaa, [红]的花",
        "first not found by a search",
    ):
        assert line in lines
    shown = wukong("monday", "tuesday", "--storage", place, "--examples", "0")
    assert "http://" not in shown


def test_what_is_no_crawl_is_refused(place: str) -> None:
    begin(place, "wednesday", None)
    with pytest.raises(DataError, match=r"the crawl of the run wednesday has not finished: run it again"):
        wukong("monday", "wednesday", "--storage", place)
    filtered = Stage(f"{place}/x", "filter", {}).commit([])
    with pytest.raises(DataError, match=r"is the output of the stage filter: name a crawl"):
        wukong("monday", filtered.uri, "--storage", place)
    with pytest.raises(DataError, match=r"no run 'friday'"):
        wukong("monday", "friday", "--storage", place)
