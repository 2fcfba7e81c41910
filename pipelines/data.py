"""From a crawl to validated training data and its release, as a KFP pipeline for a cluster."""

from kfp import dsl

from components.release import release
from pipelines import cluster
from pipelines.training import DATA_TITLES, data_tasks, show_data


@dsl.pipeline(name="wukong-data", description="From a crawl or a URL list to validated shards and their release.")
def data_on_cluster(
    experiment: str = cluster.EXPERIMENT,
    overrides: list[str] = [],  # noqa: B006 - KFP reads the default, nobody changes it
    run: str = "",
) -> None:
    """Crawl, filter, validate, release. A training run with the same experiment finds the data and goes on from there.

    Args:
        experiment: the experiment, YAML or JSON (`wukong config` prints one in full).
        overrides: single values of the experiment to change, for instance ["crawl.max_queries=1000"].
        run: name of this run, under which its records and its MLflow run are filed. Empty takes KFP's.
    """
    with cluster.run(experiment, overrides, run, stages=(*DATA_TITLES, "release")) as begun:
        tasks = data_tasks(begun.experiment, begun.name)
        tasks["release"] = release(
            experiment=begun.experiment, run=begun.name, validate_manifest=tasks["validate"].outputs["manifest"]
        )
        cluster.prepare(tasks, DATA_TITLES | {"release": "Release"})
        show_data(tasks)
