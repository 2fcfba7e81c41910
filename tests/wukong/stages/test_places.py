"""What is found before a job is started: what has finished, what other runs are making, what a rematch is given.

And what the seeds decide.
"""

import logging
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from wukong.config import documents
from wukong.config.experiment import Experiment
from wukong.config.model import ImageEncoder, Model
from wukong.crawl.status import Status
from wukong.errors import ConfigError, DataError
from wukong.stages import places
from wukong.store import fence, lease, storage
from wukong.store.manifest import Manifest, Stage, load


def experiment(folder: Path, layers: int = 2, **changes: Any) -> Experiment:
    crawl = {"queries": "file:///q", "endpoint": "http://site.test"}
    settings = {"crawl": crawl, "model": {"text": {"layers": layers}}, **changes}
    return documents.parse({"name": "x", "storage": storage.from_path(folder), **settings})


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


def test_a_model_of_another_tower_is_refused(tmp_path: Path) -> None:
    """By settings alone, so that the command line and a pod without torch refuse it too."""
    first, second = (
        experiment(tmp_path, model={"image": {"weights": "s3://b/tower", "weights_sha256": sha}})
        for sha in ("a" * 64, "b" * 64)
    )
    own = complete(first, "one crawl")
    for pairs in ("train", "holdouts"):
        places.features(first, own["filter"], own["pretrain"], pairs)
        with pytest.raises(DataError, match=r"weights_sha256 'a{64}' there, 'b{64}' now\): go on with the experiment"):
            places.features(second, own["filter"], own["pretrain"], pairs)
        changed = first.model_copy(update={"model": first.model.model_copy(update={"image": ImageEncoder()})})
        with pytest.raises(DataError, match=r"another image tower .*weights 's3://b/tower' there, 'package' now"):
            places.features(changed, own["filter"], own["pretrain"], pairs)


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


def test_a_run_that_makes_the_features_and_then_the_model_is_waited_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setenv(fence.VARIABLE, "")
    settings = experiment(tmp_path)
    filtered = places.filtering(settings, Stage(settings.root, "crawl", {}).commit([])).commit([])
    begun = threading.Event()

    def make(stage: Stage) -> Manifest:
        storage.write_json(stage.path("_checkpoints/one.json"), {})
        begun.set()
        time.sleep(0.5)
        return stage.commit([])

    def other_run() -> None:
        with places.reserved("pretrain", settings, {"filter": filtered}, "a", "pretrain") as known:
            assert known is None
            inside = places.features(settings, filtered)
            claims = fence.folder_of(settings.root, "a", "pretrain")
            for stage in (inside, None):
                place = stage or places.training("pretrain", settings, filtered, inside.finished(), None)
                with lease.held(place.uri, lambda: False, f"{claims}/00001-of-the-job.json"):
                    made = make(place)
                storage.delete(place.path(lease.NAME))
                time.sleep(0.5)  # between the stages nobody has a lease
            assert made.stage == "pretrain"

    other = threading.Thread(target=other_run)
    other.start()
    begun.wait()
    with places.reserved("pretrain", settings, {"filter": filtered}, "b", "pretrain") as known:
        assert known is not None and known.stage == "pretrain"
        assert storage.list_names(known.uri) == ["manifest.json"], "what the other left is deleted"
    other.join()
    waited = [message.rpartition("/")[0] for message in caplog.messages if message.startswith("waiting for run a (")]
    assert [message.rpartition("/")[2] for message in waited] == ["features", "pretrain"]
    files = storage.list_files(settings.root)
    assert not [uri for uri in files if uri.endswith(lease.NAME)]


def test_a_run_does_not_wait_for_its_own_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A component that was restarted goes on with the job that the one before it has started."""
    monkeypatch.setenv(fence.VARIABLE, "")
    settings = experiment(tmp_path)
    filtered = places.filtering(settings, Stage(settings.root, "crawl", {}).commit([])).commit([])
    place, claims = places.validation(settings, filtered), fence.folder_of(settings.root, "a", "validate")
    with (
        lease.held(place.uri, lambda: False, f"{claims}/00001-of-the-job.json"),
        places.reserved("validate", settings, {"filter": filtered}, "a", "validate") as known,
    ):
        assert known is None
        assert storage.read_json(place.path(lease.NAME))["attempt"].endswith("of-the-job.json")


def test_what_failed_crawls_stored_is_deleted_when_one_has_finished(tmp_path: Path) -> None:
    """As after a kill between the manifest and the deletion: the next run of the crawl finds it, and no job starts."""
    (tmp_path / "queries.txt").write_text("猫\n", encoding="utf-8")
    crawl = {"queries": storage.from_path(tmp_path / "queries.txt"), "endpoint": "http://site.test"}
    settings = experiment(tmp_path, crawl=crawl)
    counts = dict.fromkeys(["queries", "queries_failed", "urls", "transient", *(each.value for each in Status)], 0)
    failed = places.crawl(settings).stage
    made = failed.commit([], counts=counts)  # without a picture it has failed
    for name in ("parts/00000.tar", "plan/0.parquet", "search/0.parquet", "failed.json"):
        storage.write_json(failed.path(name), made.model_dump(mode="json"))
    storage.delete(failed.path("manifest.json"))
    finished = places.crawl(settings).stage.commit([], counts=counts | {"queries": 1, "urls": 1, "success": 1})
    assert places.finished("crawl", settings, {}) == finished
    assert storage.list_names(failed.uri) == ["failed.json", "parts", "plan", "search"], "a plan deletes nothing"
    with places.reserved("crawl", settings, {}, "a", "crawl") as known:
        assert known == finished
    assert storage.list_names(failed.uri) == ["failed.json"]


def test_trainings_with_other_pooled_tokens_share_the_features_of_patches(tmp_path: Path) -> None:
    keys: list[tuple[str, str]] = []
    for image in ({}, {"tokens": 9}, {"tokens": 9, "pooling": "attention"}):
        settings = experiment(tmp_path).model_copy(
            update={"model": Model.model_validate({"similarity": "token", "image": image})}
        )
        filtered = places.filtering(settings, Stage(settings.root, "crawl", {"of": "one"}).commit([])).commit([])
        computed = places.features(settings, filtered)
        keys.append((computed.key, places.training("pretrain", settings, filtered, computed.commit([]), None).key))
    features, trainings = zip(*keys, strict=True)
    assert len(set(features)) == 1 and len(set(trainings)) == 3
