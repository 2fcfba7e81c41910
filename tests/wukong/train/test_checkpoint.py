import errno
import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from made_again import cut, obey
from torch import nn

from wukong.errors import DataError, StorageError
from wukong.store import fence, storage
from wukong.train import checkpoint


@pytest.fixture(autouse=True)
def _no_attempt() -> Iterator[None]:
    before = os.environ.pop(fence.VARIABLE, None)
    yield
    os.environ.pop(fence.VARIABLE, None)
    if before is not None:
        os.environ[fence.VARIABLE] = before


def make(value: float = 1.0) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A model with a locked part, and its optimiser after one step."""
    model = nn.ModuleDict({"tower": nn.Linear(2, 2), "head": nn.Linear(2, 3)})
    model["tower"].requires_grad_(False)
    for weight in model.parameters():
        nn.init.constant_(weight, value)
    optimizer = torch.optim.AdamW(model["head"].parameters(), lr=0.1)
    model["head"](model["tower"](torch.ones(1, 2))).sum().backward()
    optimizer.step()
    return model, optimizer


def written(uri: str, steps: list[int], keep: int = 2) -> None:
    writer = checkpoint.Writer(uri, keep)
    model, optimizer = make()
    for step in steps:
        writer.save(model, optimizer, step, {"step": step})
    writer.wait()
    writer.close()


def test_what_was_saved_is_restored(tmp_path: Path) -> None:
    uri = storage.from_path(tmp_path)
    written(uri, [7])
    expected, expected_optimizer = make()
    model, optimizer = make(3.0)
    tower = model["tower"].weight.clone()
    found = checkpoint.newest(uri)
    assert found is not None
    assert checkpoint.load(found, model, optimizer) == {"step": 7}
    assert torch.equal(model["head"].weight, expected["head"].weight)
    restored, stored = optimizer.state_dict(), expected_optimizer.state_dict()
    for number, entry in stored["state"].items():
        assert all(torch.equal(value, restored["state"][number][name]) for name, value in entry.items())
    assert [group | {"betas": tuple(group["betas"])} for group in restored["param_groups"]] == stored["param_groups"]
    # The locked tower is not stored: it stays as it is.
    assert torch.equal(model["tower"].weight, tower)
    assert set(checkpoint.load_weights(found)[0]) == {"head.weight", "head.bias"}


def test_weights_that_change_during_the_upload_do_not_reach_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uri, go_on = storage.from_path(tmp_path), threading.Event()
    save_file = checkpoint.save_file

    def slow(tensors: dict[str, torch.Tensor], path: Path) -> None:
        assert go_on.wait(30)
        save_file(tensors, path)

    monkeypatch.setattr(checkpoint, "save_file", slow)
    writer, before = checkpoint.Writer(uri), None
    for value in (1.0, 5.0):  # the second is copied to memory that has been used before
        go_on.clear()
        model, optimizer = make(value)
        expected, moments = model["head"].weight.clone(), optimizer.state_dict()["state"][0]["exp_avg"].clone()
        writer.save(model, optimizer, int(value), {})
        assert writer.busy and checkpoint.newest(uri) == before
        with torch.no_grad():
            model["head"].weight.fill_(9.0)
            optimizer.state_dict()["state"][0]["exp_avg"].fill_(9.0)
        go_on.set()
        writer.wait()
        before = checkpoint.newest(uri)
        assert before is not None
        restored, restored_optimizer = make()
        checkpoint.load(before, restored, restored_optimizer)
        assert torch.equal(restored["head"].weight, expected)
        assert torch.equal(restored_optimizer.state_dict()["state"][0]["exp_avg"], moments)
    writer.close()
    assert writer.seconds > 0


def test_a_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(checkpoint, "save_file", full)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    writer = checkpoint.Writer(storage.from_path(tmp_path / "checkpoints"))
    writer.save(*make(), 3, {})
    with pytest.raises(StorageError, match=rf"step 3 cannot be written to {tmp_path}/.*No space left.*TMPDIR"):
        writer.wait()
    writer.close()
    assert checkpoint.newest(storage.from_path(tmp_path / "checkpoints")) is None


def test_the_best_is_kept_beside_the_newest(tmp_path: Path) -> None:
    writer = checkpoint.Writer(storage.from_path(tmp_path), keep=1)
    model, optimizer = make()
    best = writer.place(2)
    for step in range(1, 6):
        writer.save(model, optimizer, step, {}, best if step == 2 else None, best if step >= 2 else None)
    writer.wait()
    writer.close()
    kept = {file.split("checkpoint_")[1][:9] for file in storage.list_files(storage.from_path(tmp_path))}
    assert kept == {"000000002", "000000005"} and storage.exists(f"{best}/checkpoint.json")


def test_the_newest_are_kept(tmp_path: Path) -> None:
    uri = storage.from_path(tmp_path)
    written(uri, [9, 10, 11, 12], keep=3)
    files = storage.list_files(uri)
    assert sorted({file.split("checkpoint_")[1][:9] for file in files}) == ["000000010", "000000011", "000000012"]
    assert len(files) == 3 * 4


def test_one_that_was_not_completed_is_not_found(tmp_path: Path) -> None:
    uri = storage.from_path(tmp_path)
    assert checkpoint.newest(uri) is None
    written(uri, [1, 2])
    found = checkpoint.newest(uri)
    assert found is not None and "checkpoint_000000002-" in found
    storage.delete(f"{found}/checkpoint.json")
    assert "checkpoint_000000001-" in (checkpoint.newest(uri) or "")


@pytest.mark.parametrize("damages", [cut, storage.delete])
@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "progress.json", "checkpoint.json"])
def test_of_one_that_is_damaged_the_message_says_how_the_one_before_is_used(
    tmp_path: Path, name: str, damages: Callable[[str], None]
) -> None:
    uri = storage.from_path(tmp_path)
    written(uri, [1, 2])
    found = checkpoint.newest(uri)
    assert found is not None
    damages(storage.join(found, name))
    with pytest.raises(DataError, match=r"checkpoint_000000002-.* cannot be read") as refused:
        checkpoint.load(found, *make())
    assert obey(refused.value) == [found]
    before = checkpoint.newest(uri)
    assert before is not None and "checkpoint_000000001-" in before
    assert checkpoint.load(before, *make()) == {"step": 1}


def test_a_full_disk_under_a_checkpoint_that_is_read_is_no_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(storage.from_path(tmp_path), [1])
    found = checkpoint.newest(storage.from_path(tmp_path))
    assert found is not None

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(tempfile, "TemporaryDirectory", full)
    with pytest.raises(StorageError, match=r"cannot be copied to .*No space left.*TMPDIR"):
        checkpoint.load(found, *make())


def test_an_older_attempt_completes_no_checkpoint(tmp_path: Path) -> None:
    root = storage.from_path(tmp_path / "root")
    uri = storage.from_path(tmp_path / "checkpoints")
    fence.claim(root, "run", "pretrain")
    old = os.environ[fence.VARIABLE]
    older = checkpoint.Writer(uri)
    fence.claim(root, "run", "pretrain")
    written(uri, [5])
    os.environ[fence.VARIABLE] = old
    older.save(*make(), 6, {})
    with pytest.raises(fence.FencedError, match="writes no more"):
        older.wait()
    older.close()
    assert "checkpoint_000000005-" in (checkpoint.newest(uri) or "")


def test_a_checkpoint_that_cannot_be_written_ends_the_run(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    writer = checkpoint.Writer(storage.from_path(tmp_path / "file"))
    writer.save(*make(), 1, {})
    with pytest.raises(Exception, match="file"):
        writer.wait()
    writer.close()


def test_the_error_of_a_checkpoint_that_is_written_while_memory_is_prepared_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after the first step of a training with a checkpoint after each: memory is prepared in its second step."""
    may_fail = threading.Event()

    def away(_local: Path, _uri: str) -> None:
        may_fail.wait()
        raise StorageError("the object store is away")

    monkeypatch.setattr(storage, "upload", away)
    writer, given = checkpoint.Writer(storage.from_path(tmp_path)), make()
    writer.save(*given, 1, {})
    writer.prepare(*given)
    may_fail.set()
    with pytest.raises(StorageError, match="the object store is away"):
        writer.save(*given, 2, {})
    writer.close()
