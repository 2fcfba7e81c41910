"""Experiments in storage: the same experiment has one URI, and what is read is what was stored."""

from pathlib import Path

from wukong.config import documents, stored
from wukong.config.experiment import Experiment
from wukong.store import storage


def experiment(folder: Path, *overrides: str) -> Experiment:
    text = (
        f'{{name: demo, storage: {storage.from_path(folder)}, crawl: {{queries: "file:///q", endpoint: "http://s"}}}}'
    )
    return documents.loads(text, list(overrides))


def test_what_is_read_is_what_was_stored(tmp_path: Path) -> None:
    made = experiment(tmp_path, "about=悟空", "seed=3")
    uri = stored.store(made)
    assert uri.startswith(f"{made.root}/experiments/")
    assert stored.load(uri) == made


def test_an_experiment_has_one_uri_and_another_has_another(tmp_path: Path) -> None:
    first = stored.store(experiment(tmp_path))
    assert stored.store(experiment(tmp_path, "seed=0")) == first
    assert stored.store(experiment(tmp_path, "seed=1")) != first
