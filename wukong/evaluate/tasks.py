"""Evaluation tasks: a model, a set or hold-out, and a protocol give results with intervals.

``measure`` finds the evaluator (``wukong.config.evaluators``) that takes the data.
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
from wukong.errors import ConfigError
from wukong.evaluate import sets
from wukong.evaluate.data_set import Data
from wukong.evaluate.model import Model
from wukong.evaluate.protocol import Protocol
from wukong.evaluate.published import NotThereError
from wukong.evaluate.results import Outcome

ALL = "all"


class Measure(Interface):
    """The function ``measure`` of an evaluator's module."""

    def __call__(self, model: Model, data: Any, protocol: Protocol, cache: Path, encoded: Tensor | None) -> Outcome:
        """Measure a model; arguments as those of ``wukong.evaluate.tasks.measure``.

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


def chosen(tasks: str, holdouts: Sequence[str] = ()) -> list[str]:
    """Return the names in a comma-separated list, or all for ``all``: sets in the registry's order, then hold-outs.

    Args:
        tasks: the list.
        holdouts: names of the hold-outs' tasks, of an experiment.

    Raises:
        ConfigError: there is no such task, or no name.
    """
    known = [*sets.REGISTRY, *holdouts]
    asked = [name.strip() for name in tasks.split(",") if name.strip()]
    if not asked:
        raise ConfigError(f"tasks: {tasks!r} names none; allowed: {ALL}, or some of {', '.join(known)}")
    if asked == [ALL]:
        return known
    for name in asked:
        if name not in known:
            hint = "" if holdouts else "; hold-outs are those of --config"
            raise ConfigError(f"tasks: there is no evaluation set {name!r}: take some of {', '.join(known)}{hint}")
    return [name for name in known if name in asked]


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


def measure(
    model: Model, data: Data, protocol: Protocol, cache: Path | None = None, encoded: Tensor | None = None
) -> Outcome:
    """Measure one task with the evaluator that takes its data.

    Args:
        model: the model.
        data: what ``read`` of a set returns, or a hold-out of ``wukong.evaluate.holdouts``.
        protocol: the protocol.
        cache: folder of embedded classes; None for one that is deleted afterwards.
        encoded: the images' vectors, in the data's order, where they are known; None to encode the images.

    Raises:
        DataError: see ``Measure``.
        ConfigError: no evaluator takes the data.
    """
    for evaluator in EVALUATORS.values():
        module = import_module(evaluator.module)
        if isinstance(data, module.DATA):
            measure_one: Measure = module.measure
            with torch.inference_mode(), TemporaryDirectory() as scratch:
                return measure_one(model, data, protocol, cache or Path(scratch), encoded)
    raise ConfigError(f"no evaluator takes {data.name}, which is read as {type(data).__name__}")
