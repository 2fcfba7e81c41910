from pathlib import Path

import pytest

from wukong import config, run, storage
from wukong.errors import ConfigError


@pytest.fixture
def experiment(tmp_path: Path) -> config.Experiment:
    crawl = {"queries": "file:///q", "endpoint": "http://site.test"}
    return config.parse({"name": "x", "storage": storage.from_path(tmp_path), "crawl": crawl})


def test_records_come_back_in_the_order_of_the_pipeline(experiment: config.Experiment) -> None:
    failed = run.Record(stage="validate", state="failed", error="too few pairs")
    for record in (failed, run.Record(stage="crawl", state="succeeded", manifest="file:///m", seconds=1.5)):
        run.write(experiment, "first", record)
    assert [record.stage for record in run.read_all(experiment, "first")] == ["crawl", "validate"]
    assert run.read(experiment, "first", "validate") == failed
    assert run.read(experiment, "first", "evaluate") is None
    assert run.read_all(experiment, "second") == []


@pytest.mark.parametrize("name", ["", "../up", "a/b", "-x", "x" * 64])
def test_a_name_that_would_escape_its_folder_is_refused(experiment: config.Experiment, name: str) -> None:
    with pytest.raises(ConfigError, match="run name"):
        run.uri_of(experiment, name, "crawl.json")
