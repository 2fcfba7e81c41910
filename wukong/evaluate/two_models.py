"""The difference of two models that were measured on one task: its paired interval, and McNemar's test beside it."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from wukong.config import evaluators
from wukong.errors import DataError
from wukong.evaluate import interval, paired
from wukong.evaluate.answers import Answers

BASELINE, OTHER = "pretrained", "finetuned"
"""The roles of the two models: a difference is the result of ``OTHER`` less that of ``BASELINE``."""


def compared(task: str, answered: Mapping[str, Answers]) -> list[dict[str, Any]]:
    """Compare the fine-tuned model with the zero-shot one by their answers to the same queries.

    McNemar's test takes queries as independent. It is left out where they are not, because several captions belong to
    one image, where an answer is a share, and for means: the mean over classes and the mean recall. The interval,
    which takes the captions of an image as one unit, is right for all of them.

    Args:
        task: name of the set or hold-out.
        answered: the answers of ``pretrained`` and of ``finetuned`` by role, in any order.

    Returns:
        For each result ``task``, ``result``, ``first`` (``pretrained``) and ``second`` (``finetuned``), ``difference``
        (an interval: the fine-tuned model's result less the zero-shot one's) and ``mcnemar`` (``only_first``,
        ``only_second``, ``p``, ``exact``; or None). Empty if one of the two has no answers.

    Raises:
        DataError: the models did not answer the same queries.
    """
    if not answered.keys() >= {BASELINE, OTHER}:
        return []
    before, after = answered[BASELINE], answered[OTHER]
    if before.queries != after.queries or not np.array_equal(before.units, after.units):
        raise DataError(f"{task}: the two models did not answer the same queries: measure both on the same data")
    (differences,) = paired.differences(before.scores(), [after.scores()])
    return [
        {
            "task": task,
            "result": name,
            "first": BASELINE,
            "second": OTHER,
            "difference": asdict(difference),
            "mcnemar": _mcnemar(name, before, after),
        }
        for name, difference in differences.items()
    ]


def _mcnemar(name: str, before: Answers, after: Answers) -> dict[str, Any] | None:
    if name not in before.results or evaluators.result_of(name).per_class:
        return None
    counts = np.isfinite(before.results[name])
    answers = [each.results[name][counts] for each in (before, after)]
    units = before.units[counts]
    if len(np.unique(units)) < len(units) or not all(np.isin(each, (0, 1)).all() for each in answers):
        return None
    return asdict(interval.mcnemar(*answers))
