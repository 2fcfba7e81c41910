"""Measure the model of an earlier run again, as a KFP pipeline for a cluster."""

from typing import Any

from kfp import dsl

from components.functions import evaluate, find_manifest
from pipelines import cluster
from pipelines.training import show_results
from wukong import stages


@dsl.pipeline(
    name="wukong-evaluate",
    description="Measure the model of an earlier run, by other tasks or prompts.\n\n"
    "`of_run` is the name of that run, and `experiment` its experiment; the `evaluate` section says what is measured.\n"
    + cluster.FILL_IN,
)
def evaluate_on_cluster(
    of_run: str,
    experiment: dict[str, Any] = cluster.EXPERIMENT,
    overrides: list[str] = [],  # noqa: B006 - KFP reads the default, nobody changes it
    run: str = "",
    source: str = "",
) -> None:
    """Evaluate what an earlier run trained: its experiment, with another `evaluate` section.

    Args:
        of_run: name of the run whose data and models are measured.
        experiment: the experiment of that run; its `evaluate` section says what is measured.
        overrides: single values of the experiment to change, for instance ["evaluate.batch_size=512"].
        run: name of this run. Empty takes KFP's.
        source: where the run comes from. `wukong submit` fills it in.
    """
    with cluster.run(experiment, overrides, run, source, names=("evaluate",)) as begun:
        manifests = {}
        for stage in stages.of("evaluate").parents:
            manifests[stage] = find_manifest(experiment=begun.experiment, run=of_run, stage=stage)
            cluster.prepare(manifests[stage], "find_manifest", f"Find {stages.of(stage).hands_on}", retries=0)
        measured = evaluate(
            experiment=begun.experiment,
            run=begun.name,
            **{f"{stage}_manifest": task.outputs["manifest"] for stage, task in manifests.items()},
        )
        cluster.prepare_stages({"evaluate": measured})
        show_results(measured)
