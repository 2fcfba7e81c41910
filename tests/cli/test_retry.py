"""``wukong run --retry-failed``: which crawl it goes on from."""

from pathlib import Path

import pytest

from cli.run import retrying
from wukong.config import documents
from wukong.config.experiment import Experiment
from wukong.errors import ConfigError
from wukong.runs import run_records
from wukong.runs.run_records import Record
from wukong.store import storage
from wukong.store.manifest import Stage


@pytest.fixture
def experiment(tmp_path: Path) -> Experiment:
    crawl = {"queries": "file:///q", "endpoint": "http://site.test"}
    return documents.parse({"name": "x", "storage": storage.from_path(tmp_path), "crawl": crawl})


def finish(experiment: Experiment, name: str) -> str:
    """A run whose crawl came to its end; gives the manifest's URI."""
    stage = Stage(experiment.root, "crawl", {"made by": name})
    uri = storage.join(stage.commit([]).uri, "manifest.json")
    if run_records.claimed(experiment, name) is None:
        run_records.claim(experiment, name)
    run_records.write(experiment, name, Record(stage="crawl", state="succeeded", manifest=uri))
    return uri


def test_it_goes_on_from_the_last_crawl(experiment: Experiment) -> None:
    finish(experiment, "first")
    last = finish(experiment, "second")
    changed = retrying(experiment, "third")
    assert changed.crawl.retry_failed
    assert changed.crawl.previous == last
    same = {"previous": None, "retry_failed": False}
    assert changed.model_copy(update={"crawl": changed.crawl.model_copy(update=same)}) == experiment


def test_a_retry_that_goes_on_under_its_name_takes_over_the_same_crawl(experiment: Experiment) -> None:
    finish(experiment, "first")
    begun = retrying(experiment, "retry")
    run_records.claim(begun, "retry")
    finish(experiment, "retry")  # its crawl is the newest now
    again = retrying(experiment, "retry")
    assert again == begun
    run_records.claim(again, "retry")
    assert retrying(experiment, "other").crawl.previous != begun.crawl.previous


def test_without_a_crawl_it_says_what_to_do(experiment: Experiment) -> None:
    run_records.write(experiment, "first", Record(stage="crawl", state="failed", error="refused"))
    with pytest.raises(ConfigError, match=r"no crawl of the experiment 'x' has finished .* without the option first"):
        retrying(experiment, "second")
