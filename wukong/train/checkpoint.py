"""Checkpoints of a training run. They are safetensors and JSON files, so that loading one never runs code.

A checkpoint is a folder whose name contains the step, below a folder of the attempt (``wukong.store.fence``) that wrote
it. Its ``checkpoint.json`` is written last and names the other files with their sizes: without it there is no
checkpoint. So a run that is killed while it writes one goes on from the one before it, and an older attempt that is
still alive overwrites nothing.

Workers that share the optimiser's state each write a file of it, beside the first worker's other files. A tensor has
the same name in whichever file it is, so any number of workers can go on from them.
"""

import json
import re
import tempfile
import time
import uuid
from collections.abc import Callable, Container, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from wukong.errors import DataError, StorageError
from wukong.model.loss import gathered_constant, world
from wukong.store import fence, storage

_MODEL, _OPTIMIZER, _PROGRESS, _MANIFEST = (
    "model.safetensors",
    "optimizer.safetensors",
    "progress.json",
    "checkpoint.json",
)
_SHARE = "optimizer-{}.safetensors"
"""In the place of ``optimizer.safetensors``, a file for each worker by its rank."""
_FOLDER = re.compile(r"/checkpoint_(\d+)-[0-9a-f]+/checkpoint\.json$")
_LONGEST_URI = 4096
"""Most bytes of a checkpoint's URI."""


def newest(uri: str) -> str | None:
    """Return the URI of the complete checkpoint with the highest step, of all attempts; None if there is none."""
    complete = [(int(match[1]), file) for file in storage.list_files(uri, _MANIFEST) if (match := _FOLDER.search(file))]
    return max(complete)[1].removesuffix(f"/{_MANIFEST}") if complete else None


def agreed(text: str, device: torch.device, most: int = _LONGEST_URI) -> str:
    """Return the first worker's text, of at most so many bytes, on every worker.

    The text may be the URI of a checkpoint: the others may have seen or decided otherwise.
    """
    if world()[1] == 1:
        return text
    data = torch.zeros(most, dtype=torch.uint8, device=device)
    encoded = text.encode() if not world()[0] else b""
    data[: len(encoded)] = torch.frombuffer(bytearray(encoded), dtype=torch.uint8).to(device) if encoded else 0
    dist.broadcast(data, 0)
    return bytes(data.tolist()).rstrip(b"\0").decode()


class Writer:
    """Writes the checkpoints of a run beside its training.

    Workers that share the optimiser's state call ``save``, ``complete`` and ``wait`` together, each of its own writer.

    Args:
        uri: the prefix of the run's checkpoints, of all attempts.
        keep: number of checkpoints of this attempt that are kept, the newest. The best one is kept too.

    Attributes:
        seconds: time for which ``save`` has stopped the training so far.
        writing: seconds that the last complete checkpoint took to write, beside the training.
    """

    def __init__(self, uri: str, keep: int = 2) -> None:
        self._uri = storage.join(uri, fence.attempt() or "one")
        self._keep = keep
        self._held: dict[str, Tensor] = {}
        self._uploader = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._upload: Future[None] | None = None
        self._shared: tuple[torch.device, Callable[[], None]] | None = None
        self._sizes: dict[str, int] = {}
        self.seconds = 0.0
        self.writing = 0.0

    @property
    def busy(self) -> bool:
        """Whether the last checkpoint is still being written, by this worker or another."""
        return self._shared is not None or (self._upload is not None and not self._upload.done())

    def prepare(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Get the memory for the copies beside the training; without this, the first ``save`` waits for it.

        Args:
            model: the model that will be saved.
            optimizer: its optimiser, after its first step.
        """
        files, before = {_OPTIMIZER: _state(optimizer)[0]}, self._upload
        if not world()[0]:
            files[_MODEL] = _trained(model)

        def allocate() -> None:
            if before is not None:
                before.result()  # a checkpoint that is still written: whoever waits for this gets its error
            for file, tensors in files.items():
                for name, value in tensors.items():
                    self._memory(f"{file}:{name}", value)

        self._upload = self._uploader.submit(allocate)

    def place(self, step: int) -> str:
        """Return a URI for the checkpoint of a step; no two are equal."""
        return storage.join(self._uri, f"checkpoint_{step:09d}-{uuid.uuid4().hex[:8]}")

    def save(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        step: int,
        progress: dict[str, Any],
        uri: str | None = None,
        best: str | None = None,
        *,
        shared: bool = False,
    ) -> None:
        """Copy the state of a run to memory of its own, and begin to write it; wait for the checkpoint before it.

        Args:
            model: the model to save.
            optimizer: the optimiser to save, with the numbers and tensors in its parameter groups.
            step: number of steps that were taken.
            progress: a JSON value.
            uri: URI of the checkpoint, from ``place``, where the progress names it; None for a new one.
            best: URI of the checkpoint that is kept though it is not among the newest; None if there is none.
            shared: true where each worker has a share of the optimiser's state, and writes it. The checkpoint is then
                complete only after ``complete`` or ``wait``.

        Raises:
            FencedError: a newer attempt has begun, so the checkpoint before it was not completed.
            StorageError: the checkpoint before it could not be written.
        """
        began = time.monotonic()
        self.wait()
        rank, folder = world()[0], uri or self.place(step)
        tensors, groups = _state(optimizer)
        files = {_SHARE.format(rank) if shared else _OPTIMIZER: self._copied(_OPTIMIZER, tensors)}
        if not rank:
            files[_MODEL] = self._copied(_MODEL, _trained(model))
        if any(value.is_cuda for value in model.parameters()):
            torch.cuda.synchronize()
        text = json.dumps({"progress": progress, "groups": groups})
        publish = partial(self._publish, text, step, folder, best)
        if shared:
            self._shared = next(model.parameters()).device, publish
        self._upload = self._uploader.submit(self._write, files, step, folder, None if shared else publish)
        self.seconds += time.monotonic() - began

    def complete(self) -> None:
        """Begin to complete a checkpoint that workers share, if all of them have written their files.

        Raises:
            StorageError: this worker's file cannot be written.
        """
        if self._shared is None or self._upload is None:
            return
        device, publish = self._shared
        own = 0
        if self._upload.done():
            self._upload.result()
            own = self._sizes[_SHARE.format(world()[0])]
        sizes = gathered_constant(torch.tensor([own], device=device)).tolist()
        if all(sizes):
            self._shared = None
            if not world()[0]:
                self._sizes |= {_SHARE.format(rank): size for rank, size in enumerate(sizes)}
                self._upload = self._uploader.submit(publish)

    def wait(self) -> None:
        """Wait until the last checkpoint is complete.

        Raises:
            FencedError: a newer attempt has begun.
            StorageError: it cannot be written.
        """
        if self._upload is not None:
            self._upload.result()
            self.complete()
            self._upload.result()

    def close(self) -> None:
        """Give the thread and the memory back. A checkpoint that is being written becomes complete in its own time."""
        self._uploader.shutdown(wait=False)
        self._held = {}

    def _copied(self, file: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {
            name: self._memory(f"{file}:{name}", value).copy_(value.detach(), non_blocking=True)
            for name, value in tensors.items()
        }

    def _memory(self, key: str, like: Tensor) -> Tensor:
        """Return memory for a copy. It is used again: getting it from the system takes longer than the copy."""
        held = self._held.get(key)
        if held is None or held.shape != like.shape or held.dtype != like.dtype:
            held = self._held[key] = torch.zeros(like.shape, dtype=like.dtype, pin_memory=like.is_cuda)
        return held

    def _write(
        self,
        files: Mapping[str, dict[str, Tensor]],
        step: int,
        folder: str,
        publish: Callable[[], None] | None,
    ) -> None:
        began, self._sizes = time.monotonic(), {}
        with tempfile.TemporaryDirectory() as local:
            for name, tensors in files.items():
                path = Path(local, name)
                try:
                    save_file(tensors, path)
                except (OSError, SafetensorError) as error:
                    raise StorageError(
                        f"the checkpoint of step {step} cannot be written to {local}: {error}. Free space there, or "
                        "name another folder for temporary files by TMPDIR"
                    ) from error
                storage.upload(path, storage.join(folder, name))
                self._sizes[name] = path.stat().st_size
                path.unlink()
        if publish is not None:
            publish()
        self.writing = time.monotonic() - began

    def _publish(self, progress: str, step: int, folder: str, best: str | None) -> None:
        """Write what makes the files a checkpoint, and delete older ones."""
        data = progress.encode()
        storage.write_bytes(storage.join(folder, _PROGRESS), data)
        fence.publish(storage.join(folder, _MANIFEST), {"step": step, "bytes": {**self._sizes, _PROGRESS: len(data)}})
        complete = [file for file in storage.list_files(self._uri, _MANIFEST) if _FOLDER.search(file)]
        for old in sorted(complete)[: -self._keep]:
            if old.removesuffix(f"/{_MANIFEST}") != best:
                storage.delete(old)  # first, so that what remains is no checkpoint
                storage.delete(old.removesuffix(f"/{_MANIFEST}"))


def _trained(model: nn.Module) -> dict[str, Tensor]:
    """Return the state of a model without that of a tower which is locked as a whole: training does not change it."""
    locked = {
        name
        for name, tower in model.named_children()
        if any(True for _ in tower.parameters()) and not any(weight.requires_grad for weight in tower.parameters())
    }
    return {name: value for name, value in model.state_dict().items() if name.split(".")[0] not in locked}


def _state(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """Return the state of an optimiser as tensors by name, and the JSON values of its parameter groups."""
    state = optimizer.state_dict()
    tensors = {
        f"state.{number}.{name}": torch.as_tensor(value)
        for number, entry in state["state"].items()
        for name, value in entry.items()
    }
    groups = []
    for number, group in enumerate(state["param_groups"]):
        # timm's LAMB stores its step count as a tensor in the group.
        tensors |= {f"group.{number}.{name}": value for name, value in group.items() if isinstance(value, Tensor)}
        groups.append({name: value for name, value in group.items() if not isinstance(value, Tensor)})
    return tensors, groups


def load(
    uri: str, model: nn.Module, optimizer: torch.optim.Optimizer, own: Container[int] | None = None
) -> dict[str, Any]:
    """Restore a checkpoint into a model and an optimiser.

    The first worker alone reads the checkpoint. It sends one tensor after the other to the others.

    Args:
        uri: URI of the checkpoint, from ``newest``.
        model: a model of the architecture that was saved.
        optimizer: an optimiser of the same parameters.
        own: numbers of the parameters whose state the optimiser gets; None for all.

    Returns:
        The progress that ``Writer.save`` got.

    Raises:
        DataError: the checkpoint is incomplete, or belongs to another architecture.
    """
    device = next(model.parameters()).device
    reads = _local(uri, _MODEL, _OPTIMIZER, _PROGRESS) if not world()[0] else nullcontext()
    with _explained(uri), reads as folder:
        locked = {name: value for name, value in model.state_dict().items() if name not in _trained(model)}
        weights = _sent(folder, _MODEL, device)
        model.load_state_dict({**locked, **dict(weights)}, strict=True)
        text = (folder / _PROGRESS).read_text(encoding="utf-8") if folder else ""
        value = json.loads(_sent_text(text, device))
        entries: dict[int, dict[str, Any]] = {}
        for key, tensor in _sent(folder, "optimizer*.safetensors", device):
            kind, number, name = key.split(".", 2)
            if kind == "group":
                value["groups"][int(number)][name] = tensor
            elif own is None or int(number) in own:
                entries.setdefault(int(number), {})[name] = tensor
        progress: dict[str, Any] = value["progress"]
    try:
        optimizer.load_state_dict({"state": entries, "param_groups": value["groups"]})
    except ValueError as error:
        raise DataError(
            f"the checkpoint {uri} belongs to a run that trained other parameters ({error}): delete it and train again"
        ) from error
    return progress


def _sent_text(text: str, device: torch.device) -> str:
    """Return the first worker's text, of any length, on every worker."""
    return agreed(text, device, int(agreed(str(len(text.encode())), device)))


def _sent(folder: Path | None, pattern: str, device: torch.device) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of files in the first worker's folder by their names, on every worker and its CPU."""
    with ExitStack() as stack:
        files = sorted(folder.glob(pattern)) if folder else []
        opened = [stack.enter_context(safe_open(file, "pt")) for file in files]
        held = {name: file.get_tensor(name) for file in opened for name in file.keys()}  # noqa: SIM118 - no mapping
        kinds = {name: (str(value.dtype).removeprefix("torch."), list(value.shape)) for name, value in held.items()}
        for name, (dtype, shape) in json.loads(_sent_text(json.dumps(kinds), device)).items():
            value = held[name] if held else torch.empty(shape, dtype=getattr(torch, dtype))
            if world()[1] > 1 and value.numel():
                value = value.to(device)
                dist.broadcast(value.flatten().view(torch.uint8), 0)
            yield name, value.cpu()


def load_weights(uri: str, goes_with: str = "") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read only the model's state and the progress from a checkpoint.

    Args:
        uri: URI of the checkpoint.
        goes_with: URI of what names it, and is of no use without it; empty where nothing does.

    Raises:
        DataError: the checkpoint is incomplete.
    """
    with _explained(uri, goes_with), _local(uri, _MODEL, _PROGRESS) as folder:
        progress: dict[str, Any] = json.loads((folder / _PROGRESS).read_text(encoding="utf-8"))["progress"]
        return load_file(folder / _MODEL), progress


@contextmanager
def _local(uri: str, *names: str) -> Iterator[Path]:
    """Copy files of a checkpoint to a folder of this machine."""
    sizes = json.loads(storage.read_bytes(storage.join(uri, _MANIFEST)))["bytes"]
    shares = [file for file in sizes if file.startswith(_SHARE.partition("{")[0])]
    with tempfile.TemporaryDirectory() as folder:
        for name in (file for kind in names for file in ((shares or [kind]) if kind == _OPTIMIZER else [kind])):
            path = storage.download(storage.join(uri, name), Path(folder), name)
            if path.stat().st_size != sizes[name]:
                raise ValueError(f"{name} has {path.stat().st_size} bytes, not {sizes[name]}")
        yield Path(folder)


@contextmanager
def _explained(uri: str, goes_with: str = "") -> Iterator[None]:
    try:
        yield
    except StorageError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            raise _unreadable(uri, error, goes_with) from error
        raise
    except OSError as error:
        raise StorageError(
            f"the checkpoint {uri} cannot be copied to {tempfile.gettempdir()}: {error}. Free space there, or name "
            "another folder for temporary files by TMPDIR"
        ) from error
    except (KeyError, TypeError, ValueError, SafetensorError) as error:
        raise _unreadable(uri, error, goes_with) from error
    except RuntimeError as error:
        raise DataError(f"the checkpoint {uri} belongs to another architecture: {error}") from error


def _unreadable(uri: str, error: Exception, goes_with: str) -> DataError:
    gone = goes_with or uri
    return DataError(
        f"the checkpoint {uri} cannot be read ({error}): delete {gone} and run its stage again, which goes on from the "
        "checkpoint before it, or from the start"
    )
