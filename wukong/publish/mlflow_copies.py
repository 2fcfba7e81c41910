"""Remove what names pairs from the files of MLflow's runs: pages, records and stored answers.

All runs are looked through, also deleted ones: their files are still stored. Models are not read, they name no pair.
"""

from collections.abc import Iterator

from wukong.errors import StorageError
from wukong.publish.traces import Traces
from wukong.runtime import progress
from wukong.runtime.language import _
from wukong.tracking import mlflow_rest
from wukong.tracking.mlflow_rest import MlflowError, Server

_LOOKED_AT = (".json", ".html", ".parquet")
_MODEL = "model/"


def files() -> Iterator[tuple[str, bytes]]:
    """Iterate over the records, pages and answers of MLflow's runs: name and content.

    Raises:
        StorageError: MLflow does not answer, or does not pass on the files of a run.
    """
    import requests

    server = Server()
    try:
        for experiment in server.experiments("ALL"):
            for run in server.every_run(experiment):
                yield from ((path, server.read_file(run, path)) for path in _looked_at(server, run))
    except (MlflowError, requests.RequestException) as error:
        raise StorageError(f"MLflow at {mlflow_rest.address()} may show what is to be taken down ({error})") from error


def remove_traces(name: str, traces: Traces) -> list[str]:
    """Remove what names pairs from MLflow; a second call changes nothing.

    Args:
        name: name of the pairs' experiment. Its pages that show pictures and do not say of which pairs are deleted as
            well.
        traces: what names the pairs.

    Returns:
        The pages that were deleted: the run's ID and the path among its files.

    Raises:
        StorageError: MLflow does not answer, or does not pass on the files of a run.
    """
    import requests

    server = Server()
    try:
        runs = [run for experiment in server.experiments("ALL") for run in server.every_run(experiment)]
        own = server.find_experiment(name)
        deleted: list[str] = []
        with progress.track(_("look through MLflow"), len(runs), _("runs")) as advance:
            for run in runs:
                deleted += _of_run(server, run, traces, unsaid=run.experiment_id == own)
                advance(1)
    except (MlflowError, requests.RequestException) as error:
        raise StorageError(
            f"MLflow at {mlflow_rest.address()} may still show what is taken down ({error}). Run the takedown again "
            "when it answers: it goes on where it stopped"
        ) from error
    return deleted


def _looked_at(server: Server, run: mlflow_rest.Run) -> list[str]:
    return [path for path in server.files(run) if path.endswith(_LOOKED_AT) and not path.startswith(_MODEL)]


def _of_run(server: Server, run: mlflow_rest.Run, traces: Traces, *, unsaid: bool) -> list[str]:
    deleted = []
    for path in _looked_at(server, run):
        data = server.read_file(run, path)
        if path.endswith(".html"):
            if traces.in_page(data, unsaid=unsaid):
                server.delete_file(run, path)
                deleted.append(f"{run.run_id}/{path}")
        elif (left := traces.without_in_file(path, data)) is not None:
            server.write_file(run, path, left)
    return deleted
