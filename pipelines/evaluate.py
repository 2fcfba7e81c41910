"""Measure the model of an earlier run again, as a KFP pipeline for a cluster."""

from collections.abc import Mapping
from typing import Any

from components.functions import evaluate, find_manifest
from pipelines import cluster
from pipelines.training import show_results
from wukong import stages


@cluster.pipeline("wukong-evaluate", "Measure the model of an earlier run, by other tasks or prompts.", ["of_run"])
def evaluate_on_cluster(given: Mapping[str, Any]) -> None:
    """Evaluate what an earlier run trained: its experiment, with another `evaluate` section."""
    with cluster.run(given, names=("evaluate",)) as begun:
        manifests = {}
        for stage in stages.of("evaluate").parents:
            manifests[stage] = find_manifest(experiment=begun.experiment, run=given["of_run"], stage=stage)
            cluster.prepare(manifests[stage], "find_manifest", f"Find {stages.of(stage).hands_on}", retries=0)
        measured = evaluate(
            experiment=begun.experiment,
            run=begun.name,
            **{f"{stage}_manifest": task.outputs["manifest"] for stage, task in manifests.items()},
        )
        cluster.prepare_stages({"evaluate": measured})
        show_results(measured)
