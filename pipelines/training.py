"""The whole workflow as a KFP pipeline: from a word list to a registered model and a report."""

from collections.abc import Mapping, Sequence
from typing import Any

from kfp import dsl

from components import functions
from components.functions import data_card, results
from pipelines import cluster
from wukong import stages

SUMMARY = "From a list of Chinese words to an evaluated vision-language model."


def component_of(name: str) -> Any:
    """The KFP component of a stage."""
    return getattr(functions, stages.of(name).function or name)


def tasks_of(
    names: Sequence[str], experiment: Any, run: Any, arguments: Mapping[str, Mapping[str, Any]] | None = None
) -> dict[str, dsl.PipelineTask]:
    """The tasks of stages, by name, wired as the table of stages says.

    Args:
        names: names of the stages, in the table's order, with all that they read.
        experiment: URI of the experiment.
        run: name of the run.
        arguments: further arguments of components, by stage.
    """
    tasks: dict[str, dsl.PipelineTask] = {}
    for name in names:
        entry = stages.of(name)
        artifacts = {f"{parent}_manifest": tasks[parent].outputs["manifest"] for parent in entry.parents}
        artifacts |= {parameter: tasks[stage].outputs[output] for parameter, (stage, output) in entry.inputs.items()}
        further = (arguments or {}).get(name, {})
        tasks[name] = component_of(name)(experiment=experiment, run=run, **artifacts, **further)
    return tasks


def training_tasks(experiment: Any, run: Any, start: Any = "") -> dict[str, dsl.PipelineTask]:
    """All tasks of the workflow, by stage.

    Args:
        experiment: URI of the experiment.
        run: name of the run.
        start: URI of an earlier pre-training's manifest, whose model the next one starts from; empty to start anew.
    """
    return tasks_of(stages.WHOLE_RUN, experiment, run, {"pretrain": {"start": start}})


@dsl.pipeline(name="wukong-training", description=SUMMARY)
def training(experiment: str, run: str) -> None:
    """Crawl, filter, validate, pre-train, fine-tune, evaluate, register, report.

    Args:
        experiment: URI of the experiment in storage.
        run: name of this run, under which its records, its MLflow run and its report are filed.
    """
    training_tasks(experiment, run)


def show_data(tasks: dict[str, dsl.PipelineTask]) -> None:
    """Add the page about the data."""
    shown = data_card(**{f"{name}_manifest": tasks[name].outputs["manifest"] for name in stages.needed_for("validate")})
    cluster.prepare(shown, "data_card", "Show the data")


def show_results(evaluated: dsl.PipelineTask) -> None:
    """Add the page about the evaluation."""
    shown = results(evaluate_manifest=evaluated.outputs["manifest"])
    cluster.prepare(shown, "results", "Show the results")


@cluster.pipeline(
    "wukong-training",
    SUMMARY,
    ["epochs", "batch_size", "learning_rate", "workers", "gpus_per_worker", "model"],
)
def training_on_cluster(given: Mapping[str, Any]) -> None:
    """Crawl, filter, validate, pre-train, fine-tune, evaluate, register, report.

    Stages whose inputs have not changed since an earlier run are found again, not repeated.
    """
    with cluster.run(given) as begun:
        tasks = training_tasks(begun.experiment, begun.name)
        cluster.prepare_stages(tasks)
        show_data(tasks)
        show_results(tasks["evaluate"])
