"""Evaluation tasks: a model, a set or hold-out, and a protocol give results with intervals.

An evaluator (``wukong.config.evaluators``) takes the data. It divides the work into ``blocks``, each of which ``make``
does, and ``outcome`` gives the results when all are done. ``measure`` does all this in one process.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from typing import Protocol as Interface

import torch
from torch import Tensor

from wukong.config.evaluators import EVALUATORS
from wukong.data.views import Loaders
from wukong.errors import ConfigError
from wukong.evaluate import encoding, sets
from wukong.evaluate.blocks import Block, Files, Sizes, Work
from wukong.evaluate.data_set import Data
from wukong.evaluate.model import Model
from wukong.evaluate.protocol import Protocol
from wukong.evaluate.published import NotThereError
from wukong.evaluate.results import Outcome

_ONE = "model"


class Measure(Interface):
    """The function ``measure`` of an evaluator's module.

    The module may also have ``blocks`` and ``make``, with the arguments of the functions of these names here.
    """

    def __call__(self, work: Work, role: str) -> Outcome:
        """Give the results of a model, from the files of all blocks.

        Args:
            work: the task.
            role: the model's.

        Raises:
            DataError: a vector is not finite, all are equal, or the set cannot be measured; no result is made up.
        """
        ...


@dataclass(frozen=True)
class Read:
    """What was read of the chosen tasks.

    Attributes:
        data: the data of each task that is there, by its name.
        missing: what to download and where to put it, of each task that is not there; only for ``all``.
    """

    data: Mapping[str, Data]
    missing: Mapping[str, str]


def read(names: Sequence[str], folders: Mapping[str, Path], root: Path, protocol: Protocol, *, skip: bool) -> Read:
    """Read sets before any model works: ids and labels, no images.

    Args:
        names: the names of sets.
        folders: folders of some sets; the others' is the folder with their name below ``root``.
        root: the folder that holds all sets.
        protocol: says which split is read.
        skip: whether a set that is not there is left out, and not an error.

    Raises:
        ConfigError: there is no such set.
        NotThereError: a set is not there.
        DataError: a set is damaged, or is not the published one.
    """
    there: dict[str, Data] = {}
    missing: dict[str, str] = {}
    for name in names:
        data_set = sets.of(name)
        try:
            there[name] = data_set.read(folders.get(name, root / name), protocol.split(name))
        except NotThereError as error:
            if not skip:
                raise
            missing[name] = str(error)
    return Read(there, missing)


def blocks(data: Data, protocol: Protocol, roles: Sequence[str], sizes: Sizes) -> list[list[Block]]:
    """Divide the work on a task into phases: the blocks of one need the files of those before.

    Args:
        data: what ``read`` of a set returns, or a hold-out of ``wukong.evaluate.holdouts``.
        protocol: the protocol.
        roles: the models that are measured.
        sizes: how large blocks are.

    Raises:
        DataError: the set cannot be measured.
        ConfigError: no evaluator takes the data.
    """
    evaluator = _evaluator_of(data)
    return evaluator.blocks(data, protocol, roles, sizes) if hasattr(evaluator, "blocks") else []


@torch.inference_mode()
def make(work: Work, block: Block) -> None:
    """Do the work of a block, and leave its files.

    Args:
        work: the task; the files of the phases before are there.
        block: one of ``blocks``.

    Raises:
        DataError: an image cannot be decoded, or a vector is not finite.
    """
    _evaluator_of(work.data).make(work, block)


@torch.inference_mode()
def outcome(work: Work, role: str) -> Outcome:
    """Give the results of a model when all blocks are done; for the arguments and errors see ``Measure``."""
    measure_one: Measure = _evaluator_of(work.data).measure
    return measure_one(work, role)


def _evaluator_of(data: Data) -> Any:
    for evaluator in EVALUATORS.values():
        module = import_module(evaluator.module)
        if isinstance(data, module.DATA):
            return module
    raise ConfigError(f"no evaluator takes {data.name}, which is read as {type(data).__name__}")


def measure_all(
    models: Mapping[str, Model],
    data: Data,
    protocol: Protocol,
    cache: Path | None = None,
    encoded: Mapping[str, Tensor] | None = None,
    loading: Loaders[Any, Tensor] | None = None,
) -> dict[str, Outcome]:
    """Measure models on one task in this process.

    Args:
        models: the models by their roles.
        data: what ``read`` of a set returns, or a hold-out of ``wukong.evaluate.holdouts``.
        protocol: the protocol.
        cache: folder of embedded classes; None for one that is deleted afterwards.
        encoded: the images' vectors by each model, in the data's order; None to encode the images.
        loading: what ``encoding.loaders`` gives for the models; None to decode images in this process.

    Raises:
        DataError: see ``Measure``.
        ConfigError: no evaluator takes the data.
    """

    def encode(rows: slice) -> Mapping[str, Tensor]:
        if encoded is not None:
            return {role: vectors[rows] for role, vectors in encoded.items()}
        return encoding.encode(models, data, protocol, rows, loading)

    with TemporaryDirectory(prefix="wukong-evaluate-") as scratch:
        files, classes = Files(Path(scratch)), Files(cache or Path(scratch, "classes"))
        work = Work(data, protocol, models, encode, files, classes)
        for phase in blocks(data, protocol, list(models), work.sizes):
            for block in phase:
                make(work, block)
        return {role: outcome(work, role) for role in models}


def measure(
    model: Model, data: Data, protocol: Protocol, cache: Path | None = None, encoded: Tensor | None = None
) -> Outcome:
    """Measure one model in this process; see ``measure_all``."""
    return measure_all({_ONE: model}, data, protocol, cache, None if encoded is None else {_ONE: encoded})[_ONE]
