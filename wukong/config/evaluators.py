"""The evaluators: what they measure is named here, where the experiment's checks can read it.

An evaluator is an entry of ``EVALUATORS`` and the module that it names. ``wukong.evaluate.tasks`` imports that module;
all else that knows a result by its name takes it from here.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from wukong.runtime.language import _

HOLDOUTS = "holdouts"
"""Stands for all hold-outs in the name of a metric, where the mean over them is meant."""
DIRECTIONS: Mapping[str, str] = {"image_to_text": _("image → text"), "text_to_image": _("text → image")}
CUTOFFS = (1, 5, 10)
_RECALLS = {
    **{f"image_to_text_r{k}": _("image → text R@{k:d}").format(k=k) for k in CUTOFFS},
    **{f"text_to_image_r{k}": _("text → image R@{k:d}").format(k=k) for k in CUTOFFS},
}


@dataclass(frozen=True)
class Result:
    """A result of an evaluator.

    Attributes:
        title: its name on pages.
        per_class: whether it is a mean over classes, for which an image counts one over the number of its class's.
        mean_of: the results whose mean it is; empty for one that the answers give.
    """

    title: str
    per_class: bool = False
    mean_of: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Evaluator:
    """Measures every set of one kind.

    Attributes:
        kind: its name, part of the names of metrics: ``eval/KIND/TASK/RESULT``.
        results: what it measures, by name, in the order of pages.
        main: the result that sums a task up, unless the protocol says another.
        means: the results whose mean over an experiment's hold-outs is a metric too.
        module: the module that measures, which has ``DATA``, the type of the sets that it takes, and ``measure``, as
            ``wukong.evaluate.tasks.Measure``.
    """

    kind: str
    results: Mapping[str, Result]
    main: str
    means: tuple[str, ...]
    module: str


EVALUATORS: dict[str, Evaluator] = {
    evaluator.kind: evaluator
    for evaluator in (
        Evaluator(
            kind="retrieval",
            results={
                "mean_recall": Result(_("mean recall"), mean_of=tuple(_RECALLS)),
                **{name: Result(title) for name, title in _RECALLS.items()},
            },
            main="mean_recall",
            means=("mean_recall",),
            module="wukong.evaluate.image_text",
        ),
        Evaluator(
            kind="classification",
            results={
                "top1": Result(_("top-1")),
                "top5": Result(_("top-5")),
                "mean_per_class": Result(_("mean over classes"), per_class=True),
            },
            main="top1",
            means=("top1",),
            module="wukong.evaluate.zero_shot",
        ),
        Evaluator(
            kind="word_order",
            results={
                "group_score": Result(_("group score")),
                "text_score": Result(_("text score")),
                "image_score": Result(_("image score")),
            },
            main="group_score",
            means=(),
            module="wukong.evaluate.word_order",
        ),
    )
}
"""All evaluators by their kind."""


def results() -> dict[str, Result]:
    """All results by name; stored answers name results without the evaluator."""
    return {name: result for evaluator in EVALUATORS.values() for name, result in evaluator.results.items()}


def result_of(name: str) -> Result:
    """The result with this name; a plain one where no evaluator has it, as in what another version stored."""
    return results().get(name) or Result(name.replace("_", " "))
