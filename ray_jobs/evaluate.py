"""The evaluate job: zero-shot classification and retrieval on what was held out (paper, sections 5.2 and 5.3)."""

import logging
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import ray
import torch

from ray_jobs import features
from wukong import places, storage
from wukong.config import Experiment
from wukong.errors import DataError
from wukong.evaluate import measure
from wukong.manifest import Manifest
from wukong.model import saved_model
from wukong.train import training_data

log = logging.getLogger(__name__)


def run(experiment: Experiment, parents: Mapping[str, Manifest]) -> Manifest:
    """Measure the fine-tuned model, and the pre-trained one beside it.

    Writes two files. ``metrics.json`` has the flat numbers of ``wukong.evaluate.measure.metrics_of``; those of the
    pre-trained model begin with ``pretrained.``. ``evaluation.json`` is for the report:

    - ``retrieval``: one ``measure.retrieval_entry`` for each hold-out;
    - ``classification``: one ``measure.classification_entry`` for each task;
    - ``training``: the epochs of ``pretrain`` and ``finetune``, as ``wukong.train.loop.Epoch`` without measured times;
    - ``pretrained``: ``retrieval`` and ``classification`` of the pre-trained model.

    Args:
        experiment: its ``evaluate`` section and the filter's hold-outs say what is measured.
        parents: the manifests of ``filter``, ``pretrain`` and ``finetune``.

    Returns:
        The manifest; ``metrics`` has what ``metrics.json`` has.

    Raises:
        DataError: every hold-out is empty.
    """
    filtered = parents["filter"]
    if not any(features.shards_of(filtered, holdout.name) for holdout in experiment.filter.split.holdouts):
        raise DataError("every hold-out is empty: mend the sources in filter.split.holdouts, or crawl more")
    computed = {
        name: features.run(experiment, parents, parents[parent], "holdouts")
        for name, parent in places.EVALUATED.items()
    }
    stage = places.evaluation(experiment, parents, list(computed.values()))
    if finished := stage.finished():
        return finished
    waiting = {
        name: _measure.remote(experiment, filtered, computed[name], storage.join(parents[parent].uri, "model"))
        for name, parent in places.EVALUATED.items()
    }
    found: dict[str, Any] = {name: ray.get(reference) for name, reference in waiting.items()}
    metrics = {name: measure.metrics_of(entry["retrieval"], entry["classification"]) for name, entry in found.items()}
    flat = metrics["finetuned"] | {f"pretrained.{name}": value for name, value in metrics["pretrained"].items()}
    histories = {
        parent: storage.read_json(storage.join(parents[parent].uri, "history.json"))["history"]
        for parent in places.EVALUATED.values()
    }
    storage.write_json(stage.path("metrics.json"), flat)
    storage.write_json(
        stage.path("evaluation.json"),
        {**found["finetuned"], "pretrained": found["pretrained"], "training": histories},
    )
    parts = [stage.describe(name) for name in ("evaluation.json", "metrics.json")]
    images = {entry["holdout"]: entry["images"] for entry in found["finetuned"]["retrieval"]}
    return stage.commit(parts, counts=images, metrics=flat)


@ray.remote(num_cpus=1, max_retries=2)
def _measure(experiment: Experiment, filtered: Manifest, computed: Manifest, model_uri: str) -> dict[str, Any]:
    """Measure one model on every hold-out and every task."""
    loaded = saved_model.load_for_features(model_uri)
    tables: dict[str, tuple[pa.Table, torch.Tensor]] = {}
    retrieval = []
    for holdout in experiment.filter.split.holdouts:
        shards = features.shards_of(filtered, holdout.name)
        if not shards:
            log.warning("the hold-out %s has no pairs: it is not measured", holdout.name)
            continue
        table, views = training_data.load(filtered.uri, computed.uri, holdout.name, shards, [0])
        tables[holdout.name] = (table, views[0])
        keys, captions = table["key"].to_pylist(), table["caption"].to_pylist()
        taken = experiment.evaluate.captions
        retrieval.append(measure.retrieval_entry(loaded, holdout, keys, _pictures(table), captions, views[0], taken))
    classification = []
    for task in experiment.evaluate.classification:
        chosen = [tables[name] for name in task.holdouts if name in tables]
        rows = pa.concat_tables(table for table, _ in chosen) if chosen else None
        entry = (
            measure.classification_entry(
                loaded,
                task,
                rows["key"].to_pylist(),
                _pictures(rows),
                rows["url"].to_pylist(),
                torch.cat([stored for _, stored in chosen]),
                experiment.evaluate.batch_size,
            )
            if rows is not None
            else None
        )
        if entry is None:
            log.warning("no held-out picture belongs to a class of %s: it is not measured", task.name)
        else:
            classification.append(entry)
    return {"retrieval": retrieval, "classification": classification}


def _pictures(table: pa.Table) -> list[str]:
    """Return what identifies each pair's image: the digest of its bytes, or the pair's key where a table has none."""
    return [digest or key for digest, key in zip(table["sha256"].to_pylist(), table["key"].to_pylist(), strict=True)]
