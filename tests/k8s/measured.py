"""Evaluations as the evaluate stage leaves them, of answers that a test makes up."""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from wukong.evaluate import answers, interval, results
from wukong.evaluate.results import HOLDOUT, MeasuredModel, Outcome
from wukong.store import storage
from wukong.store.manifest import Manifest, Stage

CUTOFFS = (1, 5, 10)


def hits(rng: np.random.Generator, queries: int, share: float) -> npt.NDArray[np.bool_]:
    """Whether each query of a model that is right as often as this is right."""
    return rng.random(queries) < share


def searched(task: str, right: npt.NDArray[np.bool_], digest: str = "", protocol: str = "own") -> Outcome:
    """The outcome on a hold-out of as many images, each with one caption, that text finds at the first place or not."""
    queries = len(right)
    values = {f"{way}_r{k}": right.astype(float) for way in ("text_to_image", "image_to_text") for k in CUTOFFS}
    ids = [f"{task}{i}" for i in range(queries)]
    whole = answers.Answers(tuple(ids), np.arange(queries), np.full(queries, -1), values)
    intervals = interval.of(np.stack(list(values.values()), 1))
    found = dict(zip(values, intervals, strict=True)) | {"mean_recall": intervals[0]}
    chance = {name: int(name.rpartition("_r")[2]) / queries for name in values}
    sizes = {"images": queries, "captions": queries}
    return Outcome(task, task.title(), "retrieval", HOLDOUT, digest or f"{task}{queries}".ljust(64, "0"), protocol,
                   sizes, "mean_recall", found, chance, answers=whole)  # fmt: skip


def classified(task: str, right: npt.NDArray[np.bool_], classes: int = 4, split: str = HOLDOUT) -> Outcome:
    """The outcome on a classification set."""
    labels = np.arange(len(right)) % classes
    whole = answers.of_images([str(i) for i in range(len(right))], labels, {"top1": right, "mean_per_class": right})
    found = {"top1": interval.of(right)[0], "mean_per_class": interval.mean_per_class(right, labels)}
    sizes = {"images": len(right), "classes": classes}
    return Outcome(task, task.title(), "classification", split, f"{task}{len(right)}".ljust(64, "0"), "own", sizes,
                   "top1", found, {"top1": 1 / classes, "mean_per_class": 1 / classes}, answers=whole)  # fmt: skip


def evaluation(root: str, outcomes: Sequence[Outcome], parents: Sequence[Manifest] = (), *, key: str = "",
               stored: bool = True, extra: Mapping[str, float] | None = None) -> Manifest:  # fmt: skip
    """Write an evaluation and commit its manifest.

    Args:
        root: the experiment's prefix.
        outcomes: of the fine-tuned model.
        parents: manifests it is made from.
        key: what tells it apart from others.
        stored: whether the answers are stored.
        extra: further metrics.
    """
    stage = Stage(root, "evaluate", {"key": key}, parents)
    entries = [each.as_json("finetuned") for each in outcomes]
    model = MeasuredModel("finetuned", "x", parents[-1].digest if parents else key.ljust(64, "0"), False)
    document = results.document([model], {"own": ["Protocol own."]}, entries, {})
    storage.write_json(stage.path("evaluation.json"), document)
    names = ["evaluation.json"]
    for each in outcomes if stored else ():
        assert each.answers is not None
        names.append(f"{answers.FOLDER}/{each.task}.parquet")
        table = answers.table({"finetuned": each.answers}, task=each.task, digest=each.digest, protocol=each.protocol)
        storage.write_table(stage.path(names[-1]), table)
    metrics = results.metrics_of(entries, "finetuned") | dict(extra or {})
    return stage.commit([stage.describe(name) for name in names], metrics=metrics)
