"""Checkpoints of a training run. They are safetensors and JSON files, so that loading one never runs code.

A checkpoint is a folder whose name contains the step, below a folder of the attempt (``wukong.store.fence``) that wrote
it. Its ``checkpoint.json`` is written last and names the other files with their sizes: without it there is no
checkpoint. So a run that is killed while it writes one goes on from the one before it, and an older attempt that is
still alive overwrites nothing.
"""

import json
import re
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from wukong.errors import DataError, StorageError
from wukong.store import fence, storage

_MODEL, _OPTIMIZER, _PROGRESS, _MANIFEST = (
    "model.safetensors",
    "optimizer.safetensors",
    "progress.json",
    "checkpoint.json",
)
_FOLDER = re.compile(r"/checkpoint_(\d+)-[0-9a-f]+/checkpoint\.json$")


def newest(uri: str) -> str | None:
    """Return the URI of the complete checkpoint with the highest step, of all attempts; None if there is none."""
    complete = [(int(match[1]), file) for file in storage.list_files(uri, _MANIFEST) if (match := _FOLDER.search(file))]
    return max(complete)[1].removesuffix(f"/{_MANIFEST}") if complete else None


class Writer:
    """Writes the checkpoints of a run beside its training.

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
        self.seconds = 0.0
        self.writing = 0.0

    @property
    def busy(self) -> bool:
        """Whether the last checkpoint is still being written."""
        return self._upload is not None and not self._upload.done()

    def prepare(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Get the memory for the copies beside the training; without this, the first ``save`` waits for it.

        Args:
            model: the model that will be saved.
            optimizer: its optimiser, after its first step.
        """
        files, before = {_MODEL: _trained(model), _OPTIMIZER: _state(optimizer)[0]}, self._upload

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
    ) -> None:
        """Copy the state of a run to memory of its own, and begin to write it; wait for the checkpoint before it.

        Args:
            model: the model to save.
            optimizer: the optimiser to save, with the numbers and tensors in its parameter groups.
            step: number of steps that were taken.
            progress: a JSON value.
            uri: URI of the checkpoint, from ``place``, where the progress names it; None for a new one.
            best: URI of the checkpoint that is kept though it is not among the newest; None if there is none.

        Raises:
            FencedError: a newer attempt has begun, so the checkpoint before it was not completed.
            StorageError: the checkpoint before it could not be written.
        """
        began = time.monotonic()
        self.wait()
        tensors, groups = _state(optimizer)
        files = {_MODEL: self._copied(_MODEL, _trained(model)), _OPTIMIZER: self._copied(_OPTIMIZER, tensors)}
        if any(value.is_cuda for value in model.parameters()):
            torch.cuda.synchronize()
        text = json.dumps({"progress": progress, "groups": groups})
        self._upload = self._uploader.submit(self._write, files, text, step, uri or self.place(step), best)
        self.seconds += time.monotonic() - began

    def wait(self) -> None:
        """Wait until the last checkpoint is complete.

        Raises:
            FencedError: a newer attempt has begun.
            StorageError: it cannot be written.
        """
        if self._upload is not None:
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
        self, files: Mapping[str, dict[str, Tensor]], progress: str, step: int, folder: str, best: str | None
    ) -> None:
        sizes, began = {}, time.monotonic()
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
                sizes[name] = path.stat().st_size
                path.unlink()
        data = progress.encode()
        storage.write_bytes(storage.join(folder, _PROGRESS), data)
        fence.publish(storage.join(folder, _MANIFEST), {"step": step, "bytes": {**sizes, _PROGRESS: len(data)}})
        complete = [file for file in storage.list_files(self._uri, _MANIFEST) if _FOLDER.search(file)]
        for old in sorted(complete)[: -self._keep]:
            if old.removesuffix(f"/{_MANIFEST}") != best:
                storage.delete(old)  # first, so that what remains is no checkpoint
                storage.delete(old.removesuffix(f"/{_MANIFEST}"))
        self.writing = time.monotonic() - began


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


def load(uri: str, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Restore a checkpoint into a model and an optimiser.

    Args:
        uri: URI of the checkpoint, from ``newest``.
        model: a model of the architecture that was saved.
        optimizer: an optimiser of the same parameters.

    Returns:
        The progress that ``Writer.save`` got.

    Raises:
        DataError: the checkpoint is incomplete, or belongs to another architecture.
    """
    with _explained(uri), _local(uri, _MODEL, _OPTIMIZER, _PROGRESS) as folder:
        locked = {name: value for name, value in model.state_dict().items() if name not in _trained(model)}
        model.load_state_dict({**locked, **load_file(folder / _MODEL)}, strict=True)
        tensors = load_file(folder / _OPTIMIZER)
        value = json.loads((folder / _PROGRESS).read_text(encoding="utf-8"))
        entries: dict[int, dict[str, Any]] = {}
        for key, tensor in tensors.items():
            kind, number, name = key.split(".", 2)
            entry = value["groups"][int(number)] if kind == "group" else entries.setdefault(int(number), {})
            entry[name] = tensor
        progress: dict[str, Any] = value["progress"]
    try:
        optimizer.load_state_dict({"state": entries, "param_groups": value["groups"]})
    except ValueError as error:
        raise DataError(
            f"the checkpoint {uri} belongs to a run that trained other parameters ({error}): delete it and train again"
        ) from error
    return progress


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
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
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
