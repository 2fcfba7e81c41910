"""Evaluation sets, one file each: every module of this folder assigns one (``DataSet``) to ``SET``.

To add a set, add a file and, for a classification set, its class names; nothing else names it. The interface is
``wukong/evaluate/data_set.py``. ``docs/evaluation-sets.md`` says how to get each set.
"""

from collections.abc import Collection, Sequence
from pathlib import Path

from wukong.errors import ConfigError
from wukong.evaluate.data_set import Classification, Data, DataSet, Retrieval, WordOrder
from wukong.runtime.language import joined
from wukong.runtime.registered import registered

REGISTRY: dict[str, DataSet] = registered(__name__, "SET", Classification, Retrieval, WordOrder)
"""All evaluation sets by their names."""

ALL = "all"
"""In the place of names: every set."""


def of(name: str) -> DataSet:
    """The set with this name.

    Raises:
        ConfigError: there is none.
    """
    if name not in REGISTRY:
        raise ConfigError(f"there is no evaluation set {name!r}: take one of {', '.join(REGISTRY)}")
    return REGISTRY[name]


def chosen(tasks: str, holdouts: Sequence[str] = ()) -> list[str]:
    """Return the names in a comma-separated list, or all for ``all``: sets in the registry's order, then hold-outs.

    Args:
        tasks: the list.
        holdouts: names of the hold-outs' tasks, of an experiment.

    Raises:
        ConfigError: there is no such task, or no name.
    """
    known = [*REGISTRY, *holdouts]
    asked = [name.strip() for name in tasks.split(",") if name.strip()]
    if not asked:
        raise ConfigError(f"tasks: {tasks!r} names none; allowed: {ALL}, or some of {', '.join(known)}")
    if asked == [ALL]:
        return known
    for name in asked:
        if name not in known:
            raise ConfigError(
                f"tasks: there is no evaluation set {name!r}: take some of {', '.join(known)}"
                f"{'' if holdouts else '; hold-outs are those of --config'}"
            )
    return [name for name in known if name in asked]


def read(name: str, root: Path, split: str | None = None) -> Data:
    """Read a set from its folder below the folder that holds all sets, ``ROOT/NAME``.

    Raises:
        ConfigError: there is no such set.
        DataError: it cannot be read, see the method ``read`` of the kinds of sets.
    """
    return of(name).read(root / name, split)


def missing(measured: Collection[str]) -> dict[str, str]:
    """Return, for each published set that was not measured, what to download and where to put it."""
    return {
        name: joined([each.title, str(each.how_to_get)], ": ")
        for name, each in REGISTRY.items()
        if name not in measured
    }


def notes(measured: Collection[str]) -> dict[str, str]:
    """Return what must be known of the published sets that were measured to read their numbers."""
    return {name: each.note for name, each in REGISTRY.items() if name in measured and each.note}
