"""A training stage that is killed at its end, and one that an older attempt disturbs: no work and no model is lost."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from test_training_validation import Given, InProcess, experiment
from test_training_validation import given as given  # noqa: PLC0414 - the fixture
from test_training_validation import in_process as in_process  # noqa: PLC0414 - the fixture
from test_training_validation import logged as logged  # noqa: PLC0414 - the fixture

from ray_jobs import training
from wukong.errors import StorageError
from wukong.model import saved_model
from wukong.stages import places
from wukong.store import fence, lease, storage
from wukong.store.fence import FencedError
from wukong.store.manifest import Manifest, describe
from wukong.train import checkpoint


def train(root: Path, given: Given, sources: tuple[str, ...] = ("*",)) -> Manifest:
    """Run the stage as the next attempt of a run."""
    settings = experiment(storage.from_path(root))
    settings = settings.model_copy(update={"pretrain": settings.pretrain.model_copy(update={"sources": sources})})
    fence.claim(settings.root, "run", "pretrain")
    return training.run("pretrain", settings, given.filtered)


@contextmanager
def killed_at(number: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Let the process "die" before one of its writes and deletions after the training; gives a list of those done."""
    done: list[str] = []
    is_dead = ends = False

    def live(action: str, uri: str) -> None:
        nonlocal is_dead, ends
        ends = ends or "/model/" in uri
        if is_dead:
            raise StorageError("the process is dead")
        if uri.endswith(lease.NAME) and action == "write_if":
            return  # of its own thread
        if ends and len(done) == number:
            is_dead = True
            raise KeyboardInterrupt
        if ends:
            done.append(f"{action} {uri}")

    def watched(name: str) -> None:
        original = getattr(storage, name)

        def call(uri: str, *arguments: Any) -> Any:
            live(name, uri)
            return original(uri, *arguments)

        patch.setattr(storage, name, call)

    with monkeypatch.context() as patch:
        for name in ("write_bytes", "write_json", "write_if", "delete"):
            watched(name)
        yield done


@pytest.mark.long
@pytest.mark.usefixtures("logged")
def test_one_that_is_killed_at_its_end_does_not_train_again(
    given: Given, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    sources = ("*/train/*",)  # the counted rows are a work file too
    with killed_at(-1, monkeypatch) as steps:
        undisturbed = train(tmp_path / "whole", given, sources)
    assert [step.split("/")[-1] for step in steps][-3:] == ["_lease.json", "_ray", "_rows.json"]
    assert len(steps) > 8
    for number, step in enumerate(steps):
        root = tmp_path / str(number)
        with killed_at(number, monkeypatch), pytest.raises(KeyboardInterrupt):
            train(root, given, sources)
        caplog.clear()
        again = train(root, given, sources)
        assert again.digest == undisturbed.digest, step
        assert "step 1 to" not in caplog.text, f"killed before {step}, it began again"
        assert not [name for name in storage.list_names(again.uri) if name.startswith("_")], step
        assert all(describe(again.uri, part.path, part.rows) == part for part in again.parts), step


@pytest.mark.usefixtures("logged")
def test_an_older_attempt_writes_over_no_newer_model(
    given: Given, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The older one is held up before it stores its model; on GPUs the newer one has other weights."""
    save, load = saved_model.save_safetensors, checkpoint.load_weights
    newer: list[Manifest] = []

    def held_up(state: dict[str, torch.Tensor]) -> bytes:
        monkeypatch.setattr(saved_model, "save_safetensors", save)
        monkeypatch.setattr(checkpoint, "load_weights", on_gpus)
        own = fence.claimed()
        newer.append(train(tmp_path, given))
        monkeypatch.setenv(fence.VARIABLE, own)
        return save(state)

    def on_gpus(uri: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        state, progress = load(uri)
        return {name: value + 1e-3 if value.is_floating_point() else value for name, value in state.items()}, progress

    monkeypatch.setattr(saved_model, "save_safetensors", held_up)
    with pytest.raises(FencedError):
        train(tmp_path, given)
    (made,) = newer
    assert all(describe(made.uri, part.path, part.rows) == part for part in made.parts)


@pytest.mark.usefixtures("logged")
def test_an_older_attempt_deletes_no_newer_checkpoints(
    given: Given, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The older one is held up where it has stored its model; the newer one is in the middle of its training."""
    settings = experiment(storage.from_path(tmp_path))
    stage = places.training("pretrain", settings, given.filtered, given.trained, None)
    write = storage.write_json
    begun: list[str] = []

    def held_up(uri: str, value: object) -> None:
        write(uri, value)
        if uri.endswith("measured.json") and not begun:
            own = fence.claimed()
            fence.claim(settings.root, "run", "pretrain")
            begun.append(storage.join(stage.path("_checkpoints"), fence.attempt()))
            writer = checkpoint.Writer(stage.path("_checkpoints"))
            model = torch.nn.Linear(2, 2)
            writer.save(model, torch.optim.AdamW(model.parameters()), 1, {})
            writer.wait()
            writer.close()
            monkeypatch.setenv(fence.VARIABLE, own)

    monkeypatch.setattr(storage, "write_json", held_up)
    with pytest.raises(FencedError):
        train(tmp_path, given)
    assert storage.list_files(begun[0], "checkpoint.json") and stage.finished() is None


@pytest.mark.usefixtures("logged")
def test_what_cannot_be_deleted_does_not_fail_what_is_finished(
    given: Given, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refused(_uri: str) -> None:
        raise StorageError("no permission")

    with monkeypatch.context() as patch:
        patch.setattr(training.storage, "delete", lambda uri: None if "_checkpoints/" in uri else refused(uri))
        made = train(tmp_path, given)
    assert "are left, and deleted when it is used again: no permission" in caplog.text
    fits = InProcess.fits
    assert storage.list_files(storage.join(made.uri, "_checkpoints"), "checkpoint.json")
    assert train(tmp_path, given) == made and InProcess.fits == fits
    assert not storage.list_files(storage.join(made.uri, "_checkpoints"))
