"""The exit handler of a run on a cluster: it records how the run ended."""

from typing import Any

from kfp import dsl

from components.container_image import DATA_IMAGE


@dsl.component(base_image=DATA_IMAGE, install_kfp_package=False)
def record_end(
    experiment: dict[str, Any],
    overrides: list[str],
    run: str,
    job: str,
    stages: list[str],
    status: dsl.PipelineTaskFinalStatus,
) -> None:
    """Record how the run ended; end RayJobs and MLflow runs that it has left.

    Args:
        experiment: as the pipeline got it.
        overrides: as the pipeline got them.
        run: name of the run; empty for KFP's.
        job: KFP's name of the run.
        stages: names of the stages of the pipeline: when all have succeeded, the run has.
        status: how the run ended; KFP fills it in.
    """
    import json
    import logging

    from components.run_ends import record_end_of

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    text = json.dumps(experiment, ensure_ascii=False)
    record_end_of(text, overrides, run.strip() or job, job, stages, status.state, status.error_message or "")
