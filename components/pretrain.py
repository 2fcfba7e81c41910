"""The pretrain stage as a KFP component."""

from kfp import dsl

from components.container_image import DATA_IMAGE


@dsl.component(base_image=DATA_IMAGE, install_kfp_package=False)
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
