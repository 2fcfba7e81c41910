"""Features: the output of a locked image tower for every image and view, computed once and stored.

Features of the training pairs and of the hold-outs are two outputs of the stage. Each key consists of the filter's
manifest, the image encoder and the views. So pre-training and fine-tuning, or all evaluations, in this run and in later
ones, read the same files. The jobs that need features call ``run``. A view of a shard is one task. If a training stage
trained the tower itself, later stages use features of that tower.
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Literal

import ray

from wukong import places, progress, storage
from wukong.config import Experiment, Model
from wukong.data import shards
from wukong.manifest import Manifest, Part, Stage
from wukong.train import features

log = logging.getLogger(__name__)


def run(
    experiment: Experiment,
    parents: Mapping[str, Manifest],
    model: Manifest | None = None,
    pairs: Literal["train", "holdouts"] = "train",
) -> Manifest:
    """Compute the features of shards: the evaluation view of each, and of training shards the augmented views too.

    Args:
        experiment: its ``model.image``, ``model.similarity`` and the ``views`` of both trainings decide the output.
        parents: the filter's manifest under ``filter``.
        model: the training stage whose image tower is used; None for the tower that the experiment names.
        pairs: ``train`` for the training pairs, ``holdouts`` for every hold-out.

    Raises:
        ConfigError: the image encoder or its weights cannot be had.
        DataError: a shard is damaged.
    """
    filtered = parents["filter"]
    stage, trained = places.features(experiment, filtered, model, pairs), places.trained_tower(model)
    views = int(stage.config["views"])
    tower = storage.join(trained.uri, "model") if trained else None
    if finished := stage.finished():
        return finished
    work = _work(filtered, pairs, views)
    waiting = {}
    parts: list[Part] = []
    with progress.track("features", sum(rows for _, _, rows in work), "pictures") as advance:
        for tar, view, rows in work:
            target = features.path_of(tar.parent.name, tar.stem, view)
            record = stage.finished_task(target)
            if record is None:
                waiting[
                    _compute.remote(stage, storage.join(filtered.uri, str(tar)), target, experiment.model, view, tower)
                ] = rows
            else:
                parts.append(Part.model_validate(record))
                advance(rows)
        while waiting:
            (done,), _ = ray.wait(list(waiting), num_returns=1)
            parts.append(Part.model_validate(ray.get(done)))
            advance(waiting.pop(done))
    return stage.commit(parts, counts={"pictures": sum(part.rows for part in parts)})


def _work(filtered: Manifest, pairs: str, views: int) -> Sequence[tuple[PurePosixPath, int, int]]:
    """Return tar, view and number of images of each task, the largest first, so that workers end together."""
    holdouts = [holdout["name"] for holdout in filtered.config["split"]["holdouts"]]
    splits = ["train"] if pairs == "train" else holdouts
    rows = {part.path: part.rows for part in filtered.parts}
    work = [
        (PurePosixPath(split, f"{shard}.tar"), view, rows[f"{split}/{shard}.parquet"])
        for split in splits
        for shard in shards.names_of(filtered, split)
        for view in range(views + 1)
    ]
    return sorted(work, key=lambda task: -task[2])


@ray.remote(num_cpus=1, max_retries=2)
def _compute(stage: Stage, tar_uri: str, target: str, model: Model, view: int, tower: str | None) -> dict[str, object]:
    import torch

    torch.set_num_threads(1)
    rows = features.compute(tar_uri, stage.path(target), model, view, tower)
    record = stage.describe(target, rows).model_dump(mode="json")
    stage.commit_task(target, record)
    return record
