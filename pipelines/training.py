"""The whole workflow as a KFP pipeline: from a word list to a registered model and a report."""

from typing import Any

from kfp import dsl

from components.crawl import crawl
from components.data_card import data_card
from components.evaluate import evaluate
from components.filter import filter_pairs
from components.finetune import finetune
from components.pretrain import pretrain
from components.register import register
from components.report import report
from components.results import results
from components.validate import validate
from pipelines import cluster

DATA_TITLES = {"crawl": "Crawl", "filter": "Filter and split", "validate": "Validate"}
TITLES = DATA_TITLES | {
    "pretrain": "Pre-train",
    "finetune": "Fine-tune",
    "evaluate": "Evaluate",
    "register": "Register the model",
    "report": "Report",
}


def data_tasks(experiment: Any, run: Any) -> dict[str, dsl.PipelineTask]:
    """The tasks from the crawl to the gate, by stage."""
    crawled = crawl(experiment=experiment, run=run)
    filtered = filter_pairs(experiment=experiment, run=run, crawl_manifest=crawled.outputs["manifest"])
    validated = validate(experiment=experiment, run=run, filter_manifest=filtered.outputs["manifest"])
    return {"crawl": crawled, "filter": filtered, "validate": validated}


def training_tasks(experiment: Any, run: Any, start: Any = "") -> dict[str, dsl.PipelineTask]:
    """All tasks of the workflow, by stage.

    Args:
        experiment: the experiment as JSON.
        run: name of the run.
        start: URI of an earlier pre-training's manifest to go on from; empty to start anew.
    """
    tasks = data_tasks(experiment, run)
    filtered = tasks["filter"]
    tasks["pretrain"] = pretrained = pretrain(
        experiment=experiment,
        run=run,
        filter_manifest=filtered.outputs["manifest"],
        validate_manifest=tasks["validate"].outputs["manifest"],
        start=start,
    )
    tasks["finetune"] = finetuned = finetune(
        experiment=experiment,
        run=run,
        filter_manifest=filtered.outputs["manifest"],
        pretrain_manifest=pretrained.outputs["manifest"],
    )
    tasks["evaluate"] = evaluated = evaluate(
        experiment=experiment,
        run=run,
        filter_manifest=filtered.outputs["manifest"],
        pretrain_manifest=pretrained.outputs["manifest"],
        finetune_manifest=finetuned.outputs["manifest"],
    )
    tasks["register"] = registered = register(
        experiment=experiment,
        run=run,
        finetune_manifest=finetuned.outputs["manifest"],
        evaluate_manifest=evaluated.outputs["manifest"],
    )
    tasks["report"] = report(
        experiment=experiment,
        run=run,
        evaluate_manifest=evaluated.outputs["manifest"],
        registration=registered.outputs["metrics"],
    )
    return tasks


@dsl.pipeline(name="wukong-training", description="From a list of Chinese words to an evaluated vision-language model.")
def training(experiment: str, run: str) -> None:
    """Crawl, filter, validate, pre-train, fine-tune, evaluate, register, report.

    Args:
        experiment: the experiment as JSON, as ``wukong config`` prints it.
        run: name of this run, under which its records, its MLflow run and its report are filed.
    """
    training_tasks(experiment, run)


def show_data(tasks: dict[str, dsl.PipelineTask]) -> None:
    """Add the page that shows what the data stages did."""
    shown = data_card(**{f"{name}_manifest": tasks[name].outputs["manifest"] for name in DATA_TITLES})
    cluster.prepare({"data": shown}, {"data": "Show the data"})
    cluster.cached(shown)


def show_results(evaluated: dsl.PipelineTask) -> None:
    """Add the page that shows what was measured."""
    shown = results(evaluate_manifest=evaluated.outputs["manifest"])
    cluster.prepare({"results": shown}, {"results": "Show the results"})
    cluster.cached(shown)


@dsl.pipeline(name="wukong-training", description="From a list of Chinese words to an evaluated vision-language model.")
def training_on_cluster(
    experiment: str = cluster.EXPERIMENT,
    overrides: list[str] = [],  # noqa: B006 - KFP reads the default, nobody changes it
    epochs: int = -1,
    batch_size: int = -1,
    learning_rate: float = -1.0,
    workers: int = -1,
    gpus_per_worker: int = -1,
    run: str = "",
) -> None:
    """Crawl, filter, validate, pre-train, fine-tune, evaluate, register, report.

    Args:
        experiment: the experiment, YAML or JSON (`wukong config` prints one in full). Stages whose inputs have not
            changed since an earlier run are found again, not repeated.
        overrides: single values of the experiment to change, for instance ["crawl.max_queries=1000"].
        epochs: of pre-training. -1 takes the experiment's.
        batch_size: pairs a step of pre-training, over all workers. -1 takes the experiment's.
        learning_rate: of pre-training. -1 takes the experiment's.
        workers: Ray workers of pre-training and fine-tuning. -1 takes the experiment's.
        gpus_per_worker: GPUs of each of those workers, 0 for none. -1 takes the experiment's.
        run: name of this run, under which its records, its MLflow run and its report are filed. Empty takes KFP's.
    """
    with cluster.run(
        experiment,
        overrides,
        run,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        workers=workers,
        gpus_per_worker=gpus_per_worker,
    ) as begun:
        tasks = training_tasks(begun.experiment, begun.name)
        cluster.prepare(tasks, TITLES)
        show_data(tasks)
        show_results(tasks["evaluate"])
