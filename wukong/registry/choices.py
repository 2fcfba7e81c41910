"""From how many models a model was chosen, and by which metric.

The best of many models is partly the luckiest on the queries that chose it. So whoever tests it on these queries counts
all of them (``wukong.registry.promotion``). Two things choose: ``validation.keep: best`` of a training, which leaves
its validations beside the model, and a sweep. A sweep leaves a file for each of its metrics,
``sweeps/NAME-DIGEST.json`` below the experiment's prefix, which names its models by the digests of their manifests.
"""

import math
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel, ConfigDict

from wukong import stages
from wukong.runtime.language import _
from wukong.store import manifest, storage
from wukong.store.manifest import Manifest, digest_of

_SWEEPS = "sweeps"
_SWEEP = "the sweep "


class Choice(BaseModel):
    """One choice among models.

    Attributes:
        by: what chose, in words.
        of: from how many models.
        metric: by which, as ``KIND/TASK/RESULT``.
        tasks: those that a mean over hold-outs is of; empty for all hold-outs.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    by: str
    of: int
    metric: str
    tasks: tuple[str, ...] = ()

    @property
    def said(self) -> str:
        """What chose, as a text of the catalogue."""
        names = self.by.removeprefix(_SWEEP)
        return self.by if names == self.by else _("the sweep {names}").format(names=names)


def record_trial(root: str, sweep: str, metric: str, run: str, evaluated: Manifest) -> None:
    """Record that a sweep has a result of a model. Call it before anybody sees the result.

    Args:
        root: the experiment's prefix.
        sweep: the sweep's name.
        metric: by which the sweep chooses, as ``eval/KIND/TASK/RESULT``.
        run: name of the trial's run.
        evaluated: manifest of the trial's evaluation.
    """
    uri = storage.join(root, _SWEEPS, f"{sweep}-{digest_of(metric)[:8]}.json")
    models = {parent.digest: run for parent in evaluated.parents if parent.stage == stages.TRAININGS[-1]}

    def with_trial(known: Any) -> dict[str, Any]:
        before = known["models"] if known else {}
        return {"format": 1, "sweep": sweep, "metric": metric, "models": {**before, **models}}

    storage.update(uri, with_trial)


def of_model(root: str, model: Manifest) -> list[Choice]:
    """Find the choices that led to a model.

    Args:
        root: the prefix of its experiment.
        model: manifest of its training; the training that it starts from is looked at too.

    Raises:
        DataError: the files of a training are gone.
        StorageError: the store cannot be read.
    """
    return [*_sweeps(root, model), *_validations(model)]


def _sweeps(root: str, model: Manifest) -> Iterator[Choice]:
    """One choice for each metric: sweeps by one metric that have the model in common count together."""
    together: dict[str, tuple[set[str], set[str]]] = {}
    for uri in storage.list_files(storage.join(root, _SWEEPS), ".json"):
        sweep = storage.read_json(uri)
        if model.digest in sweep["models"]:
            names, models = together.setdefault(sweep["metric"].partition("/")[2], (set(), set()))
            names.add(sweep["sweep"])
            models.update(sweep["models"])
    for metric, (names, models) in sorted(together.items()):
        yield Choice(by=f"{_SWEEP}{', '.join(sorted(names))}", of=len(models), metric=metric)


def _validations(model: Manifest) -> Iterator[Choice]:
    for parent in model.parents:
        if parent.stage in stages.TRAININGS:
            yield from _validations(manifest.load(parent.uri))
    asked = model.config.get("training", {}).get("validation", {})
    if asked.get("keep") == "best":
        history = storage.read_json(*model.file("history.json"))["validations"]["history"]
        values = [each["metrics"].get(asked["metric"], -math.inf) for each in history]
        measured = sum(map(math.isfinite, values))
        yield Choice(
            by=f"{model.stage}.validation", of=max(1, measured), metric=asked["metric"], tasks=tuple(asked["tasks"])
        )
