"""The exit handler of a run on a cluster."""

from kfp import dsl

from components.container_image import DATA_IMAGE


@dsl.component(base_image=DATA_IMAGE, install_kfp_package=False)
def finish(
    experiment: str,
    overrides: list[str],
    run: str,
    job: str,
    status: dsl.PipelineTaskFinalStatus,
) -> None:
    """Record how the run ended, and end what it may have left behind.

    Args:
        experiment: the experiment as YAML or JSON, as the pipeline got it.
        overrides: as the pipeline got them.
        run: name of the run; empty for KFP's.
        job: KFP's name of the run.
        status: how the run ended; KFP fills it in.
    """
    import logging

    from components.run_ends import finish as record

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    record(experiment, overrides, run or job, job, status.state, status.error_message or "")
