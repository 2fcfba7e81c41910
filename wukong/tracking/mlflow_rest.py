"""Runs of an MLflow server, by its REST API, version 2.0.

MLflow's own client does the same, but its import takes seconds of a core. A component opens its stage's run before its
job exists, so nothing else is done in that time. MLflow's client writes and reads the files of models, and those of
runs that the server does not pass on.
"""

import json
import math
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from time import time
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import quote, urlsplit

from wukong.errors import ConfigError, WukongError

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from requests import Response, Session

BOUNDS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "60",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
}
"""Bounds of a request, for this module and for MLflow's client: retries, seconds to an answer, factor of the pauses.

MLflow's own defaults, 7 retries of 120 s each with pauses, hold a call for minutes if nothing listens, and for a
quarter of an hour if the server hangs. A server may need most of the time above to pass a model on to the store.
Variables of these names in the environment take precedence.
"""

WORKSPACE = "MLFLOW_WORKSPACE"
"""The variable of MLflow's client that names a workspace."""

MOST_PARAMS = 100
"""Parameters in one request."""

MOST_METRICS = 500
"""Values of metrics in one request."""

LONGEST_DIGEST = 36
"""Characters of a data set's digest."""

MISSING, EXISTS = "RESOURCE_DOES_NOT_EXIST", "RESOURCE_ALREADY_EXISTS"
"""Codes of MLflow's errors."""

_BUSY = (408, 429, 500, 502, 503, 504)
_MOST_RUNS = 1000
_PASSED_ON = "mlflow-artifacts"  # scheme of files that the server passes on to its store


class MlflowError(WukongError):
    """MLflow's server answered with an error.

    Attributes:
        status: HTTP's.
        code: MLflow's, for instance ``RESOURCE_DOES_NOT_EXIST``; empty if the answer has none.
    """

    def __init__(self, message: str, status: int, code: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.code = code


@dataclass(frozen=True)
class Run:
    """A run as the server describes it.

    Attributes:
        run_id: ID of the run.
        experiment_id: ID of its experiment.
        name: name of the run.
        status: ``RUNNING``, ``FINISHED``, ``FAILED``, ``KILLED``, ``SCHEDULED``.
        tags: by name.
        metrics: the last value of each.
        params: by name.
        started: in milliseconds since 1970.
        artifacts: the URI below which its files lie.
    """

    run_id: str
    experiment_id: str
    name: str
    status: str
    tags: Mapping[str, str]
    metrics: Mapping[str, float]
    params: Mapping[str, str] = field(default_factory=dict)
    started: int = 0
    artifacts: str = ""


@dataclass(frozen=True)
class Metric:
    """A value of a metric at a step, and when it was measured, in milliseconds since 1970.

    ``of`` names what was measured: ``model_id``, ``dataset_name``, ``dataset_digest``.
    """

    key: str
    value: float
    timestamp: int
    step: int
    of: Mapping[str, str] = field(default_factory=dict)


def address() -> str:
    """Return the server's address, without a slash at its end.

    Raises:
        ConfigError: ``MLFLOW_TRACKING_URI`` is not the address of a server.
    """
    configured = os.environ.get("MLFLOW_TRACKING_URI", "").rstrip("/")
    if not configured.startswith(("http://", "https://")):
        raise ConfigError(
            f"MLFLOW_TRACKING_URI is {configured!r}; it must be the address of an MLflow server, http://… or https://…"
        )
    return configured


def now() -> int:
    """Milliseconds since 1970."""
    return int(time() * 1000)


def mlflow_client() -> "MlflowClient":
    """MLflow's own client, for the files of models; its import takes seconds."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("DO_NOT_TRACK", "true")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    for name, value in BOUNDS.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    return MlflowClient()


class Server:
    """The server that ``MLFLOW_TRACKING_URI`` names.

    Each request is repeated as ``BOUNDS`` says while the server cannot be reached or is overloaded. The variables of
    MLflow's client for credentials and certificates are obeyed: ``MLFLOW_TRACKING_USERNAME`` and ``…_PASSWORD`` or
    ``MLFLOW_TRACKING_TOKEN``, ``…_SERVER_CERT_PATH``, ``…_CLIENT_CERT_PATH``, ``…_INSECURE_TLS``.

    All methods raise ``MlflowError`` if the server answers with an error, and ``requests.RequestException`` if it
    cannot be reached.

    Args:
        workspace: whose experiments and models these are, where the server keeps teams apart; None for that of
            ``MLFLOW_WORKSPACE``, empty for the server's own, which is called default.
    """

    def __init__(self, workspace: str | None = None) -> None:
        self.address = address()
        self._workspace = os.environ.get(WORKSPACE, "") if workspace is None else workspace

    def experiment(self, name: str) -> str:
        """Return the ID of an experiment, which is made if there is none."""
        if known := self.find_experiment(name):
            return known
        made = self.ask("POST", "experiments/create", {"name": name}, but=EXISTS)
        if not made:  # somebody was faster, or the answer to this request was lost
            made = self.ask("GET", "experiments/get-by-name", {"experiment_name": name})["experiment"]
        return str(made["experiment_id"])

    def find_experiment(self, name: str) -> str | None:
        """Return the ID of an experiment, or None if there is none."""
        found = self.ask("GET", "experiments/get-by-name", {"experiment_name": name}, but=MISSING)
        return str(found["experiment"]["experiment_id"]) if found else None

    def model_version(self, name: str, version: str) -> dict[str, Any]:
        """A registered model's version, which is a number or ``@ALIAS``: ``source``, ``tags`` and more."""
        if version.startswith("@"):
            answer = self.ask("GET", "registered-models/alias", {"name": name, "alias": version[1:]})
        else:
            answer = self.ask("GET", "model-versions/get", {"name": name, "version": version})
        found: dict[str, Any] = answer["model_version"]
        return found

    def model_tags(self, name: str, version: str) -> dict[str, str]:
        """Tags of a registered model's version, which is a number or ``@ALIAS``."""
        return {entry["key"]: entry["value"] for entry in self.model_version(name, version).get("tags", [])}

    def register_model(self, name: str, description: str) -> None:
        """Make a registered model, which has no version yet; one that is there stays as it is."""
        self.ask("POST", "registered-models/create", {"name": name, "description": description}, but=EXISTS)

    def register_version(self, name: str, source: str, run_id: str, tags: Mapping[str, str]) -> str:
        """Make a version of a registered model of the files at ``source``, which belong to a run; return its number."""
        body = {"name": name, "source": source, "run_id": run_id, "tags": _pairs(tags)}
        return str(self.ask("POST", "model-versions/create", body)["model_version"]["version"])

    def create_run(self, experiment_id: str, name: str, tags: Mapping[str, str]) -> Run:
        """Create a run, which is running from now on."""
        body = {"experiment_id": experiment_id, "run_name": name, "start_time": now(), "tags": _pairs(tags)}
        return _run(self.ask("POST", "runs/create", body)["run"])

    def run(self, run_id: str) -> Run:
        """A run by its ID."""
        return _run(self.ask("GET", "runs/get", {"run_id": run_id})["run"])

    def search_runs(self, experiment_id: str | Sequence[str], condition: str, most: int = _MOST_RUNS) -> list[Run]:
        """Runs of an experiment that meet a condition, the newest first.

        Args:
            experiment_id: ID of the experiment, or several.
            condition: in MLflow's language of filters.
            most: how many are returned at most.
        """
        ids = [experiment_id] if isinstance(experiment_id, str) else list(experiment_id)
        body = {"experiment_ids": ids, "filter": condition, "max_results": most}
        return [_run(entry) for entry in self.ask("POST", "runs/search", body).get("runs", [])]

    def experiments(self, view: str = "ACTIVE_ONLY") -> list[str]:
        """The IDs of all experiments; with the view ``ALL`` also of those that were deleted."""
        body = {"max_results": _MOST_RUNS, "view_type": view}
        return [str(entry["experiment_id"]) for entry in self._pages("experiments/search", body, "experiments")]

    def every_run(self, experiment_id: str) -> Iterator[Run]:
        """Iterate over all runs of an experiment, also those that were deleted."""
        body = {"experiment_ids": [experiment_id], "run_view_type": "ALL", "max_results": _MOST_RUNS}
        return (_run(entry) for entry in self._pages("runs/search", body, "runs"))

    def registered(self, what: Literal["registered-models", "model-versions"], name: str = "") -> list[dict[str, Any]]:
        """All registered models or all versions of models, as MLflow describes them.

        Args:
            what: which of them.
            name: of one model, without quotes; empty for all.
        """
        asked = {"filter": f"name = '{name}'"} if name else {}
        return list(self._pages(f"{what}/search", asked, what.replace("-", "_"), method="GET"))

    def _pages(self, what: str, body: dict[str, Any], name: str, method: str = "POST") -> Iterator[Any]:
        """Iterate over the entries of all pages of a search."""
        while True:
            answer = self.ask(method, what, body)
            yield from answer.get(name, [])
            if not (page := answer.get("next_page_token")):
                return
            body = body | {"page_token": page}

    def files(self, run: Run, below: str = "") -> Iterator[str]:
        """Iterate over the paths of a run's files, below its artifacts.

        Args:
            run: the run.
            below: the folder to list; empty for all.
        """
        asked = {"run_id": run.run_id} | ({"path": below} if below else {})
        for entry in self._pages("artifacts/list", asked, "files", method="GET"):
            if entry.get("is_dir"):
                yield from self.files(run, entry["path"])
            else:
                yield entry["path"]

    def delete_file(self, run: Run, path: str) -> None:
        """Delete a file of a run, where the server passes files on to its store.

        Raises:
            MlflowError: also where the server does not pass files on.
        """
        self._file(run, path, "DELETE", None)

    def write_file(self, run: Run, path: str, data: bytes) -> None:
        """Log a file of a run. Where the server does not pass files on, MLflow's client writes to their store.

        Args:
            run: the run.
            path: path of the file, below the run's artifacts.
            data: what is in it.
        """
        if urlsplit(run.artifacts).scheme == _PASSED_ON:
            self._file(run, path, "PUT", data)
            return
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, path)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(data)
            mlflow_client().log_artifacts(run.run_id, folder)

    def read_file(self, run: Run, path: str) -> bytes:
        """Read a file of a run, where the server passes files on from its store.

        Raises:
            MlflowError: there is none; also where the server does not pass files on.
        """
        return self._file(run, path, "GET", None)

    def _file(self, run: Run, path: str, method: str, data: bytes | None) -> bytes:
        location = urlsplit(run.artifacts)
        if location.scheme != _PASSED_ON:
            raise MlflowError(f"MLflow at {self.address} passes no files on: those of {run.name} lie elsewhere", 501)
        below = quote(f"{location.path.strip('/')}/{path}")
        response = self._request(method, f"2.0/mlflow-artifacts/artifacts/{below}", data=data)
        if not response.ok:
            raise _explained(f"{method} {below}", response, {})
        return bytes(response.content)

    def resume(self, run_id: str) -> None:
        """Let a run that has ended be running again."""
        self.ask("POST", "runs/update", {"run_id": run_id, "status": "RUNNING"})

    def end(self, run_id: str, status: str) -> None:
        """End a run now, with one of MLflow's words for how it ended."""
        self.ask("POST", "runs/update", {"run_id": run_id, "status": status, "end_time": now()})

    def log(
        self,
        run_id: str,
        *,
        metrics: Iterable[Metric] = (),
        params: Mapping[str, str] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """Log to a run. A parameter that has been logged may be logged again with the same value."""
        given, values = list((params or {}).items()), [_metric(entry) for entry in metrics]
        body = {"run_id": run_id, "metrics": values[:MOST_METRICS], "tags": _pairs(tags or {})}
        self.ask("POST", "runs/log-batch", body | {"params": _pairs(dict(given[:MOST_PARAMS]))})
        for first in range(MOST_PARAMS, len(given), MOST_PARAMS):
            more = _pairs(dict(given[first : first + MOST_PARAMS]))
            self.ask("POST", "runs/log-batch", {"run_id": run_id, "params": more})
        for first in range(MOST_METRICS, len(values), MOST_METRICS):
            self.ask("POST", "runs/log-batch", {"run_id": run_id, "metrics": values[first : first + MOST_METRICS]})

    def log_inputs(
        self, run_id: str, inputs: Mapping[str, tuple[str, str]], context: str = "", models: Sequence[str] = ()
    ) -> None:
        """Log what a run was made from, or what it measured.

        Args:
            run_id: ID of the run.
            inputs: URI and digest by name.
            context: what they are to the run; by default each is called as its name.
            models: IDs of the models.
        """
        datasets = []
        for name, (uri, digest) in inputs.items():
            data_set = {"name": name, "digest": digest[:LONGEST_DIGEST], "source_type": "uri"}
            tags = _pairs({"mlflow.data.context": context or name})
            datasets.append({"tags": tags, "dataset": data_set | {"source": json.dumps({"uri": uri})}})
        given = {"datasets": datasets, "models": [{"model_id": each} for each in models]}
        self.ask("POST", "runs/log-inputs", {"run_id": run_id, **given})

    def logged_model(self, run: Run, name: str, tag: str, value: str) -> str:
        """Return the ID of the newest model of a run's experiment that has a tag, or of a new one."""
        if known := self.logged_models(run.experiment_id, f"tags.`{tag}` = '{value}'"):
            return known[0]
        body = {"experiment_id": run.experiment_id, "name": name, "source_run_id": run.run_id}
        made = self.ask("POST", "logged-models", body | {"tags": _pairs({tag: value})})["model"]["info"]["model_id"]
        self.ask("PATCH", f"logged-models/{made}", {"model_id": made, "status": "LOGGED_MODEL_READY"})
        return str(made)

    def logged_models(self, experiment_id: str, condition: str) -> list[str]:
        """IDs of the models of an experiment that meet a condition, the newest first."""
        body = {"experiment_ids": [experiment_id], "filter": condition}
        models = self.ask("POST", "logged-models/search", body).get("models", [])
        return [str(entry["info"]["model_id"]) for entry in models]

    def log_outputs(self, run_id: str, model_ids: Sequence[str]) -> None:
        """Log models as what a run has made; one that it has already is left out."""
        outputs = self.ask("GET", "runs/get", {"run_id": run_id})["run"].get("outputs", {}).get("model_outputs", [])
        known = {entry["model_id"] for entry in outputs}
        if new := [{"model_id": model_id, "step": 0} for model_id in model_ids if model_id not in known]:
            self.ask("POST", "runs/outputs", {"run_id": run_id, "models": new})

    def metric_history(self, run_id: str, key: str) -> list[Metric]:
        """All values of a metric."""
        history = self.ask("GET", "metrics/get-history", {"run_id": run_id, "metric_key": key}).get("metrics", [])
        return [
            Metric(entry["key"], float(entry["value"]), int(entry["timestamp"]), int(entry.get("step", 0)))
            for entry in history
        ]

    def ask(
        self, method: str, endpoint: str, values: Mapping[str, Any], version: str = "2.0", but: str = ""
    ) -> dict[str, Any]:
        """Make a request and return the answer's JSON.

        Args:
            method: HTTP's.
            endpoint: below ``/api/VERSION/mlflow/``.
            values: in the address for GET, otherwise the JSON that is sent.
            version: version of the API.
            but: code of an error that is no error here: for it nothing is returned.
        """
        given = {"params" if method == "GET" else "json": dict(values)}
        response = self._request(method, f"{version}/mlflow/{endpoint}", **given)
        try:
            answer = response.json()
        except ValueError:
            answer = None
        if response.ok and isinstance(answer, dict):
            return answer
        error = _explained(endpoint, response, answer if isinstance(answer, dict) else {})
        if but and error.code == but:
            return {}
        raise error

    def _request(self, method: str, path: str, **content: Any) -> "Response":
        bound = float(_bound("MLFLOW_HTTP_REQUEST_TIMEOUT"))
        url = f"{self.address}/api/{path}"
        return _session().request(method, url, timeout=bound, **content, **_identity(self._workspace))


def _bound(name: str) -> str:
    return os.environ.get(name) or BOUNDS[name]


@lru_cache(maxsize=1)
def _session() -> "Session":
    """Connections, which are kept open: each new one costs a round trip, and a password's check on some servers."""
    import requests
    from requests.adapters import HTTPAdapter
    from urllib3.util import Retry

    retries = Retry(
        total=int(_bound("MLFLOW_HTTP_REQUEST_MAX_RETRIES")),
        backoff_factor=float(_bound("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR")),
        status_forcelist=_BUSY,
        allowed_methods=None,
        raise_on_status=False,
        respect_retry_after_header=False,
    )
    session = requests.Session()
    for scheme in ("http://", "https://"):
        session.mount(scheme, HTTPAdapter(max_retries=retries))
    return session


def _identity(workspace: str) -> dict[str, Any]:
    """Workspace, credentials and certificates, as arguments of a request."""
    given = os.environ.get
    user, password, token = (given(f"MLFLOW_TRACKING_{name}") for name in ("USERNAME", "PASSWORD", "TOKEN"))
    arguments: dict[str, Any] = {"headers": {}}
    if workspace:
        arguments["headers"]["X-MLFLOW-WORKSPACE"] = workspace
    if user and password:
        arguments["auth"] = (user.encode(), password.encode())  # of texts requests would allow Latin-1 alone
    elif token:
        arguments["headers"]["Authorization"] = f"Bearer {token}"
    if given("MLFLOW_TRACKING_INSECURE_TLS", "").lower() in ("1", "true"):
        arguments["verify"] = False
    elif certificates := given("MLFLOW_TRACKING_SERVER_CERT_PATH"):
        arguments["verify"] = certificates
    if client := given("MLFLOW_TRACKING_CLIENT_CERT_PATH"):
        arguments["cert"] = client
    return arguments


def _explained(endpoint: str, response: "Response", answer: Mapping[str, Any]) -> MlflowError:
    code = str(answer.get("error_code", ""))
    said = answer.get("message") or response.text[:500] or response.reason
    if response.status_code == 401:
        said = f"{said}. Are MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD right?"
    status = " ".join([str(response.status_code), code]).strip()
    return MlflowError(f"MLflow at {address()} answers {endpoint} with {status}: {said}", response.status_code, code)


def _metric(value: Metric) -> dict[str, Any]:
    """A metric as JSON. What is no number in JSON is a text, as protocol buffers write it."""
    texts = {math.inf: "Infinity", -math.inf: "-Infinity"}
    number = value.value if math.isfinite(value.value) else texts.get(value.value, "NaN")
    return {"key": value.key, "value": number, "timestamp": value.timestamp, "step": value.step, **value.of}


def _pairs(values: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"key": key, "value": value} for key, value in values.items()]


def _run(value: Mapping[str, Any]) -> Run:
    info, data = value["info"], value.get("data", {})
    return Run(
        run_id=info["run_id"],
        experiment_id=str(info["experiment_id"]),
        name=info.get("run_name", ""),
        status=info["status"],
        tags={entry["key"]: entry["value"] for entry in data.get("tags", [])},
        metrics={entry["key"]: float(entry["value"]) for entry in data.get("metrics", [])},
        params={entry["key"]: entry["value"] for entry in data.get("params", [])},
        started=int(info.get("start_time", 0)),
        artifacts=info.get("artifact_uri", ""),
    )
