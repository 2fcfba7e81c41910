"""From a crawl to validated training data and its release, as a KFP pipeline for a cluster."""

from typing import Any

from kfp import dsl

from pipelines import cluster
from pipelines.training import show_data, tasks_of
from wukong import stages


@dsl.pipeline(
    name="wukong-data",
    description="From a crawl or a URL list to validated shards and their release.\n" + cluster.FILL_IN,
)
def data_on_cluster(
    experiment: dict[str, Any] = cluster.EXPERIMENT,
    overrides: list[str] = [],  # noqa: B006 - KFP reads the default, nobody changes it
    run: str = "",
    source: str = "",
) -> None:
    """Crawl, filter, validate, release. A training run with the same experiment finds the data and goes on from there.

    Args:
        experiment: the experiment (`wukong config` prints one in full).
        overrides: single values of the experiment to change, for instance ["crawl.max_queries=1000"].
        run: name of this run, under which its records and its MLflow run are filed. Empty takes KFP's.
        source: where the run comes from. `wukong submit` fills it in.
    """
    names = stages.needed_for("release")
    with cluster.run(experiment, overrides, run, source, names=names) as begun:
        tasks = tasks_of(names, begun.experiment, begun.name)
        cluster.prepare_stages(tasks)
        show_data(tasks)
