"""The validate stage as a KFP component."""

from kfp import dsl

from components.container_image import DATA_IMAGE


@dsl.component(base_image=DATA_IMAGE, install_kfp_package=False)
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
