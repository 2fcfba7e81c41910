"""Checkpoints of a training run. They are safetensors and JSON files, so that loading one never runs code."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from wukong.errors import DataError

_MODEL, _OPTIMIZER, _PROGRESS = "model.safetensors", "optimizer.safetensors", "progress.json"


def save(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, progress: dict[str, Any]) -> None:
    """Write a checkpoint: the state of the model and of the optimiser, and the progress of the run.

    Args:
        folder: an existing folder; files of the same name are replaced.
        model: the model to save.
        optimizer: the optimiser to save, with the numbers and tensors in its parameter groups.
        progress: a JSON value.
    """
    state = optimizer.state_dict()
    tensors = {
        f"state.{number}.{name}": value for number, entry in state["state"].items() for name, value in entry.items()
    }
    groups = []
    for number, group in enumerate(state["param_groups"]):
        # timm's LAMB stores its step count as a tensor in the group.
        tensors |= {f"group.{number}.{name}": value for name, value in group.items() if isinstance(value, Tensor)}
        groups.append({name: value for name, value in group.items() if not isinstance(value, Tensor)})
    save_file({name: value.detach().contiguous() for name, value in model.state_dict().items()}, folder / _MODEL)
    save_file({name: torch.as_tensor(value).contiguous() for name, value in tensors.items()}, folder / _OPTIMIZER)
    (folder / _PROGRESS).write_text(json.dumps({"progress": progress, "groups": groups}), encoding="utf-8")


def load(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Restore a checkpoint into a model and an optimiser.

    Returns:
        The progress that ``save`` got.

    Raises:
        DataError: the checkpoint is incomplete, or belongs to another architecture.
    """
    with _explained(folder):
        model.load_state_dict(load_file(folder / _MODEL), strict=True)
        tensors = load_file(folder / _OPTIMIZER)
        value = json.loads((folder / _PROGRESS).read_text(encoding="utf-8"))
        entries: dict[int, dict[str, Any]] = {}
        for key, tensor in tensors.items():
            kind, number, name = key.split(".", 2)
            place = value["groups"][int(number)] if kind == "group" else entries.setdefault(int(number), {})
            place[name] = tensor
        progress: dict[str, Any] = value["progress"]
    try:
        optimizer.load_state_dict({"state": entries, "param_groups": value["groups"]})
    except ValueError as error:
        raise DataError(
            f"the checkpoint in {folder} belongs to a run that trained other parameters ({error}): delete it and train "
            "again"
        ) from error
    return progress


def load_weights(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read only the model's state and the progress from a checkpoint.

    Raises:
        DataError: the checkpoint is incomplete.
    """
    with _explained(folder):
        state = load_file(folder / _MODEL)
        progress: dict[str, Any] = json.loads((folder / _PROGRESS).read_text(encoding="utf-8"))["progress"]
        return state, progress


@contextmanager
def _explained(folder: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, SafetensorError) as error:
        raise DataError(f"the checkpoint in {folder} cannot be read ({error}): delete it and train again") from error
    except RuntimeError as error:
        raise DataError(f"the checkpoint in {folder} belongs to another architecture: {error}") from error
