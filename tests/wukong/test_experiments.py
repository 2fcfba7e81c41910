"""Experiments in storage: the same experiment has one URI, and what is read is what was stored."""

from pathlib import Path

from wukong import config, experiments, storage


def experiment(folder: Path, *overrides: str) -> config.Experiment:
    text = (
        f'{{name: demo, storage: {storage.from_path(folder)}, crawl: {{queries: "file:///q", endpoint: "http://s"}}}}'
    )
    return config.loads(text, list(overrides))


def test_what_is_read_is_what_was_stored(tmp_path: Path) -> None:
    made = experiment(tmp_path, "about=悟空", "seed=3")
    uri = experiments.store(made)
    assert uri.startswith(f"{made.root}/experiments/")
    assert experiments.load(uri) == made


def test_an_experiment_has_one_uri_and_another_has_another(tmp_path: Path) -> None:
    first = experiments.store(experiment(tmp_path))
    assert experiments.store(experiment(tmp_path, "seed=0")) == first
    assert experiments.store(experiment(tmp_path, "seed=1")) != first
