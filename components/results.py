"""A page for the UI: what the evaluation measured."""

from kfp import dsl

from components.container_image import DATA_IMAGE


@dsl.component(base_image=DATA_IMAGE, install_kfp_package=False)
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
