"""Crawl what is new and train on from the last model, again and again, as a KFP pipeline for a cluster."""

from collections.abc import Mapping
from typing import Any

from pipelines import cluster
from pipelines.training import show_data, show_results, training_tasks


@cluster.pipeline(
    "wukong-recurring",
    "Crawl what is new, train on from the last model, keep the better.",
    ["epochs", "learning_rate", "workers", "gpus_per_worker"],
    epochs="1",
)
def recurring_on_cluster(given: Mapping[str, Any]) -> None:
    """Go on from this experiment's last run: search and fetch only what it does not have, start from its model.

    The first run has nothing to go on from and does everything. Make it recurring in the UI or with `wukong submit
    --every`; the model takes the alias only when it beats the one that holds it.
    """
    with cluster.run(given, continue_last_run=True) as begun:
        tasks = training_tasks(begun.experiment, begun.name, begun.start)
        cluster.prepare_stages(tasks)
        show_data(tasks)
        show_results(tasks["evaluate"])
