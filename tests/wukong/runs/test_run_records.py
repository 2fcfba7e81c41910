import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wukong.config import documents
from wukong.config.experiment import Experiment
from wukong.errors import ConfigError
from wukong.runs import run_records
from wukong.runs.run import Run
from wukong.runs.run_records import Record
from wukong.stages import run_paths
from wukong.store import storage

TEXTS = {"about", "registry.alias"}


@pytest.fixture
def experiment(tmp_path: Path) -> Experiment:
    crawl = {"queries": "file:///q", "endpoint": "http://site.test"}
    return documents.parse({"name": "x", "storage": storage.from_path(tmp_path), "crawl": crawl})


def test_records_come_back_in_the_order_of_the_pipeline(experiment: Experiment) -> None:
    failed = Record(stage="validate", state="failed", error="too few pairs")
    for record in (failed, Record(stage="crawl", state="succeeded", manifest="file:///m", seconds=1.5)):
        run_records.write(experiment, "first", record)
    assert [record.stage for record in [*Run.of(experiment, "first").records.values()]] == ["crawl", "validate"]
    assert run_records.read(experiment, "first", "validate") == failed
    assert run_records.read(experiment, "first", "evaluate") is None
    assert [*Run.of(experiment, "second").records.values()] == []


@pytest.mark.parametrize("name", ["", "../up", "a/b", "-x", "x" * 64])
def test_a_name_that_would_escape_its_folder_is_refused(experiment: Experiment, name: str) -> None:
    with pytest.raises(ConfigError, match="run name"):
        run_paths.uri_of(experiment, name, "crawl.json")
    with pytest.raises(ConfigError, match="run name"):
        run_records.claim(experiment, name)
    assert not storage.list_files(experiment.root)


def changed(experiment: Experiment, **sections: Any) -> Experiment:
    return documents.parse(experiment.model_dump(mode="json") | sections)


def test_of_runs_that_take_a_name_at_once_one_experiment_gets_it(experiment: Experiment) -> None:
    def take(seed: int) -> bool:
        try:
            run_records.claim(changed(experiment, seed=seed), "first")
        except ConfigError:
            return False
        return True

    with ThreadPoolExecutor(8) as threads:
        taken = list(threads.map(take, range(8)))
    assert sum(taken) == 1
    there = run_records.claimed(experiment, "first")
    assert there is not None and there.experiment["seed"] == taken.index(True)


def test_a_name_belongs_to_one_experiment(experiment: Experiment) -> None:
    run_records.claim(experiment, "first")
    run_records.claim(experiment, "first", "again")  # the same experiment goes on under its name
    other = changed(experiment, seed=7, pretrain={"epochs": 3})
    with pytest.raises(ConfigError) as refused:
        run_records.claim(other, "first")
    message = str(refused.value)
    for part in ("'first' belongs to another experiment", "seed: 0 there, 7 now", "pretrain.epochs: 20 there, 3 now"):
        assert part in message
    assert "another --name" in message and "the config that the name was begun with" in message
    found = run_records.claimed(experiment, "first")
    assert found is not None and (found.holder, found.experiment["seed"]) == ("again", 0), "the refused one changed it"
    run_records.claim(other, "second")


@given(
    changes=st.dictionaries(
        st.sampled_from(["seed", "about", "crawl.concurrency", "registry.alias", "model.embedding", "pretrain.epochs"]),
        st.integers(1, 3),
        max_size=4,
    )
)
def test_exactly_what_was_changed_differs(changes: dict[str, int]) -> None:
    crawl = {"queries": "file:///q", "endpoint": "http://site.test"}
    before: dict[str, Any] = {"name": "x", "crawl": crawl}
    overrides = [f"{key}={json.dumps(str(value) if key in TEXTS else value)}" for key, value in changes.items()]
    first = documents.parse(before).model_dump(mode="json")
    second = documents.loads(json.dumps(before), overrides).model_dump(mode="json")
    assert set(run_records.differences(first, second)) == set(changes)
    assert not run_records.differences(second, second)


def test_a_name_taken_before_a_key_was_known_stays_its_experiments(experiment: Experiment) -> None:
    run_records.claim(experiment, "first")
    uri = run_paths.uri_of(experiment, "first", "experiment.json")
    known = storage.read_json(uri)
    del known["experiment"]["registry"]
    storage.write_json(uri, known)
    run_records.claim(experiment, "first")
