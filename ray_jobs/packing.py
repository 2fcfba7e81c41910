"""The published sets that lie in an object store, packed: a stage for each set and split.

The key is of the set's files, so the filter, trainings and evaluations of an experiment, each worker and each restart
read the same tables. A Ray task packs one set.
"""

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import Any

from ray_jobs.exchange import run_all
from wukong.config.experiment import Experiment
from wukong.evaluate import packed, sets
from wukong.stages import places
from wukong.store.manifest import Manifest, Part, Stage

_AT_ONCE = 4
"""Sets that are packed at a time, perhaps on one machine."""


def made(
    experiment: Experiment, asked: Iterable[tuple[str, str | None]], digests: Mapping[str, str]
) -> dict[str, Manifest]:
    """Pack sets that lie in an object store; those that are packed stay, and a folder of this machine is read in place.

    Args:
        experiment: its ``evaluate.sets`` holds the sets.
        asked: the sets, each with its split; None for the one that is measured where nothing else is said.
        digests: those of some sets, by name, where they have been computed.

    Returns:
        The manifests by the names of the sets, for ``wukong.evaluate.packed.data``.

    Raises:
        DataError: a set is missing or damaged.
        StorageError: the store cannot be read or written.
    """
    root = experiment.evaluate.sets

    def make(name: str, split: str | None) -> tuple[str, Manifest]:
        stage = places.packed(experiment, name, split or sets.of(name).split, digests.get(name))
        return name, stage.made(lambda: _make(stage, root, name, split))

    if root.startswith("file://"):
        return {}
    with ThreadPoolExecutor(_AT_ONCE) as threads:
        # In this context it is known that another stage's output is being made.
        packed_sets = [threads.submit(copy_context().run, make, name, split) for name, split in asked]
    return dict(each.result() for each in packed_sets)


def _make(stage: Stage, root: str, name: str, split: str | None) -> Manifest:
    (parts,) = run_all(_pack, [(stage, root, name, split)])
    return stage.commit([Part.model_validate(part) for part in parts])


def _pack(stage: Stage, root: str, name: str, split: str | None) -> list[dict[str, Any]]:
    return [part.model_dump() for part in packed.pack(stage, root, name, split)]
