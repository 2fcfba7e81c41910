"""Rehearse a training step on a GPU where there is none: what waits for the GPU, memory of a rank, and collectives.

    python benchmarks/train/rehearsal.py [vit-l swin-l ...] [--set KEY=VALUE] [--json] [--step] [--full]

The names are those of configs/paper; without a name all are rehearsed. It takes the second step of
``wukong.train.loop`` at its real size, with torch's fake tensors on a fake device and a fake process group of as many
ranks as the config has.
Nothing is computed. It ends with an error that names the line where the step

- uses tensors of two devices together,
- waits for the device: ``.item()``, ``nonzero``, a mask as an index, a copy from the device, or a copy to it that is
  not pinned or is blocking.

Then the rank's share of a validation on ImageNet is measured, up to what the ranks tell each other in the end. A
validation waits for the GPU; it is said how often. ``--step`` leaves it out.

With ``--full`` the token-wise kernels are compiled for four GPUs with the Triton of the images, which is downloaded
where another is installed, and a step with towers that are compiled by inductor is compared with one that is not, on
the processor.

What it cannot show: time, the memory of NCCL, of CUDA and of what the allocator cannot fill, and what the kernels of
the token-wise similarity compute: torch knows them as operators, whose inputs and outputs are counted.
"""

import argparse
import json
import logging
import os
import re
import subprocess
import sys
import traceback
import warnings
import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.overrides import TorchFunctionMode
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend
from torch.utils.weak import WeakIdKeyDictionary

from wukong.config import documents
from wukong.config.experiment import Experiment
from wukong.data.tokenizer import Tokenizer
from wukong.evaluate import best_words, candidates
from wukong.evaluate.blocks import InMemory
from wukong.evaluate.data_set import ClassificationData
from wukong.evaluate.protocol import PROTOCOLS
from wukong.model import cost, similarity
from wukong.model.dual import DualEncoder
from wukong.train import batches, loop, validation

sys.path.insert(0, str(Path(__file__).parents[1] / "model"))
import measure

ROOT = Path(__file__).parents[2]
DEVICE = "npy"
CAPTION_TOKENS = 22
"""Mean number of tokens of a caption (table 2 of the paper)."""
CARDS = (40, 80)
"""GB of the cards that a rank may fit."""
BLOCK = 512
"""Bytes of which CUDA's allocator gives out multiples."""
SPARE = 0.9
"""Share of a card that a rank may take: the rest is for CUDA, NCCL and what the allocator cannot fill."""


class WaitError(Exception):
    """The step waits for the device, or would on a real one."""


@dataclass(frozen=True)
class Rehearsed:
    """What one step of a rank takes.

    Attributes:
        name: name of the config.
        ranks: number of ranks.
        peak: bytes at the peak, by part.
        collectives: by collective and type of its numbers, the calls of a step and the bytes that a rank hands in.
        validation: what a validation takes; None where the image tower is trained, or none was asked for.
    """

    name: str
    ranks: int
    peak: dict[str, int]
    collectives: dict[str, tuple[int, int]]
    validation: "Measured | None"

    @property
    def fits(self) -> list[int]:
        """The cards that a rank fits, in GB."""
        return [card for card in CARDS if sum(self.peak.values()) <= SPARE * card * 1e9]


@dataclass(frozen=True)
class Measured:
    """What a rank's share of a validation takes.

    Attributes:
        peak: most bytes of the device's memory, those of the training among them.
        waits: how often the processor waits for the device, by reason.
        collectives: as of ``Rehearsed``.
        told: bytes that the rank tells the others in the end.
    """

    peak: int
    waits: dict[str, int]
    collectives: dict[str, tuple[int, int]]
    told: int


class Watch(TorchDispatchMode):
    """Refuses or counts what waits for the device, and counts collectives.

    Attributes:
        refuses: whether it refuses what waits.
        waits: how often something waited that was not refused, by reason.
        numbers: the numbers of tensors on the device that were made of one.
        pinned: the tensors that lie in pinned memory.
        held: bytes of the device's memory now.
        peak: most bytes of it so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.refuses = False
        self.waits: Counter[str] = Counter()
        self.numbers = WeakIdKeyDictionary()
        self.pinned = WeakIdKeyDictionary()
        self.calls: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()
        self._storages = WeakIdKeyDictionary()
        self.held = self.peak = 0

    def hold(self, value: Any) -> None:
        """Count the memory of a tensor on the device until it is free."""
        if _on_device(value) and (storage := value.untyped_storage()) not in self._storages:
            size = -(-storage.nbytes() // BLOCK) * BLOCK
            self._storages[storage] = True
            self.held += size
            self.peak = max(self.peak, self.held)
            weakref.finalize(storage, self._free, size)

    def _free(self, size: int) -> None:
        self.held -= size

    def begin(self) -> None:
        """Count collectives, waits and the peak of the memory anew."""
        self.calls.clear()
        self.bytes.clear()
        self.waits.clear()
        self.peak = self.held

    @property
    def collectives(self) -> dict[str, tuple[int, int]]:
        """By collective and type of its numbers, the calls and the bytes that a rank hands in."""
        return {kind: (self.calls[kind], self.bytes[kind]) for kind in sorted(self.calls)}

    def wait(self, reason: str) -> None:
        """Refuse or count that the processor waits for the device."""
        if self.refuses:
            raise WaitError(reason)
        self.waits[reason] += 1

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function.namespace == "prim":
            return function(*args, **kwargs)
        if torch.is_inference_mode_enabled() and function._can_decompose():
            with self:  # these come whole where no gradient is asked for
                return function.decompose(*args, **kwargs)
        name, first = function._schema.name, next(iter(args), None)
        self._check(name, args, kwargs)
        if name.startswith("c10d::"):
            given = [each for each in tree_flatten((args, kwargs))[0] if isinstance(each, Tensor)]
            sent = given[len(given) // 2 :] if len(given) > 1 else given  # after the outputs
            kind = f"{name.removeprefix('c10d::').strip('_')} {str(sent[0].dtype).removeprefix('torch.')}"
            self.calls[kind] += 1
            self.bytes[kind] += sum(each.nbytes for each in sent)
        values = [each for each in tree_flatten((args, kwargs))[0] if isinstance(each, Tensor)]
        if not any(isinstance(each, FakeTensor) for each in values) and not _on_device_next(kwargs):
            with unset_fake_temporarily():  # the processor's own numbers, which the step may read
                return function(*args, **kwargs)
        if name == "aten::_local_scalar_dense":
            return self.numbers.get(first, 1)
        if name == "aten::nonzero":  # all are
            function, args = torch.ops.aten.new_empty.default, (first, (first.numel(), first.ndim))
            kwargs = {"dtype": torch.int64}
        if name == "aten::_to_copy" and _on_device(first) and not _on_device_next(kwargs, DEVICE):
            with unset_fake_temporarily():
                return _some(first.shape, kwargs.get("dtype") or first.dtype)
        if name == "aten::_to_copy" and not isinstance(first, FakeTensor):
            result = torch.empty(first.shape, dtype=kwargs.get("dtype") or first.dtype, device=DEVICE)
        else:
            result = function(*args, **kwargs)
        for value in tree_flatten(result)[0]:
            self.hold(value)
        return result

    def _check(self, name: str, args: Any, kwargs: Any) -> None:
        first = next(iter(args), None)
        if name == "aten::_local_scalar_dense" and _on_device(first):
            self.wait("a number is read from the device")
        if name == "aten::nonzero" and _on_device(first):
            self.wait("nonzero: how many there are is read from the device")
        if name in ("aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"):
            self._check_indices(first, args[1])
        if name in ("aten::_to_copy", "aten::copy_"):
            source, target = (
                (first, kwargs.get("device") or first.device) if name == "aten::_to_copy" else (args[1], first.device)
            )
            blocking = not (kwargs.get("non_blocking") or (name == "aten::copy_" and args[2:3] == (True,)))
            self._check_copy(source, torch.device(target), blocking=blocking)

    def _check_indices(self, indexed: Tensor, indices: Any) -> None:
        for index in indices:
            if index is None or not _on_device(indexed):
                continue
            if index.dtype in (torch.bool, torch.uint8):
                self.wait("a mask is an index: how many it takes is read from the device")
            if not _on_device(index):
                self.wait("an index that is not on the device is copied to it")

    def _check_copy(self, source: Tensor, target: torch.device, *, blocking: bool) -> None:
        if _on_device(source) and target.type != DEVICE:
            self.wait("a copy from the device")
        if not _on_device(source) and target.type == DEVICE:
            if source not in self.pinned:
                self.wait("a copy to the device of memory that is not pinned")
            elif blocking:
                self.wait("a copy to the device that is blocking")


class Pinning(TorchFunctionMode):
    """Remembers which tensors are pinned: there is no driver that would."""

    def __init__(self, watch: Watch) -> None:
        super().__init__()
        self._watch, self._pinned = watch, watch.pinned

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is Tensor.is_pinned:
            return args[0] in self._pinned
        if function is Tensor.pin_memory:
            pinned = args[0].clone()
            self._pinned[pinned] = True
            return pinned
        try:
            return function(*args, **(kwargs or {}))
        except NotImplementedError as error:
            if f"from the '{DEVICE}' backend" not in str(error):
                raise
            # Torch makes tensors of numbers and lists in memory that is not pinned, and copies them beside all modes.
            self._watch.wait("a number or a list of Python is copied to the device")
            if function is not torch.tensor:
                raise
            with unset_fake_temporarily():
                here = torch.tensor(args[0])
            there = torch.empty(here.shape, dtype=here.dtype, device=DEVICE)
            self._watch.numbers[there] = args[0]
            return there


def _on_device(value: Any) -> bool:
    return isinstance(value, Tensor) and value.device.type == DEVICE


def _on_device_next(settings: dict[str, Any], otherwise: str = "cpu") -> bool:
    return torch.device(settings.get("device") or otherwise).type == DEVICE


def _some(shape: torch.Size, kind: torch.dtype) -> Tensor:
    """Return numbers in the place of those that the device has not computed: scores, or vectors, unlike in one row."""
    if not kind.is_floating_point:
        return torch.ones(shape, dtype=kind)
    if len(shape) == 2:
        return torch.rand(shape).to(kind)
    values = torch.zeros(shape, dtype=kind)
    values[:1] = 1
    return values


def register() -> None:
    """Make the fake device known to torch, once a process, with autocast for the products of matrices."""
    module = SimpleNamespace(
        get_amp_supported_dtype=lambda: [torch.bfloat16, torch.float16],
        is_available=lambda: True,
        is_initialized=lambda: True,
        current_device=lambda: 0,
        device_count=lambda: 1,
        manual_seed_all=lambda _seed: None,
        _is_in_bad_fork=lambda: False,
    )
    _setup_privateuseone_for_python_backend(DEVICE, backend_module=module)
    kept = torch.library.Library("_", "IMPL", "AutocastPrivateUse1")
    kept.fallback(torch.library.fallthrough_kernel)
    kept_aten = torch.library.Library("aten", "IMPL", "AutocastPrivateUse1")
    for name in ("linear", "matmul", "mm", "bmm", "addmm", "baddbmm", "conv2d", "scaled_dot_product_attention"):
        kept_aten.impl(name, _casting(getattr(torch.ops.aten, name)))
    _KEPT.extend([kept, kept_aten])


_KEPT: list[Any] = []


def _casting(operation: Any) -> Any:
    """Return an operation with autocast's type of its inputs."""

    def cast(value: Any) -> Any:
        is_number = isinstance(value, Tensor) and value.is_floating_point() and value.dtype != torch.float64
        return value.to(torch.get_autocast_dtype(DEVICE)) if is_number and _on_device(value) else value

    def call(*args: Any, **kwargs: Any) -> Any:
        with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)):
            return operation(*map(cast, args), **{name: cast(value) for name, value in kwargs.items()})

    return call


@contextmanager
def fake_ranks(count: int) -> Iterator[None]:
    """Be the first of some ranks that are not there."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=count)
    try:
        yield
    finally:
        dist.destroy_process_group()


def experiment_of(name: str, changes: tuple[str, ...] = ()) -> Experiment:
    """Return the experiment of a config of configs/paper."""
    return documents.load(ROOT / "configs" / "paper" / f"{name}.yaml", list(changes))


def rehearse(name: str, experiment: Experiment, classes: int = 1000) -> Rehearsed:
    """Take the second step of a config's pre-training: the first makes the optimiser's state. Then validate.

    Args:
        name: name of the config.
        experiment: the experiment.
        classes: classes of ImageNet with which the validation is rehearsed; 0 to leave it out.

    Raises:
        WaitError: the step waits for the device.
        Exception: what torch raises for tensors of two devices.
    """
    settings, architecture = experiment.pretrain, experiment.model
    tokenizer = Tokenizer.of(architecture.text)
    tower = cost.empty_tower(architecture)
    shape = cost.feature_shape(architecture, tower)
    with torch.device("meta"):
        features = {"image": None, "feature_width": shape.width} if settings.reads_features else {"image": tower}
        model = DualEncoder(architecture, tokenizer, with_weights=False, **features)
    if model.image is not None:
        model.image.lock(settings.lock)
    watch, batch = Watch(), _batch(experiment, shape, tokenizer)
    with ExitStack() as stack:
        stack.enter_context(fake_ranks(settings.workers))
        for module, attribute, value in (
            (similarity, "_kernels_run", _on_device),
            (best_words, "half_is_quicker", lambda device: device.type == DEVICE),
            # No score is near another one, behind those that are computed again in any case.
            (candidates, "decide", lambda wanted, compute, _near: compute(wanted)),
            (loop, "DistributedDataParallel", _replica),
        ):
            stack.enter_context(mock.patch.object(module, attribute, value))
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        model = model.to_empty(device=DEVICE)
        run = loop._Run(model, _Named(), settings, 0, None, None)
        for value in (*model.parameters(), *model.buffers()):
            watch.hold(value)
        with watch, mock.patch.object(torch.nn.Module, "_apply", _converted):
            run.begin()
        watch.refuses = True
        run.pairs.batches = lambda *_: (batch for _ in range(2))
        with watch, Pinning(watch), run.batches() as steps:
            # After a first step the reducer divides its bucket, which takes no fakes.
            replica, run.replica = run.replica, model
            run.step(steps)
            run.replica = replica
            run.recent.losses.clear()
            watch.begin()
            run.step(steps)
        weights = list(model.parameters())
        parts = {
            "weights": _size([*weights, *model.buffers()]),
            "gradients": _size([weight.grad for weight in weights if weight.grad is not None]),
            "moments": _size([value for state in run.optimiser.state.values() for value in state.values()]),
        }
        parts["activations"] = watch.peak - sum(parts.values())
        calls, measured = watch.collectives, None
        if classes and (settings.reads_features or settings.lock == "all"):
            watch.begin()
            watch.refuses = False
            measured = _validate(run, watch, shape, tokenizer, classes)
    return Rehearsed(name, settings.workers, parts, calls, measured)


def _validate(run: "loop._Run", watch: Watch, shape: cost.Shape, tokenizer: Tokenizer, classes: int) -> Measured:
    """Measure a rank's share of ImageNet, with the features that a locked tower gave for it before the first step."""
    protocol, count = PROTOCOLS["paper"], 50_000
    names, labels = [f"类{number}" for number in range(classes)], np.arange(count) % classes
    ids = [str(number) for number in range(count)]
    data = ClassificationData("imagenet", "test", names, ids, labels, [], "classification", names)  # type: ignore[arg-type]
    rows = -(-count // run.workers)
    with unset_fake_temporarily():
        features = torch.zeros(rows, *([shape.tokens] if run.model.token_wise else []), shape.width).half()
        features[: rows // 2] = 1  # unlike the others
    validator = validation.Validator([validation.Task(data, protocol, features)], tokenizer)
    run.model.eval()
    run.model.vocabulary = tokenizer.digest
    with watch, Pinning(watch), mock.patch.object(validation, "_exchange", _told), suppress_told() as told:
        validator(run.model)
    return Measured(watch.peak, dict(watch.waits), watch.collectives, told[0])


class _ToldError(Exception):
    """The rank tells the others what it has found, who are not there."""


def _told(files: InMemory, made: list[str], _device: torch.device) -> None:
    found = [each for name in made for key, each in files.read(name).items() if key != "vectors"]
    raise _ToldError(sum(each.nbytes for each in found))


@contextmanager
def suppress_told() -> Iterator[list[int]]:
    """Collect the bytes that a rank tells the others, with which its validation ends here."""
    told: list[int] = []
    try:
        yield told
    except _ToldError as error:
        told.append(error.args[0])


def _size(tensors: list[Tensor]) -> int:
    return sum(-(-value.nbytes // BLOCK) * BLOCK for value in tensors if _on_device(value))


def _converted(module: torch.nn.Module, convert: Any, recurse: bool = True) -> torch.nn.Module:
    """Convert a module as ``Module.to`` does: torch would swap its tensors, which fakes refuse."""
    for part in module.modules():
        for name, weight in part.named_parameters(recurse=False):
            part.register_parameter(name, torch.nn.Parameter(convert(weight.detach()), weight.requires_grad))
        for name, buffer in part.named_buffers(recurse=False):
            setattr(part, name, convert(buffer))
    return module


class _Named:
    """As much of ``Pairs`` as a run asks for before its first batch."""

    rows, digest = (10**8,), ""

    def __len__(self) -> int:
        return self.rows[0]


def _replica(model: torch.nn.Module, **settings: Any) -> Any:
    """Return a replica whose buckets are reduced by a hook: the reducer's own sum does not take fakes."""
    replica = torch.nn.parallel.DistributedDataParallel(model, init_sync=False, **settings)
    replica.register_comm_hook(None, _reduced)
    return replica


def _reduced(_state: object, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    dist.all_reduce(bucket.buffer())
    done: torch.futures.Future[Tensor] = torch.futures.Future()
    done.set_result(bucket.buffer())
    return done


def _batch(experiment: Experiment, shape: cost.Shape, tokenizer: Tokenizer) -> batches.Batch:
    """Return a rank's share of a batch, in the memory of the processor as the loop gets it."""
    settings = experiment.pretrain
    rows, side = settings.batch_size // settings.workers, experiment.model.image.image_size
    if settings.reads_features:
        pictures = torch.zeros(rows, *([shape.tokens] if shape.tokens > 1 else []), shape.width, dtype=torch.float16)
    else:
        pictures = torch.zeros(rows, 3, side, side, dtype=torch.uint8)
    ids = torch.ones(rows, experiment.model.text.max_tokens, dtype=torch.int64)
    return batches.Batch(pictures, ids, torch.zeros(rows, dtype=torch.int64), torch.zeros(rows, dtype=torch.int64))


def tables(found: list[Rehearsed]) -> str:
    """Return the tables of memory and of collectives, in Markdown."""
    parts = ("weights", "gradients", "moments", "activations")
    lines = [f"| GB of a rank | ranks | {' | '.join(parts)} | peak | fits |", "|---|" + "---|" * (len(parts) + 3)]
    for each in found:
        sizes = " | ".join(f"{each.peak[part] / 1e9:.2f}" for part in parts)
        fits = ", ".join(f"{card} GB" for card in each.fits) or "neither"
        lines.append(f"| {each.name} | {each.ranks} | {sizes} | {sum(each.peak.values()) / 1e9:.2f} | {fits} |")
    if kinds := sorted({kind for each in found for kind in each.collectives}):
        lines += ["", f"| calls, MB that a rank hands in | {' | '.join(kinds)} |", "|---|" + "---|" * len(kinds)]
        for each in found:
            counted = [each.collectives.get(kind) for kind in kinds]
            cells = " | ".join(f"{one[0]}, {one[1] / 1e6:,.2f}" if one else "-" for one in counted)
            lines.append(f"| {each.name} | {cells} |")
    if measured := [(each, each.validation) for each in found if each.validation is not None]:
        lines += ["", "| a validation on ImageNet | peak, GB | waits for the GPU | calls, MB that a rank hands in |"]
        lines.append("|---|---|---|---|")
        for each, one in measured:
            kinds = [f"{kind} {count}, {size / 1e6:,.2f}" for kind, (count, size) in one.collectives.items()]
            kinds += [f"broadcast {each.ranks}, {one.told / 1e6:,.2f} of each rank"] if each.ranks > 1 else []
            waits = f"{sum(one.waits.values()):,}"
            lines.append(f"| {each.name} | {one.peak / 1e9:.2f} | {waits} | {'; '.join(kinds) or '-'} |")
    return "\n".join(lines)


def compiled_kernels(work: Path) -> str:
    """Compile the token-wise kernels with the images' version of Triton, and return what they take, in Markdown.

    Raises:
        subprocess.CalledProcessError: the first block sizes of one spill registers, or one takes more shared memory
            than computed.
    """
    pinned = re.search(r"^triton==(\S+)", (ROOT / "infra/images/torch-cuda-hashes.txt").read_text(), re.MULTILINE)
    assert pinned is not None
    version, environment = pinned[1], {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("TRITON_INTERPRET", None)
    if metadata.version("triton") != version:
        work.mkdir(parents=True, exist_ok=True)
        folder = measure.installed(work, f"triton-{version}", [f"triton=={version}"])
        environment["PYTHONPATH"] = os.pathsep.join([str(folder), str(ROOT)])
    command = [sys.executable, str(ROOT / "benchmarks" / "model" / "kernels.py"), "--all"]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    if done.returncode:
        print(*(f"{each['case']} {each['kernel']}: {each['problem']}" for each in rows if each["problem"]), sep="\n")
        done.check_returncode()
    assert {each["triton"] for each in rows} == {version}
    lines = [f"| Triton {version} | registers of a thread | bytes spilled | KB of shared memory | others that spill |"]
    lines.append("|---|---|---|---|---|")
    for case in dict.fromkeys(each["case"].rpartition(":")[0] for each in rows):
        of_case = [each for each in rows if each["case"].startswith(f"{case}:")]
        first, others = [each for each in of_case if each["first"]], [each for each in of_case if not each["first"]]
        registers, spilled = (max(each[name] for each in first) for name in ("registers", "spilled"))
        shared = max(each["shared"] for each in first) / 1024
        spilling = sum(each["spilled"] > 0 for each in others)
        name = f"sm_{case.replace(':', ', ')}"
        lines.append(f"| {name} | {registers} | {spilled} | {shared:.0f} | {spilling} of {len(others)} |")
    return "\n".join(lines)


def compiled_towers() -> str:
    """Compare a step whose towers inductor has compiled with one that is not, and return the differences, in Markdown.

    Raises:
        subprocess.CalledProcessError: they differ by more than a tenth of a percent of the largest number.
    """
    command = [sys.executable, str(ROOT / "benchmarks" / "model" / "inductor.py")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    said = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout
    found = json.loads(said.splitlines()[-1])
    differences = " | ".join(f"{value:.1e}" for value in found["largest"].values())
    return "\n".join(
        [
            f"| inductor, {found['kernels']} kernels | image tower | text tower | heads and loss |",
            "|---|---|---|---|",
            f"| largest difference, as a share of the largest number | {differences} |",
        ]
    )


def main() -> None:
    """Rehearse the configs that are named, and print their tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    every = sorted(file.stem for file in (ROOT / "configs" / "paper").glob("*.yaml"))
    every = [name for name in every if name != "base" and not name.startswith("finetune")]
    parser.add_argument("names", nargs="*", choices=[[], *every])
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--step", action="store_true")
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--work", type=Path, default=Path("~/.cache/wukong/bench-model").expanduser())
    options = parser.parse_args()
    register()
    logging.disable()
    warnings.simplefilter("ignore")  # of fakes whose memory torch asks for
    found = []
    for name in options.names or every:
        try:
            found.append(rehearse(name, experiment_of(name, tuple(options.set)), 0 if options.step else 1000))
        except Exception:  # noqa: BLE001 - what torch raises for fakes has no class in common
            traceback.print_exc()
            sys.exit(f"{name}: the step is refused")
    if options.json:
        print(json.dumps([asdict(each) | {"fits": each.fits} for each in found]))
        return
    print(tables(found), flush=True)
    if options.full:
        print("", compiled_towers(), "", compiled_kernels(options.work), sep="\n")


if __name__ == "__main__":
    main()
