"""The first component of a run on a cluster: makes the experiment from the pipeline's parameters and checks it."""

from typing import Any, NamedTuple

from kfp import dsl

from components.container_image import DATA_IMAGE


@dsl.component(base_image=DATA_IMAGE, install_kfp_package=False)
def configure(
    experiment: dict[str, Any],
    overrides: list[str],
    run: str,
    job: str,
    stages: list[str],
    epochs: str = "",
    batch_size: str = "",
    learning_rate: str = "",
    workers: str = "",
    gpus_per_worker: str = "",
    model: str = "",
    continue_last_run: bool = False,
    source: str = "",
) -> NamedTuple("Configured", experiment=str, run=str, start=str):  # type: ignore[valid-type]
    """Make the experiment from the pipeline's parameters, check it, store it, and take the run's name for it.

    Args:
        experiment: the experiment as the pipeline got it.
        overrides: ``key.path=value`` entries, applied to it first.
        run: name of the run; empty for KFP's.
        job: KFP's name of the run.
        stages: names of the stages of the pipeline; what they need must be there.
        epochs: epochs of pre-training, a whole number; empty leaves the experiment's, like the next four.
        batch_size: batch size of pre-training, over all workers, a whole number.
        learning_rate: learning rate of pre-training, a number.
        workers: number of workers of pre-training and fine-tuning, a whole number.
        gpus_per_worker: 1 for a GPU for each worker of pre-training and fine-tuning, 0 for none.
        model: a trained model to take in the place of pre-training, with its own section ``model``; empty for none.
        continue_last_run: continue the experiment's last run: crawl only what is new, start from its model.
        source: where the run comes from, as JSON; empty if nobody says it.

    Returns:
        URI of the experiment, the run's name, and the URI of the pre-training to start from, empty for none.

    Raises:
        SystemExit: the run cannot be started; the log ends with what to change, without a traceback.
    """
    import logging

    from components.run_ends import configured
    from wukong.errors import WukongError

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    numbers = {
        "epochs": epochs,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "workers": workers,
        "gpus_per_worker": gpus_per_worker,
    }
    try:
        return configured(experiment, overrides, numbers, run, job, stages, continue_last_run, model, source)
    except WukongError as error:
        raise SystemExit(f"this run cannot be started: {error}") from None
