"""The function of each KFP component: its parameters, its artifacts, one call.

KFP puts the text of a function into the compiled pipeline, so what it needs it imports itself.
"""

from functools import partial
from typing import Any, NamedTuple

from kfp import dsl

from components.container_image import DATA_IMAGE

_component = partial(dsl.component, base_image=DATA_IMAGE, install_kfp_package=False)


@_component
def configure(
    experiment: dict[str, Any],
    overrides: list[str],
    run: str,
    job: str,
    stages: list[str],
    epochs: str = "",
    batch_size: str = "",
    learning_rate: str = "",
    workers: str = "",
    gpus_per_worker: str = "",
    model: str = "",
    continue_last_run: bool = False,
    source: str = "",
) -> NamedTuple("Configured", experiment=str, run=str, start=str):  # type: ignore[valid-type]
    """Check what the run is asked for, store its experiment, and take the run's name for it.

    Its parameters are the fields of ``components.parameters.Parameters``.

    Returns:
        URI of the experiment, the run's name, and the URI of the pre-training to start from, empty for none.

    Raises:
        SystemExit: the run cannot be started; the log ends with what to change, without a traceback.
    """
    given = locals()
    import logging

    from components.parameters import Parameters
    from components.run_ends import configured
    from wukong.errors import WukongError

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        return configured(Parameters(**given))
    except WukongError as error:
        raise SystemExit(f"this run cannot be started: {error}") from None


@_component
def crawl(
    experiment: str,
    run: str,
    manifest: dsl.Output[dsl.Artifact],
) -> None:
    """Search for every query, download the images, write shards and one row for each URL.

    Args:
        experiment: URI of the experiment.
        run: name of the pipeline run.
        manifest: what the stage wrote, and where.
    """
    from components.stage import run_stage

    result = run_stage("crawl", experiment, run, [], manifest.path)
    manifest.metadata["digest"] = result.digest


@_component
def filter_pairs(
    experiment: str,
    run: str,
    crawl_manifest: dsl.Input[dsl.Artifact],
    manifest: dsl.Output[dsl.Artifact],
) -> None:
    """Apply the image and text rules, split, and repack the kept pairs.

    Args:
        experiment: URI of the experiment.
        run: name of the pipeline run.
        crawl_manifest: manifest of the crawl stage.
        manifest: what the stage wrote, and where.
    """
    from components.stage import run_stage

    parents = [crawl_manifest.path]
    result = run_stage("filter", experiment, run, parents, manifest.path)
    manifest.metadata["digest"] = result.digest


@_component
def validate(
    experiment: str,
    run: str,
    filter_manifest: dsl.Input[dsl.Artifact],
    manifest: dsl.Output[dsl.Artifact],
) -> None:
    """Check the kept pairs against the expectations; a failing one stops the pipeline.

    Args:
        experiment: URI of the experiment.
        run: name of the pipeline run.
        filter_manifest: manifest of the filter stage.
        manifest: what the stage wrote, and where.
    """
    from components.stage import run_stage

    parents = [filter_manifest.path]
    result = run_stage("validate", experiment, run, parents, manifest.path)
    manifest.metadata["digest"] = result.digest


@_component
def data_card(
    crawl_manifest: dsl.Input[dsl.Artifact],
    filter_manifest: dsl.Input[dsl.Artifact],
    validate_manifest: dsl.Input[dsl.Artifact],
    page: dsl.Output[dsl.Markdown],
    metrics: dsl.Output[dsl.Metrics],
    card: dsl.Output[dsl.HTML],
) -> None:
    """Show the funnel from query to training pair, where the data lies, and the dataset card.

    Args:
        crawl_manifest: manifest of the crawl stage.
        filter_manifest: manifest of the filter stage.
        validate_manifest: manifest of the validate stage.
        page: the funnel.
        metrics: its numbers.
        card: the dataset card, one self-contained HTML file.
    """
    from pathlib import Path

    from components.pages import warned
    from components.stage import load_artifact
    from wukong.report.card import page_for_frame
    from wukong.report.pages import funnel, numbers

    with warned(page.path):
        manifests = [load_artifact(entry.path) for entry in (crawl_manifest, filter_manifest, validate_manifest)]
        Path(page.path).write_text(funnel(manifests), encoding="utf-8")
        for name, value in numbers(manifests).items():
            metrics.log_metric(name, value)
        Path(card.path).write_text(page_for_frame(manifests[-1].uri), encoding="utf-8")


@_component
def pretrain(
    experiment: str,
    run: str,
    filter_manifest: dsl.Input[dsl.Artifact],
    validate_manifest: dsl.Input[dsl.Artifact],
    manifest: dsl.Output[dsl.Artifact],
    start: str = "",
) -> None:
    """Train the text encoder against the locked image encoder.

    Args:
        experiment: URI of the experiment.
        run: name of the pipeline run.
        filter_manifest: manifest of the filter stage.
        validate_manifest: manifest of the validate stage.
        manifest: what the stage wrote, and where.
        start: URI of the manifest of an earlier pre-training to go on from; empty to start anew.
    """
    from components.stage import run_stage

    parents = [filter_manifest.path, validate_manifest.path]
    result = run_stage("pretrain", experiment, run, parents, manifest.path, [start] if start else [])
    manifest.metadata["digest"] = result.digest


@_component
def finetune(
    experiment: str,
    run: str,
    filter_manifest: dsl.Input[dsl.Artifact],
    pretrain_manifest: dsl.Input[dsl.Artifact],
    manifest: dsl.Output[dsl.Artifact],
) -> None:
    """Fine-tune the pre-trained model for retrieval.

    Args:
        experiment: URI of the experiment.
        run: name of the pipeline run.
        filter_manifest: manifest of the filter stage.
        pretrain_manifest: manifest of the pretrain stage.
        manifest: what the stage wrote, and where.
    """
    from components.stage import run_stage

    parents = [filter_manifest.path, pretrain_manifest.path]
    result = run_stage("finetune", experiment, run, parents, manifest.path)
    manifest.metadata["digest"] = result.digest


@_component
def evaluate(
    experiment: str,
    run: str,
    filter_manifest: dsl.Input[dsl.Artifact],
    pretrain_manifest: dsl.Input[dsl.Artifact],
    finetune_manifest: dsl.Input[dsl.Artifact],
    manifest: dsl.Output[dsl.Artifact],
) -> None:
    """Measure zero-shot classification and retrieval on what was held out.

    Args:
        experiment: URI of the experiment.
        run: name of the pipeline run.
        filter_manifest: manifest of the filter stage.
        pretrain_manifest: manifest of the pretrain stage.
        finetune_manifest: manifest of the finetune stage.
        manifest: what the stage wrote, and where.
    """
    from components.stage import run_stage

    parents = [filter_manifest.path, pretrain_manifest.path, finetune_manifest.path]
    result = run_stage("evaluate", experiment, run, parents, manifest.path)
    manifest.metadata["digest"] = result.digest


@_component
def results(
    evaluate_manifest: dsl.Input[dsl.Artifact],
    page: dsl.Output[dsl.Markdown],
    metrics: dsl.Output[dsl.Metrics],
    classes: dsl.Output[dsl.ClassificationMetrics],
) -> None:
    """Show retrieval and classification beside chance, and the confusions of the first classification set.

    Args:
        evaluate_manifest: manifest of the evaluate stage.
        page: tables of recalls and accuracies.
        metrics: every number of the fine-tuned model.
        classes: the confusion matrix, where the evaluation has one.
    """
    from pathlib import Path

    from components.pages import warned
    from components.stage import load_artifact
    from wukong.report.pages import confusions, scores
    from wukong.store import storage

    with warned(page.path):
        manifest = load_artifact(evaluate_manifest.path)
        evaluation = storage.read_json(*manifest.file("evaluation.json"))
        Path(page.path).write_text(scores(evaluation), encoding="utf-8")
        for name, value in manifest.metrics.items():
            if name.startswith("eval/"):  # those of the pre-trained model stand on the report's page
                metrics.log_metric(name, value)
        if tables := confusions(evaluation):
            classes.log_confusion_matrix(*tables)


@_component
def register(
    experiment: str,
    run: str,
    finetune_manifest: dsl.Input[dsl.Artifact],
    evaluate_manifest: dsl.Input[dsl.Artifact],
    metrics: dsl.Output[dsl.Metrics],
) -> None:
    """Register the model in MLflow; it takes the alias if it is better than the holder by more than noise.

    A holder that was measured on another test set is evaluated on this one first.

    Args:
        experiment: URI of the experiment.
        run: name of the pipeline run.
        finetune_manifest: manifest of the finetune stage, whose model is registered.
        evaluate_manifest: manifest of the evaluate stage, whose metrics decide.
        metrics: the model's version, whether it holds the alias now, and what was measured.
    """
    from components.stage import register_model

    for name, value in register_model(experiment, run, finetune_manifest.path, evaluate_manifest.path).items():
        metrics.log_metric(name, value)


@_component
def report(
    experiment: str,
    run: str,
    evaluate_manifest: dsl.Input[dsl.Artifact],
    registration: dsl.Input[dsl.Metrics],
    page: dsl.Output[dsl.HTML],
) -> None:
    """Make one page of the whole run: funnel, results beside chance, examples, times, lineage.

    Args:
        experiment: URI of the experiment.
        run: name of the pipeline run.
        evaluate_manifest: manifest of the evaluate stage; the others are found through it.
        registration: what the register stage decided.
        page: the report, one self-contained HTML file.
    """
    from components.stage import write_report

    write_report(experiment, run, evaluate_manifest.path, dict(registration.metadata), page.path)


@_component
def release(
    experiment: str,
    run: str,
    validate_manifest: dsl.Input[dsl.Artifact],
    manifest: dsl.Output[dsl.Artifact],
) -> None:
    """Write the training pairs that passed the gate as a set to publish.

    Args:
        experiment: URI of the experiment.
        run: name of the pipeline run.
        validate_manifest: manifest of the validate stage.
        manifest: what was written, and where.
    """
    from components.stage import cancellable, experiment_of, load_artifact, recorded, save_artifact
    from wukong.publish import release as library
    from wukong.tracking import mlflow_runs, stage_results

    parsed = experiment_of(experiment, "release", run)
    with cancellable(), recorded(parsed, run, "release"), mlflow_runs.stage_run(parsed, run, "release") as run_id:
        released = library.release(parsed, load_artifact(validate_manifest.path))
        stage_results.log_stage(run_id, released)
    save_artifact(released, manifest.path)
    manifest.metadata["digest"] = released.digest


@_component
def find_manifest(
    experiment: str,
    run: str,
    stage: str,
    manifest: dsl.Output[dsl.Artifact],
) -> None:
    """Find the manifest of a stage of an earlier run.

    Args:
        experiment: URI of the experiment.
        run: name of the earlier run.
        stage: name of the stage.
        manifest: what that stage wrote, and where.
    """
    from components.run_ends import manifest_of
    from components.stage import save_artifact
    from wukong.config import stored
    from wukong.store.manifest import load

    result = load(manifest_of(stored.load(experiment), run, stage))
    save_artifact(result, manifest.path)
    manifest.metadata["digest"] = result.digest


@_component
def record_end(
    experiment: dict[str, Any],
    overrides: list[str],
    run: str,
    job: str,
    stages: list[str],
    status: dsl.PipelineTaskFinalStatus,
) -> None:
    """Record how the run ended; end RayJobs and MLflow runs that it has left.

    Args:
        experiment: as the pipeline got it.
        overrides: as the pipeline got them.
        run: name of the run; empty for KFP's.
        job: KFP's name of the run.
        stages: names of the stages of the pipeline: when all have succeeded, the run has.
        status: how the run ended; KFP fills it in.
    """
    import json
    import logging

    from components.run_ends import record_end_of

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    text = json.dumps(experiment, ensure_ascii=False)
    record_end_of(text, overrides, run.strip() or job, job, stages, status.state, status.error_message or "")
