"""The whole workflow as a KFP pipeline: from a word list to a registered model and a report."""

from kfp import dsl

from components.crawl import crawl
from components.evaluate import evaluate
from components.filter import filter_pairs
from components.finetune import finetune
from components.pretrain import pretrain
from components.register import register
from components.report import report
from components.validate import validate


@dsl.pipeline(name="wukong-training", description="From a list of Chinese words to an evaluated vision-language model.")
def training(experiment: str, run: str) -> None:
    """Crawl, filter, validate, pre-train, fine-tune, evaluate, register, report.

    Args:
        experiment: the experiment as JSON, as ``wukong config`` prints it.
        run: name of this run, under which its records, its MLflow run and its report are filed.
    """
    crawled = crawl(experiment=experiment, run=run)
    filtered = filter_pairs(experiment=experiment, run=run, crawl_manifest=crawled.outputs["manifest"])
    validated = validate(experiment=experiment, run=run, filter_manifest=filtered.outputs["manifest"])
    pretrained = pretrain(
        experiment=experiment,
        run=run,
        filter_manifest=filtered.outputs["manifest"],
        validate_manifest=validated.outputs["manifest"],
    )
    finetuned = finetune(
        experiment=experiment,
        run=run,
        filter_manifest=filtered.outputs["manifest"],
        pretrain_manifest=pretrained.outputs["manifest"],
    )
    evaluated = evaluate(
        experiment=experiment,
        run=run,
        filter_manifest=filtered.outputs["manifest"],
        pretrain_manifest=pretrained.outputs["manifest"],
        finetune_manifest=finetuned.outputs["manifest"],
    )
    registered = register(
        experiment=experiment,
        run=run,
        finetune_manifest=finetuned.outputs["manifest"],
        evaluate_manifest=evaluated.outputs["manifest"],
    )
    report(
        experiment=experiment,
        run=run,
        evaluate_manifest=evaluated.outputs["manifest"],
        registration=registered.outputs["metrics"],
    )
