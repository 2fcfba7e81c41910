"""The filter stage as a KFP component."""

from kfp import dsl

from components.container_image import DATA_IMAGE


@dsl.component(base_image=DATA_IMAGE, install_kfp_package=False)
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
