"""From a name or an ID to what MLflow knows: addresses of pages, states of runs, files of runs."""

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from wukong.config.experiment import Experiment
from wukong.errors import DataError
from wukong.store import storage
from wukong.tracking import mlflow_rest
from wukong.tracking.availability import AT_START, enabled, page, refuse_untracked, unless_away
from wukong.tracking.mlflow_rest import Run, Server, mlflow_client
from wukong.tracking.mlflow_runs import page_of, pipeline_run
from wukong.tracking.tags import MANIFEST_TAG, MODEL_TAG, RUN_TAG

_COMPARED = 5  # runs in the compare view
_OF_TRAININGS = {"workflowType": "machine_learning"}  # else MLflow's page opens with traces of language models


@dataclass(frozen=True)
class Pages:
    """Addresses of pages in MLflow that are about one pipeline run.

    Attributes:
        experiment: address of the page of all runs of the experiment.
        run: address of the page of the pipeline's run.
        compare: address of the page of this run beside the ones before it; empty if it is the first.
    """

    experiment: str
    run: str
    compare: str = ""

    def artifact(self, path: str) -> str:
        """Address of the page that shows one file of the run."""
        place, mark, query = self.run.partition("?")
        return f"{place}/artifacts/{path}{mark}{query}"


def pages(experiment: Experiment, run: str) -> Pages | None:
    """Return the addresses of a pipeline run's pages in MLflow, or None if nothing is tracked or MLflow is away.

    The compare view is of the last runs that have finished, five at most.
    """
    if not enabled():
        return None

    def ask() -> Pages:
        server = Server()
        own_run = pipeline_run(server, experiment, run)
        ended = f"tags.`{RUN_TAG}` LIKE '%' AND attributes.status = 'FINISHED'"
        last = [entry.run_id for entry in server.search_runs(own_run.experiment_id, ended, most=_COMPARED)]
        base = f"experiments/{own_run.experiment_id}"
        compared = list(dict.fromkeys([own_run.run_id, *last]))[:_COMPARED]
        return Pages(
            page(base, **_OF_TRAININGS),
            page(f"{base}/runs/{own_run.run_id}"),
            compare_url(own_run.experiment_id, compared) if len(compared) > 1 else "",
        )

    return unless_away(ask, "there are no links to the run's pages", AT_START)


def compare_url(experiment_id: str, run_ids: Sequence[str]) -> str:
    """Address of MLflow's page that compares some runs of an experiment."""
    asked = {"runs": list(run_ids), "experiments": [experiment_id]}
    return page("compare-runs", **{name: json.dumps(value, separators=(",", ":")) for name, value in asked.items()})


@dataclass(frozen=True)
class Tracked:
    """What MLflow knows of a pipeline run.

    Attributes:
        status: in MLflow's words, for instance ``KILLED``.
        model: ``models:/NAME/VERSION``, if the run registered a model.
        url: address of its page.
    """

    status: str
    model: str | None
    url: str


def tracked_runs(name: str) -> dict[str, Tracked]:
    """Return the pipeline runs of an experiment that MLflow knows, by name; none if it is away or not configured."""

    def ask() -> dict[str, Tracked]:
        server = Server()
        experiment_id = server.find_experiment(name)
        runs = server.search_runs(experiment_id, f"tags.`{RUN_TAG}` LIKE '%'") if experiment_id else []
        return {run.tags[RUN_TAG]: Tracked(run.status, run.tags.get(MODEL_TAG), page_of(run)) for run in runs}

    return (unless_away(ask, "what it knows of the runs is left out") or {}) if enabled() else {}


def storage_of_run(run_id: str) -> str:
    """Return the URI of what a run of MLflow left: the manifest of a stage, or the folder of a pipeline run.

    Raises:
        ConfigError: no tracking server is configured.
        DataError: the run is not one of Wukong's.
        MlflowError: the server has no such run.
    """
    refuse_untracked()
    server = Server()
    run = server.run(run_id)
    if uri := run.tags.get(MANIFEST_TAG):
        return storage.join(uri, "manifest.json")
    if folder := folder_of(run):
        return folder
    raise DataError(f"the run {run_id} at {server.address} has no manifest: it is not a finished stage of Wukong's")


def folder_of(run: Run) -> str | None:
    """Return the URI of the folder of a pipeline's run, which its parameters tell; None if they do not."""
    if RUN_TAG not in run.tags or not {"storage", "name"} <= run.params.keys():
        return None
    return storage.join(run.params["storage"], run.params["name"], "runs", run.tags[RUN_TAG])


def file_of_run(run_id: str, path: str) -> str:
    """Download a file or folder among the artifacts of a run of MLflow; return the URI of the copy in a new folder.

    Raises:
        ConfigError: no tracking server is configured.
        DataError: the run has no such file.
    """
    refuse_untracked()
    client = mlflow_client()
    from mlflow.exceptions import MlflowException

    try:
        copy = client.download_artifacts(run_id, path, tempfile.mkdtemp(prefix="wukong-show-"))
    except (MlflowException, OSError) as error:
        raise DataError(f"the run {run_id} at {mlflow_rest.address()} has no file {path}: {error}") from error
    return storage.from_path(Path(copy))
