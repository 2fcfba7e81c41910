"""From a crawl to validated training data and its release, as a KFP pipeline for a cluster."""

from collections.abc import Mapping
from typing import Any

from pipelines import cluster
from pipelines.training import show_data, tasks_of
from wukong import stages


@cluster.pipeline("wukong-data", "From a crawl or a URL list to validated shards and their release.")
def data_on_cluster(given: Mapping[str, Any]) -> None:
    """Crawl, filter, validate, release.

    A training run with the same experiment finds the data and goes on from there.
    """
    names = stages.needed_for("release")
    with cluster.run(given, names=names) as begun:
        tasks = tasks_of(names, begun.experiment, begun.name)
        cluster.prepare_stages(tasks)
        show_data(tasks)
