"""The crawl stage as a KFP component."""

from kfp import dsl

from components.container_image import DATA_IMAGE


@dsl.component(base_image=DATA_IMAGE, install_kfp_package=False)
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
