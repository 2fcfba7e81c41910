"""The release as a KFP component."""

from kfp import dsl

from components.container_image import DATA_IMAGE


@dsl.component(base_image=DATA_IMAGE, install_kfp_package=False)
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
