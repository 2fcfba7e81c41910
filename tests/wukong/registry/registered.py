"""An experiment whose models are registered in a real MLflow server, with evaluations that are chosen."""

import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import measured
import numpy as np

from wukong.config import documents
from wukong.config.experiment import Experiment
from wukong.registry import aliases
from wukong.registry.aliases import ModelRegistry
from wukong.runs import run_records
from wukong.runs.run_records import Record
from wukong.store import manifest, storage
from wukong.store.manifest import Manifest, Stage
from wukong.tracking import mlflow_runs
from wukong.tracking.mlflow_rest import Server

HARD = np.random.default_rng(0).random(1000)


class Registered:
    """An experiment whose models are registered in the tests' server, without their files."""

    def __init__(self, folder: Path) -> None:
        self.name = f"reg-{uuid.uuid4().hex[:8]}"
        self.folder = folder
        self.experiment = self.of()
        self.asked: list[tuple[str, str, int]] = []
        self.registry = ModelRegistry(Server(), self.name, "champion", self.evaluate)

    def of(self, **changes: Any) -> Experiment:
        crawl = {"queries": "file:///q", "endpoint": changes.pop("endpoint", "http://site.test")}
        model = {"text": {"layers": changes.pop("layers", 12)}}
        value = {"name": self.name, "storage": storage.from_path(self.folder), "crawl": crawl, "model": model}
        return documents.parse(value | {"registry": {"model_name": self.name} | changes})

    def __call__(
        self, share: float, name: str = "", of: Experiment | None = None, crawl: str = "first"
    ) -> dict[str, float]:
        """Register a model that is right on a share of the queries: those that are easiest, so that models nest."""
        experiment, run = of or self.experiment, f"run-{name or share}"
        model = self.model(experiment, share, name)
        filtered = Stage(experiment.root, "filter", {"crawl": crawl}).commit([])
        run_records.claim(experiment, run)
        with mlflow_runs.stage_run(experiment, run, "register") as run_id:
            evaluated = self.evaluation(experiment, filtered, model)
            ended = Record(stage="evaluate", state="succeeded", manifest=storage.join(evaluated.uri, "manifest.json"))
            run_records.write(experiment, run, ended)
            return aliases.register(experiment, str(run_id), model, evaluated, self.evaluate)

    @staticmethod
    def model(experiment: Experiment, share: float, name: str) -> Manifest:
        stage = Stage(
            experiment.root,
            "finetune",
            {"share": share, "name": name, "model": experiment.model.model_dump(mode="json")},
            [Stage(experiment.root, "pretrain", {}).commit([])],
        )
        storage.write_json(stage.path("model/config.json"), {"model": {"similarity": "global"}})
        return stage.commit([stage.describe("model/config.json")])

    @staticmethod
    def evaluation(experiment: Experiment, filtered: Manifest, model: Manifest) -> Manifest:
        """Measure a model on the queries of a crawl."""
        crawl = filtered.config["crawl"]
        found = measured.searched("x", model.config["share"] > HARD, digest=crawl.ljust(64, "0"))
        return measured.evaluation(experiment.root, [found], [filtered, model], key=f"{crawl}{model.config['name']}")

    def evaluate(self, experiment: Experiment, run: str, parents: Sequence[str]) -> Manifest:
        """Stands for the evaluate job."""
        made = {parent.stage: parent for parent in map(manifest.load, parents)}
        self.asked.append((run, made["filter"].config["crawl"], experiment.model.text.layers))
        evaluated = self.evaluation(experiment, made["filter"], made["finetune"])
        ended = Record(stage="champion", state="succeeded", manifest=storage.join(evaluated.uri, "manifest.json"))
        run_records.write(experiment, run, ended)
        return evaluated
