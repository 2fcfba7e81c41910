"""Finds the manifest of a stage of an earlier run."""

from kfp import dsl

from components.container_image import DATA_IMAGE


@dsl.component(base_image=DATA_IMAGE, install_kfp_package=False)
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
