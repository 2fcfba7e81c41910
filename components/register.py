"""The register stage as a KFP component."""

from kfp import dsl

from components.container_image import DATA_IMAGE


@dsl.component(base_image=DATA_IMAGE, install_kfp_package=False)
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
