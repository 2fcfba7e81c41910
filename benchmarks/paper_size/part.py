"""A part of the rehearsal, in a process of its own: ``part.py PART COLUMN SETS SHARE PAIRS FOLDER``.

``train`` is a pre-training with validation on ImageNet, ``evaluate`` an evaluation of its model on all sets.
``compare`` is the same by the evaluator in one process, from a folder. Each prints a line of JSON last.
"""

import json
import os
import sys
from pathlib import Path

import ray
import sizes

from ray_jobs import evaluate, finetune, pretrain
from wukong.config.experiment import Experiment
from wukong.evaluate import results, sets, tasks
from wukong.evaluate.model import OwnModel
from wukong.evaluate.protocol import PROTOCOLS
from wukong.model import saved_model
from wukong.store import storage
from wukong.store.manifest import Manifest

ROLE = "finetuned"


def trained(column: str, pairs: int) -> dict[str, Manifest]:
    """Train, or find what is trained."""
    filtered = sizes.pairs_stage(pairs).finished()
    assert filtered is not None
    return {"filter": filtered, "pretrain": pretrain.run(sizes.experiment(column, "sets", pairs), {"filter": filtered})}


def evaluated(column: str, asked: Experiment, pairs: int) -> Manifest:
    """Evaluate a column as a run does, which hands the pre-trained model on."""
    parents = trained(column, pairs)
    return evaluate.run(asked, parents | {"finetune": finetune.run(sizes.experiment(column, "sets", pairs), parents)})


def in_one_process(column: str, folder: Path, pairs: int) -> dict[str, float]:
    """Metrics of the evaluator, which reads the sets in a folder; the model is the one that the job measures."""
    saved = saved_model.load(storage.join(trained(column, pairs)["pretrain"].uri, "model"), "cpu")
    models, rules = {ROLE: OwnModel(saved, column)}, PROTOCOLS["paper"]
    entries = [
        tasks.measure_all(models, sets.of(name).read(folder / name, rules.split(name)), rules)[ROLE].as_json(ROLE)
        for name in sizes.SHARES
    ]
    return dict(results.metrics_of(entries, ROLE))


def main() -> None:
    part, column, folder, os.environ[sizes.VARIABLE], number, local = sys.argv[1:]
    pairs = int(number)
    sizes.shrink()
    if part != "compare":
        ray.init(
            "local", num_cpus=2, include_dashboard=False, configure_logging=False, log_to_driver=True,
            runtime_env={"worker_process_setup_hook": "sizes.shrink"},
        )  # fmt: skip
    if part == "compare":
        told = in_one_process(column, Path(local), pairs)
    elif part == "evaluate":
        told = dict(evaluated(column, sizes.experiment(column, folder, pairs), pairs).metrics)
    else:
        made = trained(column, pairs)["pretrain"]
        measured = storage.read_json(storage.join(made.uri, "measured.json"))[-1]
        told = dict(made.metrics) | {"pairs_per_second": measured["pairs_per_second"]}
    print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main()
