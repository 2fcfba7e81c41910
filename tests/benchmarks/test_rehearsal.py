"""The rehearsal of a training step on a GPU: what turns it red, and its figures beside sums of their own."""

import importlib.util
import json
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch

from wukong.config import documents
from wukong.model.cost import Exchange, Size, exchange
from wukong.model.dual import DualEncoder
from wukong.model.loss import gathered_constant

PATH = Path(__file__).parents[2] / "benchmarks" / "train" / "rehearsal.py"
SMALL = (
    *("model.text.layers=1", "model.text.width=128", "model.text.heads=8"),
    *("pretrain.workers=8", "pretrain.batch_size=256"),
)
"""Of a step that is planted: what it is about does not depend on sizes."""
CLASSES = 100
"""Of a validation; it takes all of them in pieces of equal size."""


def _bench() -> ModuleType:
    spec = importlib.util.spec_from_file_location("rehearsal", PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["rehearsal"] = module  # for its dataclasses
    spec.loader.exec_module(module)
    module.register()
    return module


def _pinned(values: torch.Tensor) -> torch.Tensor:
    return values.pin_memory()


PLANTS: dict[str, Callable[[torch.Tensor], object]] = {
    "number": lambda loss: loss.item(),
    "nonzero": lambda loss: loss.expand(3).nonzero(),
    "mask": lambda loss: loss.expand(3)[loss.expand(3) > 0],
    "masked write": lambda loss: loss.detach().repeat(3).__setitem__(loss.expand(3) > 0, loss.expand(3)),
    "list as index": lambda loss: loss.expand(3)[[0, 2]],
    "tensor of the processor": lambda loss: loss + torch.ones(2),
    "copy from": lambda loss: loss.to("cpu", non_blocking=True),
    "tensor of a number": lambda loss: torch.tensor(3, device=loss.device),
    "unpinned": lambda loss: torch.ones(3).to(loss.device, non_blocking=True),
    "blocking": lambda loss: _pinned(torch.ones(3)).to(loss.device),
    "nothing": lambda _loss: None,
    "proper copy": lambda loss: _pinned(torch.ones(3)).to(loss.device, non_blocking=True),
    "second all-gather": lambda loss: gathered_constant(loss.detach().expand(4)),
}
ALLOWED = ("nothing", "proper copy", "second all-gather")


def rehearsed_in_process(names: tuple[str, ...], plants: tuple[str, ...]) -> dict[str, Any]:
    """Rehearse in a process of its own: the fake device stays registered."""
    bench, found = _bench(), {}
    for name in names:
        once = bench.rehearse(name, bench.experiment_of(name), CLASSES)
        found[name] = (once.peak, once.collectives, once.fits, SimpleNamespace(**vars(once.validation)))
    whole = DualEncoder.loss
    for plant in plants:

        def planted(self: DualEncoder, *args: Any, plant: str = plant, **settings: Any) -> torch.Tensor:
            loss = whole(self, *args, **settings)
            PLANTS[plant](loss)
            return loss

        with mock.patch.object(DualEncoder, "loss", planted):
            try:
                found[plant] = bench.rehearse("vit-b-32", bench.experiment_of("vit-b-32", SMALL), 0).collectives
            except Exception as error:  # noqa: BLE001 - which one is what the tests ask
                found[plant] = f"{type(error).__name__}: {error}"
    return found


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        return process.submit(rehearsed_in_process, ("vit-l", "swin-l"), tuple(PLANTS)).result()


@pytest.mark.parametrize("plant", [name for name in PLANTS if name not in ALLOWED])
@pytest.mark.long
def test_what_waits_for_the_device_is_refused(found: dict[str, Any], plant: str) -> None:
    refused = found[plant]
    assert isinstance(refused, str), f"{plant} was let through"
    kinds = ("WaitError", "DataDependentOutput", "DynamicOutputShape", "FakeTensorDeviceMismatch")
    assert refused.startswith(kinds), refused


@pytest.mark.long
def test_a_second_all_gather_is_counted(found: dict[str, Any]) -> None:
    assert isinstance(found["nothing"], dict), found["nothing"]
    assert found["proper copy"] == found["nothing"]
    kind = "allgather_base float32"
    (calls, size), (more, larger) = found["nothing"][kind], found["second all-gather"][kind]
    assert (calls, size) == (2, 2 * 32 * 256 * 4)  # images and captions: 32 of a rank, 256 numbers
    assert (more, larger) == (3, size + 4 * 4)
    planned = _planned("vit-b-32", *SMALL)
    assert planned.vectors == size
    assert planned.returned == found["nothing"]["reduce_scatter_base float32"][1]


@pytest.mark.parametrize(("name", "ranks", "patches"), [("vit-l", 40, 256), ("swin-l", 64, 49)])
@pytest.mark.long
def test_memory_and_collectives_of_the_papers_columns(
    found: dict[str, Any], name: str, ranks: int, patches: int
) -> None:
    model = documents.load(PATH.parents[2] / "configs" / "paper" / f"{name}.yaml").model
    size, (peak, collectives, fits, _) = Size.of(model), found[name]
    trained, rows, words = size.weights - size.image, 10240 // ranks, 32
    assert peak["gradients"] == pytest.approx(4 * trained, rel=2e-3)
    assert peak["moments"] == pytest.approx(8 * trained, rel=2e-3)
    assert peak["weights"] == pytest.approx(4 * trained + 2 * size.image, rel=5e-3)
    # The best match of each word and patch, a byte each, and the gathered gradient of the texts in float32.
    gathered = 10240 * words * 256
    assert peak["activations"] > 10240 * rows * (patches + words) + 4 * gathered
    assert fits == [40, 80]
    assert collectives["allgather_base bfloat16"] == (1, rows * words * 256 * 2)
    assert collectives["reduce_scatter_base float32"] == (1, gathered * 4)
    assert collectives["alltoall_base float32"] == (2, 2 * rows * 10240 * 4)
    assert collectives["allreduce float32"][1] == pytest.approx(4 * trained, rel=1e-3)
    assert not [kind for kind in collectives if kind.startswith("broadcast")]
    planned = _planned(name)
    assert planned.gradients == pytest.approx(collectives["allreduce float32"][1], rel=1e-3)
    assert planned.vectors == collectives["allgather_base bfloat16"][1]
    assert planned.returned == collectives["reduce_scatter_base float32"][1]
    assert planned.scores == collectives["alltoall_base float32"][1]


def _planned(name: str, *changes: str) -> Exchange:
    """What `wukong plan` says that a worker hands to the others in a step."""
    experiment = documents.load(PATH.parents[2] / "configs" / "paper" / f"{name}.yaml", list(changes))
    size = Size.of(experiment.model)
    return exchange(experiment.model, experiment.pretrain, size.trained(experiment.pretrain))


@pytest.mark.parametrize(("name", "ranks", "patches"), [("vit-l", 40, 256), ("swin-l", 64, 49)])
@pytest.mark.long
def test_a_validation_gathers_texts_alone_and_takes_no_more_than_its_blocks(
    found: dict[str, Any], name: str, ranks: int, patches: int
) -> None:
    peak, _, fits, validation = found[name]
    pieces, texts = CLASSES // 50, 50 * 80  # pieces of 50 classes, each in 80 prompts
    own = -(-texts // ranks)
    calls, size = validation.collectives["allgather_base float32"]
    assert calls == pieces
    words, left = divmod(size, own * 256 * 4)
    assert left == 0 and pieces * 5 < words <= pieces * 32  # tokens of the longest texts of all pieces
    assert validation.collectives["allgather_base uint8"] == (pieces, own * words)
    assert validation.collectives["allreduce int64"] == (pieces, pieces * 8)
    assert set(validation.collectives) == {"allgather_base float32", "allgather_base uint8", "allreduce int64"}
    held = peak["weights"] + peak["gradients"] + peak["moments"]
    gathered = (own + ranks * own) * words // pieces * 256 * 4
    assert held + gathered < validation.peak < sum(peak.values())
    assert fits == [40, 80]
    # Each block of 64 images and each of 256 texts comes and goes once, and what was found of them at least.
    images = -(-50_000 // ranks)
    assert validation.waits["a copy from the device"] > -(-images // 64) + 2 * pieces
    assert validation.waits["a copy to the device of memory that is not pinned"] > -(-images // 64) + pieces
    assert validation.told > images


@pytest.mark.long
def test_inductor_runs_the_towers_with_equal_results() -> None:
    """A ViT-B/32 of one block, which is trained, and a layer of text, on batches of three lengths."""
    command = [sys.executable, "benchmarks/model/inductor.py", "--layers", "1", "--width", "48"]
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    root = PATH.parents[2]
    options: dict[str, Any] = {"cwd": root, "env": environment | {"PYTHONPATH": str(root)}, "text": True}
    done = subprocess.run(command, check=False, capture_output=True, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    row = json.loads(done.stdout.splitlines()[-1])
    assert row["kernels"] > 0
    assert 0 < max(row["largest"].values()) <= 1e-3
