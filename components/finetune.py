"""The finetune stage as a KFP component."""

from kfp import dsl

from components.container_image import DATA_IMAGE


@dsl.component(base_image=DATA_IMAGE, install_kfp_package=False)
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
