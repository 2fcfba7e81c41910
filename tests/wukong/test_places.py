"""What the seeds decide; what the evaluate stage is given to measure a registered model on another run's test set."""

from pathlib import Path
from typing import Any

import pytest

from wukong import config, places, stages, storage
from wukong.config import Experiment
from wukong.errors import ConfigError, DataError
from wukong.manifest import Manifest, Stage, load


def experiment(folder: Path, layers: int = 2, **changes: Any) -> Experiment:
    crawl = {"queries": "file:///q", "endpoint": "http://site.test"}
    settings = {"model": {"text": {"layers": layers}}, **changes}
    return config.parse({"name": "x", "storage": storage.from_path(folder), "crawl": crawl, **settings})


def complete(settings: Experiment, crawled: str) -> dict[str, Manifest]:
    """Leave what a run leaves, without its work."""
    filtered = places.filtering(settings, Stage(settings.root, "crawl", {"of": crawled}).commit([])).commit([])
    found = {"filter": filtered}
    computed = places.features(settings, filtered).commit([])
    for name in ("pretrain", "finetune"):
        found[name] = places.training(name, settings, filtered, computed, found.get("pretrain")).commit([])
    measured = places.features(settings, filtered, pairs="holdouts").commit([])
    found["evaluate"] = places.evaluation(settings, found, [measured]).commit([])
    return found


def test_a_model_that_was_measured_on_the_test_set_is_found_there(tmp_path: Path) -> None:
    """The champion's own run and the new evaluation have one key, so nothing is measured twice."""
    own = complete(settings := experiment(tmp_path), "one crawl")
    other = complete(later := experiment(tmp_path, layers=3, evaluate={"batch_size": 9}), "another crawl")
    given, uris = places.rematch(settings, own["evaluate"], own["finetune"])
    parents = {parent.stage: parent for parent in map(load, uris)}
    assert given == settings and places.finished("evaluate", given, parents) == own["evaluate"]
    given, uris = places.rematch(later, other["evaluate"], own["finetune"])
    parents = {parent.stage: parent for parent in map(load, uris)}
    assert list(parents) == ["filter", "pretrain", "finetune"]
    assert [parents["filter"], parents["finetune"]] == [other["filter"], own["finetune"]]
    assert (given.model.text.layers, given.evaluate) == (2, later.evaluate), "its model, the other's test set"
    assert places.finished("evaluate", given, parents) is None


def test_what_prevents_an_evaluation_is_named(tmp_path: Path) -> None:
    own, other = (complete(experiment(tmp_path, layers), name) for layers, name in ((2, "one"), (3, "two")))
    settings = experiment(tmp_path, 3)
    unknown = dict(own["finetune"].config) | {"model": {"image": {"name": "a-tower-of-later", "depth": 9}}}
    strange = own["finetune"].model_copy(update={"config": unknown})
    with pytest.raises(ConfigError, match=r"does not know(.|\n)*depth"):
        places.rematch(settings, other["evaluate"], strange)
    with pytest.raises(DataError, match="names no pre-trained model"):
        places.rematch(settings, other["evaluate"], own["pretrain"])
    changed = other["filter"].model_copy(update={"counts": {"train": 1}})
    storage.write_json(f"{changed.uri}/manifest.json", changed.model_dump(mode="json"))
    with pytest.raises(DataError, match="have changed since they were measured on, for instance by a takedown"):
        places.rematch(settings, other["evaluate"], own["finetune"])
    storage.delete(own["pretrain"].uri)
    with pytest.raises(DataError, match="no manifest at"):
        places.rematch(settings, complete(settings, "three")["evaluate"], own["finetune"])


def test_the_seed_of_training_is_in_no_key_before_training(tmp_path: Path) -> None:
    """Three trainings of one set of pairs share all that is made before them, to the card of the data."""
    (tmp_path / "q").write_text("猫\n", encoding="utf-8")
    crawl = {"queries": storage.from_path(tmp_path / "q"), "endpoint": "http://site.test"}
    first, second = (experiment(tmp_path, seed=seed, crawl=crawl) for seed in (0, 1))
    crawled = Stage(first.root, "crawl", {}).commit([])
    filtered = places.filtering(first, crawled).commit([])
    for place in (
        lambda settings: places.crawl(settings).stage,
        lambda settings: places.filtering(settings, crawled),
        lambda settings: places.validation(settings, filtered),
        lambda settings: places.features(settings, filtered),
        lambda settings: places.features(settings, filtered, pairs="holdouts"),
    ):
        assert place(first).key == place(second).key
    keys = {places.training("pretrain", settings, filtered, None, None).key for settings in (first, second)}
    assert len(keys) == 2


def test_the_seed_of_the_data_is_in_the_keys_of_the_data(tmp_path: Path) -> None:
    first, second = (experiment(tmp_path, filter={"seed": seed}) for seed in (0, 1))
    crawled = Stage(first.root, "crawl", {}).commit([])
    assert places.filtering(first, crawled).key != places.filtering(second, crawled).key
    filtered = places.filtering(first, crawled).commit([])
    assert places.validation(first, filtered).key != places.validation(second, filtered).key, "its card shows others"


def test_keys_of_the_data_are_those_of_the_one_seed_that_there_was(tmp_path: Path) -> None:
    """One seed was of the data and of training; the filter's stands where it stood, so data of then are found."""
    settings = experiment(tmp_path, seed=5)
    assert stages.of("filter").config(settings)["seed"] == 0
    gate = stages.of("validate").config(settings)
    assert gate["seed"] == 0 and "seed" not in gate["filter"]
    later = experiment(tmp_path, filter={"seed": 7})
    assert (stages.of("filter").config(later)["seed"], stages.of("validate").config(later)["seed"]) == (7, 7)
