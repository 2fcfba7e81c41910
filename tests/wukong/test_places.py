"""What the evaluate stage is given to measure a registered model on another run's test set."""

from pathlib import Path
from typing import Any

import pytest

from wukong import config, places, storage
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
