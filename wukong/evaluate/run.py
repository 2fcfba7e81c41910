"""An evaluation, for ``wukong evaluate`` and for the evaluate stage, which differ in where models and data come from.

A ``Task`` is measured with one model after another; ``document`` joins what was measured of all tasks.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
from torch import Tensor

from wukong.data.views import Loaders
from wukong.evaluate import answers, examples, overlap, results, sets, tasks, trained_on, two_models
from wukong.evaluate.answers import Answers
from wukong.evaluate.data_set import Data
from wukong.evaluate.model import Model
from wukong.evaluate.protocol import Protocol
from wukong.evaluate.results import HOLDOUT, MeasuredModel, Outcome
from wukong.evaluate.trained_on import Pairs, Pictures
from wukong.model.saved_model import SavedModel

NOTHING: Mapping[str, Any] = {"tasks": {}, "pictures": {}, "alignments": [], "comparisons": []}
"""The record, without its name, of a task that has no data."""


@dataclass(frozen=True)
class Task:
    """A set or hold-out with its protocol, and what was measured of it.

    Attributes:
        data: the set or hold-out.
        protocol: how it is measured.
        outcomes: the results of each model that was measured, by its role.
        pictures: the small images of the page, by ``examples.pictures`` and ``examples.aligned``.
        alignments: entries of ``examples.aligned``.
    """

    data: Data
    protocol: Protocol
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    pictures: dict[str, str] = field(default_factory=dict)
    alignments: list[dict[str, Any]] = field(default_factory=list)

    def measure(
        self, models: Mapping[str, Model], cache: Path | None = None, loading: Loaders[Any, Tensor] | None = None
    ) -> None:
        """Measure models in this process; arguments as those of ``tasks.measure_all``.

        Raises:
            DataError: see ``tasks.measure_all``.
        """
        self.outcomes.update(tasks.measure_all(models, self.data, self.protocol, cache, loading=loading))

    def draw(self, role: str, saved: SavedModel | None = None) -> None:
        """Make the small images of a measured model's examples, and alignments if its towers are given.

        Raises:
            DataError: an image cannot be decoded.
        """
        self.pictures.update(examples.pictures(self.data, self.outcomes[role], self.pictures))
        if saved is not None:
            alignments, squares = examples.aligned(saved, self.data, self.outcomes[role], role)
            self.alignments.extend(alignments)
            self.pictures.update(squares)

    def answers(self) -> dict[str, Answers]:
        """Return the answers of each model by its role, of evaluators that give answers."""
        return {role: each.answers for role, each in self.outcomes.items() if each.answers is not None}

    def table(self, *roles: str) -> pa.Table | None:
        """Return the table of the answers of some models, as ``answers.table``; None if they have none."""
        given = {role: each for role, each in self.answers().items() if role in roles}
        about = {"task": self.data.name, "digest": self.data.digest, "protocol": self.protocol.name}
        return answers.table(given, **about) if given else None

    def record(self) -> dict[str, Any]:
        """Return what ``document`` and the page take, as JSON.

        Returns:
            ``name``; ``tasks``, by role the entries of the results; ``pictures``, the small images by their ids;
            ``alignments``; ``comparisons`` of both models; of all pictures ``ids`` and ``digests``
            (``trained_on.digests``), and ``held_out``, whether they are of hold-outs.
        """
        return {
            "name": self.data.name,
            "tasks": {role: [outcome.as_json(role)] for role, outcome in self.outcomes.items()},
            "pictures": self.pictures,
            "alignments": self.alignments,
            "comparisons": two_models.compared(self.data.name, self.answers()),
            "ids": list(self.data.ids),
            "digests": trained_on.digests(self.data),
            "held_out": self.data.split == HOLDOUT,
        }


def document(
    models: Sequence[MeasuredModel],
    protocols: Iterable[Protocol],
    records: Sequence[Mapping[str, Any]],
    trained: Mapping[str, set[Pairs] | str],
    answered: Callable[[str, str], Answers | None] = lambda _name, _role: None,
) -> dict[str, Any]:
    """Make the document of an evaluation, see ``results.document``.

    Args:
        models: the models that were measured.
        protocols: the protocols of all tasks.
        records: what ``Task.record`` returned of each task.
        trained: what each model was trained on, or why that is not known, by role.
        answered: gives the answers to a task, by its name, of a model, by its role; None where there are none.
    """
    # A task that has no data has no pictures.
    pictures = {
        each["name"]: Pictures(each["ids"], each["digests"], each["held_out"]) for each in records if "ids" in each
    }
    seen = trained_on.seen(trained, pictures)
    by_role = [(model.role, record) for model in models for record in records]
    entries = [entry for role, record in by_role for entry in record["tasks"].get(role, ())]
    measured = {entry["task"] for entry in entries}
    return results.document(
        models,
        {protocol.name: protocol.describe() for protocol in protocols},
        entries,
        sets.missing(measured),
        [each for role, record in by_role for each in record["alignments"] if each["model"] == role],
        [each for record in records for each in record["comparisons"]],
        sets.notes(measured),
        trained_on.counts(trained, pictures, seen),
        overlap.entries(trained, pictures, seen, answered),
    )
