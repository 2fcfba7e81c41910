"""What a training run does after a failure: which ones end it, and when it has failed too often."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import ray
from ray.train import ControllerError, WorkerGroupError

from ray_jobs import training
from wukong import fence, storage
from wukong.config import Training
from wukong.errors import ConfigError, DataError, StorageError

SETTINGS = Training(max_failures=2)


@pytest.fixture
def uri(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv(fence.VARIABLE, "")
    return storage.from_path(tmp_path)


def lost() -> WorkerGroupError:
    return WorkerGroupError("a worker was lost", {0: RuntimeError("the node is gone")})


def failing(errors: Iterator[Exception | None], then: Callable[[int], None] = lambda _: None) -> Callable[[int], None]:
    """A training that fails with these errors, one after another, and does something before each."""

    def fit(failed: int) -> None:
        then(failed)
        if (error := next(errors)) is not None:
            raise error

    return fit


def test_failures_are_counted_from_the_last_checkpoint(uri: str) -> None:
    def checkpoint(failed: int) -> None:
        if failed in (2, 4):  # each time after two failures without progress
            storage.write_json(f"{uri}/one/checkpoint_{failed:09d}-0a/checkpoint.json", {})

    errors = iter([lost(), lost(), lost(), lost(), lost(), lost(), None])
    training._until_trained(failing(errors, checkpoint), "pretrain", SETTINGS, uri)
    assert next(errors, "none is left") == "none is left"


def test_too_many_failures_without_a_checkpoint_end_it(uri: str, caplog: pytest.LogCaptureFixture) -> None:
    errors = iter([lost(), lost(), lost(), None])
    with pytest.raises(WorkerGroupError, match="a worker was lost"):
        training._until_trained(failing(errors), "pretrain", SETTINGS, uri)
    assert next(errors) is None
    assert "pretrain failed and goes on from its start; failure 2 of at most 2" in caplog.text


@pytest.mark.parametrize("error", [ConfigError("epochs: 0"), DataError("a shard is cut short")])
def test_errors_that_would_come_again_end_it_at_once(uri: str, error: Exception) -> None:
    # The other worker waits for the first one in a collective, and fails with it.
    failed = WorkerGroupError("worker 1 failed", {0: RuntimeError("connection reset by peer"), 1: error})
    with pytest.raises(type(error), match=str(error)):
        training._until_trained(failing(iter([failed])), "pretrain", SETTINGS, uri)


def test_a_store_that_was_away_is_asked_again(uri: str) -> None:
    away = WorkerGroupError("worker 0 failed", {0: StorageError("the object store is away")})
    training._until_trained(failing(iter([away, None])), "pretrain", SETTINGS, uri)


def test_an_older_attempt_does_not_begin_again(uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = storage.from_path(tmp_path / "root")
    fence.claim(root, "run", "pretrain")
    old = storage.join(root, "runs", "run", "attempts", "pretrain", f"{fence.attempt()}.json")
    fence.claim(root, "run", "pretrain")
    monkeypatch.setenv(fence.VARIABLE, old)
    with pytest.raises(fence.FencedError):
        training._until_trained(failing(iter([lost()])), "pretrain", SETTINGS, uri)


def test_machines_that_never_come_are_named(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 16.0})
    never = [ControllerError(TimeoutError("timed out after 60 seconds")) for _ in range(3)]
    settings = Training(max_failures=2, workers=4, gpus_per_worker=1)
    with pytest.raises(ConfigError) as caught:
        training._until_trained(failing(iter(never)), "finetune", settings, uri)
    assert str(caught.value) == (
        "4 workers of finetune, with one core and 1 GPUs each, could not be started: the cluster has 16 cores and 0 "
        "GPUs (timed out after 60 seconds). Add machines, or set finetune.workers or finetune.min_workers lower"
    )
