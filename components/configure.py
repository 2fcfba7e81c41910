"""The first component of a run on a cluster: makes the experiment from the pipeline's parameters and checks it."""

from typing import NamedTuple

from kfp import dsl

from components.container_image import DATA_IMAGE


@dsl.component(base_image=DATA_IMAGE, install_kfp_package=False)
def configure(
    experiment: str,
    overrides: list[str],
    epochs: int,
    batch_size: int,
    learning_rate: float,
    workers: int,
    gpus_per_worker: int,
    run: str,
    job: str,
    continue_last_run: bool,
    stages: list[str],
) -> NamedTuple("Configured", experiment=str, run=str, start=str):  # type: ignore[valid-type]
    """Make the experiment from the pipeline's parameters, check it, and take the run's name for it.

    Args:
        experiment: the experiment as YAML or JSON.
        overrides: ``key.path=value`` entries, applied to it first.
        epochs: of pre-training; -1 leaves the experiment's.
        batch_size: of pre-training, over all workers; -1 leaves the experiment's.
        learning_rate: of pre-training; -1 leaves the experiment's.
        workers: of pre-training and fine-tuning; -1 leaves the experiment's.
        gpus_per_worker: of pre-training and fine-tuning; -1 leaves the experiment's.
        run: name of the run; empty for KFP's.
        job: KFP's name of the run.
        continue_last_run: continue the experiment's last run: crawl only what is new, start from its model.
        stages: of the pipeline; what they need must be there.

    Returns:
        The experiment as JSON, the run's name, and the URI of the pre-training to start from, empty for none.
    """
    import json

    from components.run_ends import continue_experiment, experiment_of
    from wukong import preflight
    from wukong.run_records import claim
    from wukong.stages import TRAININGS

    values = {"pretrain.epochs": epochs, "pretrain.batch_size": batch_size, "pretrain.learning_rate": learning_rate}
    for stage in TRAININGS:
        values |= {f"{stage}.workers": workers, f"{stage}.gpus_per_worker": gpus_per_worker}
    made, start = experiment_of(experiment, overrides, values), ""
    preflight.check_name(made, run or job)
    preflight.check_stages(made, stages)
    preflight.check_world(made, stages)
    if continue_last_run:
        made, start = continue_experiment(made)
    claim(made, run or job, job)
    text = json.dumps(made.model_dump(mode="json"), ensure_ascii=False)
    return text, run or job, start
