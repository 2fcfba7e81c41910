"""An optimiser's state that workers share: the weights, the state and the checkpoints of one that each keeps whole."""

import json
import signal
import threading
import time
from collections.abc import Iterable
from functools import partial
from itertools import chain
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import small
import torch
import torch.distributed as dist
import workers
from free_ports import free_port
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from wukong.config.training import Training
from wukong.model.dual import DualEncoder
from wukong.store import storage
from wukong.train import checkpoint, loop, shares
from wukong.train.state import Epoch

CASES: dict[str, dict[str, Any]] = {
    "rows of an embedding": {},
    "AdamW": {"optimizer": "adamw"},
    "pieces, clipped": {"micro_batch": 2, "clip_gradient_norm": 0.01},
    "bfloat16": {"precision": "bfloat16"},
    "float16, overflowing": {"precision": "float16", "clip_gradient_norm": 0.1},
    "picture tower": {"lock": "none", "store_features": False, "views": 0},
    "picture tower, AdamW, pieces": {
        **{"lock": "none", "store_features": False, "views": 0},
        **{"optimizer": "adamw", "micro_batch": 2, "clip_gradient_norm": 0.1},
    },
}


class KilledError(Exception):
    pass


def _settings(shard: bool, **changes: Any) -> Training:
    given = small.SETTINGS.model_dump() | {"epochs": 1, "workers": 2, "shard_optimizer": shard, "log_every": 1}
    return Training.model_validate(given | changes)


def _made(settings: Training) -> tuple[DualEncoder, small.InMemory]:
    model, pairs = small.make(dropout=0.2)
    if settings.lock == "none":
        model = small.with_tower()
        drawn = torch.Generator().manual_seed(0)
        pairs.features = torch.randint(0, 256, (1, len(pairs), 3, 32, 32), generator=drawn, dtype=torch.uint8)
    return model, pairs


def _trained(_rank: int, _count: int, names: Iterable[str]) -> dict[str, Any]:
    """Of each case the weights without and with a share, and the numbers of the weights that then had a state."""
    found: dict[str, Any] = {}
    for name in names:
        for shard in (False, True):
            settings = _settings(shard, **CASES[name])
            model, pairs = _made(settings)
            with (
                mock.patch.object(loop, "_Run", _Noted),
                mock.patch.object(
                    torch.amp, "GradScaler", partial(torch.amp.GradScaler, init_scale=2.0**28, backoff_factor=2.0**-14)
                ),
            ):
                loop.train(model, pairs, settings, 0)
            found[f"{name} {shard}"] = {key: value.clone() for key, value in model.state_dict().items()}
            found[f"{name} {shard} state"] = torch.tensor(sorted(_Noted.last.optimiser.state_dict()["state"]))
    return found


class _Noted(loop._Run):
    """A run that can be looked at afterwards."""

    last: "_Noted"

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        _Noted.last = self


@pytest.mark.slow
@pytest.mark.parametrize(("count", "names"), [(2, [*CASES]), (4, ["rows of an embedding", "picture tower"])])
def test_weights_are_those_of_ddp_to_the_bit(tmp_path: Path, count: int, names: list[str]) -> None:
    first, *others = workers.run(count, tmp_path, _trained, names)
    for name in names:
        for key, value in first[f"{name} False"].items():
            for each in (first, *others):
                assert torch.equal(each[f"{name} True"][key], value), (name, key)
        whole = first[f"{name} False state"].tolist()
        own = [each[f"{name} True state"].tolist() for each in (first, *others)]
        assert all(own), "a worker keeps nothing"
        assert sorted(chain(*own)) == whole, "a state is kept by two workers, or by none"


@given(sizes=st.lists(st.integers(1, 1000), max_size=60), count=st.integers(1, 9))
def test_weights_are_divided_evenly(sizes: list[int], count: int) -> None:
    divided = shares.divided(sizes, count)
    assert len(divided) == count
    assert sorted(chain(*divided)) == [*range(len(sizes))]
    loads = [sum(sizes[number] for number in share) for share in divided]
    assert max(loads) - min(loads) <= max(sizes, default=0)
    assert all(share == sorted(share) for share in divided)


def _stopped(_rank: int, _count: int, uri: str, shard: bool, epochs: int) -> dict[str, torch.Tensor]:
    """Train from the newest checkpoint, and die in the epoch after some; the weights where all have ended."""
    settings = _settings(shard, epochs=4, batch_size=12)
    model, pairs = small.make(dropout=0.2)
    writer = checkpoint.Writer(uri)

    def stop(epoch: Epoch) -> None:
        writer.wait()  # a busy one stores nothing, and then other workers would repeat the epoch
        if epoch.epoch > epochs:
            raise KilledError

    try:
        loop.train(model, pairs, settings, 0, stop, checkpoints=writer, resume=checkpoint.newest(uri))
    except KilledError:
        writer.wait()
    writer.close()
    return dict(model.state_dict())


@pytest.mark.long
def test_a_run_goes_on_with_another_number_of_workers(tmp_path: Path) -> None:
    """Of three, two and one worker, also where those before or after share nothing: as a run that never does."""
    ended = []
    for shard in ((False,) * 4, (True,) * 4, (False, True, False, True)):
        uri = storage.from_path(tmp_path / "".join(str(int(each)) for each in shard))
        for epochs, (count, each) in enumerate(zip((3, 2, 1, 3), shard, strict=True), 1):
            found = workers.run(count, tmp_path, _stopped, uri, each, epochs)
        newest = checkpoint.newest(uri)
        assert newest is not None
        ended.append(({path.name for path in Path(newest.removeprefix("file://")).iterdir()}, found))
    (names, expected), *others = ended
    assert "optimizer.safetensors" in names
    for files, found in others:
        assert {f"optimizer-{rank}.safetensors" for rank in range(3)} < files
        assert "optimizer.safetensors" not in files
        for one, other in zip(found, expected, strict=True):
            assert all(torch.equal(value, other[name]) for name, value in one.items())


def _loaded(rank: int, _count: int, uri: str, shard: bool) -> dict[str, torch.Tensor]:
    """A checkpoint's weights and the optimiser's state, and how many files were read for them."""
    model, _ = small.make(dropout=0.2)
    made = torch.optim.AdamW(model.parameters(), lr=1e-3)
    own = shares.Shares(made).own if shard else None
    with mock.patch.object(storage, "download", wraps=storage.download) as read:
        checkpoint.load(uri, model, made, own)
    state = made.state_dict()["state"]
    of_state = {f"{number} {name}": value for number, each in state.items() for name, value in each.items()}
    return {**model.state_dict(), **of_state, "read": torch.tensor(read.call_count)}


@pytest.mark.parametrize("shard", [False, True])
def test_the_first_worker_alone_reads_a_checkpoint(tmp_path: Path, shard: bool) -> None:
    uri = storage.from_path(tmp_path / "checkpoints")
    model, _ = small.make(dropout=0.2)
    made = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for weight in model.parameters():
        weight.grad = torch.rand_like(weight)
    made.step()
    writer = checkpoint.Writer(uri)
    writer.save(model, made, 1, {})
    writer.wait()
    writer.close()
    newest = checkpoint.newest(uri)
    assert newest is not None
    first, *others = workers.run(3, tmp_path, _loaded, newest, shard)
    assert [int(each.pop("read")) for each in (first, *others)] == [3, 0, 0]
    saved = made.state_dict()["state"]
    expected = {f"{number} {name}": value for number, each in saved.items() for name, value in each.items()}
    seen = set[str]()
    for found in (first, *others):
        seen |= found.keys()
        assert shard or found.keys() == model.state_dict().keys() | expected.keys()
        assert all(torch.equal(value, {**model.state_dict(), **expected}[name]) for name, value in found.items())
    assert seen == model.state_dict().keys() | expected.keys()


def _train_on(rank: int, port: int, folder: Path, name: str) -> None:
    """Go on from the newest checkpoint to the end, as one of two workers; slowly, so that it can be killed."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    uri, (model, pairs) = storage.from_path(folder / name), small.make(dropout=0.2)
    writer = checkpoint.Writer(uri)
    stored = small.EACH.model_copy(update={"steps": 1})
    settings = _settings(True, epochs=20, checkpoint=stored.model_dump())
    newest = checkpoint.agreed(checkpoint.newest(uri) or "", torch.device("cpu"))
    loop.train(model, pairs, settings, 7, checkpoints=writer, resume=newest or None)
    writer.close()
    save_file(model.state_dict(), folder / f"{name}-{rank}.safetensors")


@pytest.mark.long
def test_workers_killed_at_any_moment_end_with_the_same_bytes(tmp_path: Path) -> None:
    """SIGKILL of one worker, also while a checkpoint is written by another; the others of its group end by that."""

    def start(name: str) -> list[Any]:
        (tmp_path / name).mkdir(exist_ok=True)
        port = free_port()
        group = [
            get_context("forkserver").Process(target=_train_on, args=(rank, port, tmp_path, name)) for rank in (0, 1)
        ]
        for process in group:
            process.start()
        return group

    calm = start("calm")
    for process in calm:
        process.join()
    for killed, wait in ((1, 0.0), (0, 0.03)):
        before = checkpoint.newest(storage.from_path(tmp_path / "killed"))
        group = start("killed")
        while group[0].is_alive() and checkpoint.newest(storage.from_path(tmp_path / "killed")) == before:
            time.sleep(0.01)
        time.sleep(wait)
        group[killed].kill()
        for process in group:
            process.join(60)
        assert group[killed].exitcode == -signal.SIGKILL, "the run ended before it could be killed"
        assert group[1 - killed].exitcode not in (None, 0), "a worker alone went on"
    last = start("killed")
    for process in last:
        process.join()
    assert [process.exitcode for process in (*calm, *last)] == [0] * 4
    expected = (tmp_path / "calm-0.safetensors").read_bytes()
    for name in ("calm-1", "killed-0", "killed-1"):
        assert (tmp_path / f"{name}.safetensors").read_bytes() == expected


def _late(rank: int, _count: int, uri: str) -> dict[str, torch.Tensor]:
    """Save a shared state whose second file comes late: is it complete before, and is it said to be still written?"""
    model = torch.nn.Linear(3, 3)
    optimizer = torch.optim.AdamW(model.parameters())
    writer, upload, may = checkpoint.Writer(uri), storage.upload, threading.Event()

    def late(path: Path, target: str) -> None:
        if not rank or may.wait(60):
            upload(path, target)

    with mock.patch.object(storage, "upload", late):
        writer.save(model, optimizer, 1, {}, storage.join(uri, "one", "checkpoint_000000001-0a"), shared=True)
        if not rank:
            writer._upload.result()  # type: ignore[union-attr]
        for _ in range(2):
            writer.complete()
        dist.barrier()
        early, busy = checkpoint.newest(uri) is not None, writer.busy
        dist.barrier()
        may.set()
        writer.wait()
    writer.close()
    return {"early": torch.tensor(early), "busy": torch.tensor(busy)}


@pytest.mark.slow
def test_a_checkpoint_is_complete_only_when_all_have_written(tmp_path: Path) -> None:
    uri = storage.from_path(tmp_path / "checkpoints")
    for found in workers.run(2, tmp_path, _late, uri):
        assert not found["early"]
        assert found["busy"], "another could begin"
    newest = checkpoint.newest(uri)
    assert newest is not None
    folder = Path(newest.removeprefix("file://"))
    described = json.loads((folder / "checkpoint.json").read_text())["bytes"]
    assert described == {path.name: path.stat().st_size for path in folder.iterdir() if path.name != "checkpoint.json"}
    assert {"optimizer-0.safetensors", "optimizer-1.safetensors"} < {*described}
