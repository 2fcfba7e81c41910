"""Crawl what is new and train on from the last model, again and again, as a KFP pipeline for a cluster."""

from typing import Any

from kfp import dsl

from pipelines import cluster
from pipelines.training import show_data, show_results, training_tasks


@dsl.pipeline(
    name="wukong-recurring",
    description="Crawl what is new, train on from the last model, keep the better.\n"
    + cluster.FILL_IN
    + cluster.NUMBERS
    + "\nLeave `run` empty in a recurring run, so that each has a name of its own.\n",
)
def recurring_on_cluster(
    experiment: dict[str, Any] = cluster.EXPERIMENT,
    overrides: list[str] = [],  # noqa: B006 - KFP reads the default, nobody changes it
    epochs: str = "1",
    learning_rate: str = "",
    workers: str = "",
    gpus_per_worker: str = "",
    run: str = "",
    source: str = "",
) -> None:
    """Go on from this experiment's last run: search and fetch only what it does not have, start from its model.

    The first run has nothing to go on from and does everything. Make it recurring in the UI or with `wukong submit
    --every`; the model takes the alias only when it beats the one that holds it.

    Args:
        experiment: the experiment. Extend its query list or URL lists between runs.
        overrides: single values of the experiment to change, for instance ["crawl.retry_failed=true"].
        epochs: epochs of pre-training, from the last model on. Empty takes the experiment's.
        learning_rate: learning rate of pre-training. Empty takes the experiment's.
        workers: Ray workers of pre-training and fine-tuning. Empty takes the experiment's.
        gpus_per_worker: 1 for a GPU for each of those workers, 0 for none. Empty takes the experiment's.
        run: name of this run. Empty takes KFP's, which differs each time.
        source: where the run comes from. `wukong submit` fills it in.
    """
    with cluster.run(
        experiment,
        overrides,
        run,
        source,
        numbers={
            "epochs": epochs,
            "learning_rate": learning_rate,
            "workers": workers,
            "gpus_per_worker": gpus_per_worker,
        },
        continue_last_run=True,
    ) as begun:
        tasks = training_tasks(begun.experiment, begun.name, begun.start)
        cluster.prepare_stages(tasks)
        show_data(tasks)
        show_results(tasks["evaluate"])
