"""``wukong submit``: upload a compiled pipeline to Kubeflow Pipelines, start or schedule a run, wait for its end."""

import contextlib
import hashlib
import io
import json
import logging
import os
import re
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import yaml

from cli import summary
from components import run_ends
from wukong import stages
from wukong.commands.output import Console
from wukong.config.experiment import Experiment
from wukong.errors import ConfigError, WukongError
from wukong.runtime.language import message, translated
from wukong.stages import preflight

# kfp's own function for waiting does not know CANCELED and would wait for ever.
_ENDED = ("SUCCEEDED", "FAILED", "SKIPPED", "CANCELED")
_STATES = {
    "PENDING": message("pending"),
    "RUNNING": message("running"),
    "SUCCEEDED": message("succeeded"),
    "SKIPPED": message("skipped"),
    "FAILED": message("failed"),
    "CANCELING": message("canceling"),
    "CANCELED": message("canceled"),
    "PAUSED": message("paused"),
}
_WIDTH = 11  # cells of a line's title
_TYPES: dict[str, type | tuple[type, ...]] = {
    "STRING": str,
    "NUMBER_INTEGER": int,
    "NUMBER_DOUBLE": (int, float),
    "BOOLEAN": bool,
    "LIST": list,
    "STRUCT": dict,
}
_COMPILED = Path(__file__).parents[1] / "pipelines" / "compiled"
_MEASURING = ("training", "evaluate", "recurring")
_NAMESPACE = "wukong"  # where an installation makes RayJobs
_INTERVAL = re.compile(r"(\d+)([mhd])")
_SECONDS = {"m": 60, "h": 3600, "d": 86_400}

log = logging.getLogger(__name__)
T = TypeVar("T")


class SubmitError(WukongError):
    """Kubeflow Pipelines could not be reached or refused a request, or the run did not succeed."""


@dataclass(frozen=True)
class Submitted:
    """A run or recurring run that was started: its ID in KFP, its name, and the address of its page."""

    identity: str
    name: str
    url: str


def parameters(file: Path, experiment: Experiment, run: str, given: list[str]) -> dict[str, Any]:
    """Make the parameters of a run of a compiled pipeline.

    Args:
        file: the compiled pipeline.
        experiment: for the parameter ``experiment``, which gets what its file and ``--set`` have set.
        run: for the parameter ``run``.
        given: ``name=value`` entries, whose values are YAML.

    Raises:
        ConfigError: the pipeline has no such parameter, the value is of another type, one it needs is missing, or they
            make no valid experiment.
    """
    specification = next(yaml.safe_load_all(file.read_text(encoding="utf-8")))
    known = specification["root"]["inputDefinitions"]["parameters"]
    made: dict[str, Any] = {
        "experiment": experiment.model_dump(mode="json", exclude_unset=True),
        "run": run,
    }
    for entry in given:
        name, separator, text = entry.partition("=")
        if not separator:
            raise ConfigError(f"--param {entry!r}: write it as name=value, for instance epochs=3")
        if name not in known or name in ("experiment", "run"):
            others = ", ".join(sorted(known.keys() - {"experiment", "run"}))
            raise ConfigError(f"--param {entry!r}: the {file.stem} pipeline has the parameters {others}")
        kind = known[name]["parameterType"]
        value = text if kind == "STRING" else yaml.safe_load(text)
        if not isinstance(value, _TYPES[kind]) or (isinstance(value, bool) and kind != "BOOLEAN"):
            raise ConfigError(f"--param {entry!r}: {name} is a {kind.lower().replace('_', ' ')}")
        made[name] = value
    missing = [name for name, definition in known.items() if name not in made and "defaultValue" not in definition]
    if missing:
        raise ConfigError(f"the {file.stem} pipeline needs --param {missing[0]}=…: {known[missing[0]]['description']}")
    numbers = {name: made[name] for name in run_ends.NUMBERS if name in made}
    run_ends.experiment_of(made["experiment"], made.get("overrides", []), numbers)  # as the first component does
    return made


class Pipelines:
    """The Kubeflow Pipelines API, as far as submitting needs it.

    Args:
        host: its address, for instance ``http://localhost:8080`` behind a port-forward of the UI.
        token: a bearer token, where the address asks for one.
        namespace: the user's namespace, in multi-user mode.

    Raises:
        SubmitError: nothing answers there.
    """

    def __init__(self, host: str, token: str | None = None, namespace: str | None = None) -> None:
        import kfp
        import kfp_server_api

        self._host, self._api_error, self._api = host.rstrip("/"), kfp_server_api.ApiException, kfp_server_api
        self._probe(token)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", category=FutureWarning)
            self._client = self._ask(
                message("reach Kubeflow Pipelines"),
                lambda: kfp.Client(host=self._host, existing_token=token, namespace=namespace or "kubeflow"),
            )
        self._namespace = namespace

    def upload(self, file: Path) -> tuple[str, str]:
        """Upload a compiled pipeline, unless the same bytes have been uploaded before.

        The version's description is the pipeline's in full, which says how to fill in the form.

        Returns:
            The IDs of the pipeline and of its version, whose name is a digest of the file.
        """
        specification = next(yaml.safe_load_all(file.read_text(encoding="utf-8")))["pipelineInfo"]
        version = hashlib.sha256(file.read_bytes()).hexdigest()[:12]
        name, description = specification["name"], specification.get("description", "")
        # A pipeline keeps the description of its first upload, and lists show one line of it.
        summary = description.partition("\n")[0]
        pipeline = self._ask(message("look up the pipeline"), lambda: self._client.get_pipeline_id(name))
        if pipeline is None:
            pipeline = self._ask(
                message("upload the pipeline"),
                lambda: self._client.upload_pipeline(str(file), name, summary, namespace=self._namespace),
            ).pipeline_id
        predicate = {"operation": "EQUALS", "key": "display_name", "stringValue": version}
        versions = self._ask(
            message("list the pipeline's versions"),
            lambda: self._client.list_pipeline_versions(pipeline, filter=json.dumps({"predicates": [predicate]})),
        ).pipeline_versions
        if not versions:
            uploaded = self._ask(
                message("upload the pipeline's version"),
                lambda: self._client.upload_pipeline_version(
                    str(file), version, pipeline_id=pipeline, description=description
                ),
            )
            return pipeline, uploaded.pipeline_version_id
        return pipeline, versions[0].pipeline_version_id

    def start(self, experiment: str, name: str, version: tuple[str, str], values: Mapping[str, Any]) -> Submitted:
        """Start a run in an experiment of KFP, which is made if it does not exist."""
        made = self._ask(
            message("start the run"),
            lambda: self._client.run_pipeline(
                self._experiment(experiment), name, params=dict(values), pipeline_id=version[0], version_id=version[1]
            ),
        )
        return Submitted(made.run_id, name, f"{self._host}/#/runs/details/{made.run_id}")

    def schedule(
        self, experiment: str, name: str, version: tuple[str, str], values: Mapping[str, Any], every: str
    ) -> Submitted:
        """Make a recurring run: one at a time; runs missed while the cluster was down are not made up for.

        Args:
            experiment: the experiment of KFP, made if it does not exist.
            name: the name of the recurring run.
            version: what ``upload`` returned.
            values: the parameters of each run.
            every: an interval (``30m``, ``12h``, ``7d``) or a cron expression of six fields, seconds first.

        Raises:
            ConfigError: it is neither.
        """
        when: dict[str, Any]
        if match := _INTERVAL.fullmatch(every):
            when = {"interval_second": int(match[1]) * _SECONDS[match[2]]}
        elif len(every.split()) == 6:
            when = {"cron_expression": every}
        else:
            raise ConfigError(f"--every {every!r}: write 30m, 12h, 7d, or six cron fields, as in '0 0 3 * * 1'")
        made = self._ask(
            message("make the recurring run"),
            lambda: self._client.create_recurring_run(
                self._experiment(experiment),
                name,
                **when,
                max_concurrency=1,
                no_catchup=True,
                params=dict(values),
                pipeline_id=version[0],
                version_id=version[1],
            ),
        )
        return Submitted(made.recurring_run_id, name, f"{self._host}/#/recurringrun/details/{made.recurring_run_id}")

    def wait(
        self,
        run: Submitted,
        on_change: Callable[[str], None],
        timeout: float,
        pause: float = 5.0,
        progress: Callable[[], Mapping[str, str]] = dict,
    ) -> None:
        """Wait for a run's end.

        Args:
            run: what ``start`` returned.
            on_change: called with a line for the user when the state of the run or of one of its tasks changes.
            timeout: seconds to wait; the run itself continues.
            pause: seconds between two requests.
            progress: tells how far stages have come, which makes lines too.

        Raises:
            SubmitError: it ended in a state other than SUCCEEDED, or not in time.
        """
        seen: dict[str, str] = {}
        come: Mapping[str, str] = {}
        until = time.monotonic() + timeout
        while True:
            answer = self._ask(message("read the run"), lambda: self._client.get_run(run.identity), patience=300)
            states = {
                detail.display_name: detail.state
                for detail in (answer.run_details.task_details if answer.run_details else None) or []
                if detail.state and detail.display_name
            }
            for name, state in (states | {run.name: answer.state or "PENDING"}).items():
                if seen.get(name) != state:
                    seen[name] = state
                    on_change(f"{name}: {translated(_STATES.get(state, state.lower()))}")
            if answer.state == "SUCCEEDED":
                return
            if answer.state in _ENDED:
                failed = ", ".join(name for name, state in states.items() if state == "FAILED")
                said = answer.error.message if answer.error else ""
                why = "; ".join(filter(None, [message(f"tasks that failed: {failed}") if failed else "", said or ""]))
                raise SubmitError(f"run {run.name} ended as {answer.state}. {why}\nIts page: {run.url}")
            before, come = come, progress()
            for stage, said in come.items():
                if before.get(stage) != said:
                    on_change(f"{stage}: {translated(said)}")
            if time.monotonic() > until:
                raise SubmitError(f"run {run.name} has not ended after {timeout:.0f} s; it goes on: {run.url}")
            time.sleep(pause)

    def _probe(self, token: str | None) -> None:
        """Check that KFP answers: its client would ask five times, every five seconds, with a traceback each time."""
        import urllib3

        headers = {"Authorization": f"Bearer {token}"} if token else {}
        answer = self._ask(
            message("reach Kubeflow Pipelines"),
            lambda: urllib3.request(
                "GET", f"{self._host}/apis/v2beta1/healthz", headers=headers, timeout=10.0, retries=False
            ),
        )
        if answer.status != 200:
            raise SubmitError(f"cannot reach Kubeflow Pipelines at {self._host}: {_refusal(answer.status)}")

    def _experiment(self, name: str) -> str:
        return str(self._client.create_experiment(name, namespace=self._namespace).experiment_id)

    def _ask(self, what: str, ask: Callable[[], T], patience: float = 0.0) -> T:
        """Call the API and explain its errors; what kfp prints is not shown.

        Args:
            what: the request in words, for the message.
            ask: sends the request.
            patience: seconds in which it is repeated while the server is busy or does not answer.

        Raises:
            SubmitError: the server refused it, or did not answer in time.
        """
        import urllib3
        from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_fixed

        unanswered = (urllib3.exceptions.HTTPError, OSError)

        def may_pass(error: BaseException) -> bool:
            busy = isinstance(error, self._api_error) and error.status in (429, 502, 503, 504)
            return busy or isinstance(error, unanswered)

        repeat = Retrying(
            retry=retry_if_exception(may_pass), stop=stop_after_delay(patience), wait=wait_fixed(2), reraise=True
        )
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                return repeat(ask)
        except self._api_error as error:
            raise SubmitError(f"cannot {what} at {self._host}: {_said(error)}") from error
        except unanswered as error:
            raise SubmitError(
                f"cannot {what}: nothing answers at {self._host} ({error}). In a cluster of your own: "
                "kubectl -n kubeflow port-forward svc/ml-pipeline-ui 8080:80, then --host http://localhost:8080"
            ) from error


def _said(error: Any) -> str:
    if error.status in (401, 403):
        return _refusal(error.status)
    with contextlib.suppress(ValueError, TypeError, AttributeError):
        body = json.loads(error.body)
        return str(body.get("error_message") or body.get("message") or body)[:1000]
    return str(error.reason)


def submit_run(
    pipeline: str,
    experiment: Experiment,
    given: list[str],
    host: str,
    token: str | None,
    namespace: str | None,
    group: str | None,
    name: str | None,
    every: str | None,
    timeout: float,
    *,
    dry_run: bool = False,
) -> None:
    """Upload a pipeline; start a run of it or a recurring run.

    Args:
        pipeline: a name of ``pipelines/compiled``, or the path of a compiled pipeline.
        experiment: the experiment.
        given: ``name=value`` entries, the pipeline's parameters.
        host: see ``Pipelines``, like the next two.
        token: a bearer token.
        namespace: the user's.
        group: KFP's experiment, or None for the experiment's name.
        name: the name of the run, or None for the experiment's name and the time.
        every: see ``Pipelines.schedule``, or None to start one run now.
        timeout: seconds to wait for the run's end; 0 not to wait.
        dry_run: upload and start nothing; say whether KFP answers, and what does not fit on the cluster.

    Raises:
        SubmitError: KFP cannot be reached or refuses, or the run did not succeed; of a dry run, something does not fit.
        ConfigError: there is no such pipeline or parameter.
    """
    file = Path(pipeline) if pipeline.endswith(".yaml") else _COMPILED / f"{pipeline}.yaml"
    if not file.exists():
        known = ", ".join(sorted(entry.stem for entry in _COMPILED.glob("*.yaml")))
        raise ConfigError(f"there is no pipeline {pipeline!r}: use one of {known}, or the path of a compiled file")
    run = name or f"{experiment.name}-{datetime.now():%Y%m%d-%H%M%S}"
    preflight.check_name(experiment, run)
    preflight.check_stages(experiment, ("evaluate",) if file.stem in _MEASURING else ())
    # Recurring runs take KFP's names, because each needs its own records and jobs.
    values = parameters(file, experiment, "" if every else run, given)
    api = Pipelines(host, token, namespace)
    console = Console()
    if dry_run:
        console.print(f"{file.stem} can be submitted to {host} as {run}; nothing was", soft_wrap=True, highlight=False)
        _look_for_room(console, file, values, namespace or os.environ.get("WUKONG_CLUSTER") or _NAMESPACE)
        return
    version = api.upload(file)
    if every:
        made = api.schedule(group or experiment.name, run, version, values, every)
        console.print_titled("Recurring", made.name, _WIDTH)
        console.print_titled("Page", made.url, _WIDTH)
        return
    made = api.start(group or experiment.name, run, version, values)
    console.print_titled("Run", made.name, _WIDTH)
    console.print_titled("Page", made.url, _WIDTH)
    if timeout:
        cluster = namespace or os.environ.get("WUKONG_CLUSTER") or _NAMESPACE
        shares = _Progress(cluster, experiment.name, run)
        api.wait(made, lambda line: console.out(f"  {line}", highlight=False), timeout, progress=shares.now)
        if file.stem in _MEASURING:
            summary.print_tables(console, experiment, run)


class _Progress:
    """How far the stages of a run have come, as their RayJobs say it to the kubeconfig's user.

    Where there is no kubeconfig, or its user may not look, nothing is said: the run can be waited for without.

    Args:
        namespace: the RayJobs'.
        experiment: name of the experiment.
        run: name of the run.
    """

    def __init__(self, namespace: str, experiment: str, run: str) -> None:
        from ray_jobs.launch.kuberay import RayJobError, Timing
        from ray_jobs.launch.kuberay.client import KubernetesApi

        self._experiment, self._run = experiment, run
        self._api: KubernetesApi | None = None
        with contextlib.suppress(RayJobError):
            self._api = KubernetesApi(namespace, Timing(patience=0))

    def now(self) -> dict[str, str]:
        """Return a message for each stage at work that has said how far it is."""
        from ray_jobs.launch.kuberay import RayJobError
        from ray_jobs.launch.kuberay.progress import NAME, in_words
        from ray_jobs.launch.kuberay.status import verdict

        if self._api is None:
            return {}
        try:
            jobs = self._api.jobs_of_run(self._run)
        except RayJobError as error:
            log.debug("the progress of stages is not shown: %s", error)
            if error.reason != "Unreachable":
                self._api = None
            return {}
        found = {}
        for job in jobs:
            labels, of = job["metadata"]["labels"], job["metadata"].get("annotations", {}).get("wukong/experiment")
            if of == self._experiment and NAME in labels and verdict(job.get("status", {})) is None:
                found[labels["wukong/stage"]] = in_words(labels[NAME])
        return found


def _look_for_room(console: Console, file: Path, values: Mapping[str, Any], namespace: str) -> None:
    """Print what of a run's pods does not fit on the cluster of the kubeconfig, and what cannot be seen of it.

    Raises:
        SubmitError: something does not fit.
        RayJobError: there is no kubeconfig, or the cluster does not answer.
    """
    from kubernetes import client

    from cli import free_resources
    from ray_jobs.launch.kuberay.client import KubernetesApi, Timing
    from ray_jobs.launch.kuberay.settings import CONFIG_MAP, parse

    api = KubernetesApi(namespace, Timing(patience=10))
    template, settings = parse(api.read_config_map(CONFIG_MAP), namespace)
    numbers = {name: values[name] for name in run_ends.NUMBERS if name in values}
    experiment = run_ends.experiment_of(values["experiment"], values.get("overrides", []), numbers)
    jobs = {stage: free_resources.pods_of(experiment, template, settings, stage) for stage in _jobs_of(file)}
    lines, unseen = free_resources.unfit(client.CoreV1Api(), namespace, jobs)
    for line in [*unseen, *lines]:
        console.print(line, soft_wrap=True, highlight=False, markup=False)
    if lines:
        raise SubmitError(
            f"pods of {len(lines)} groups do not fit on the cluster now: they wait until others end or nodes come; "
            f"give them less in the ConfigMap {namespace}/{CONFIG_MAP}, or add nodes"
        )
    if not unseen:
        pods = max(map(len, jobs.values()), default=0)
        console.print(f"All {len(jobs)} jobs fit on the cluster now; the largest has {pods} pods", highlight=False)


def _jobs_of(file: Path) -> list[str]:
    """Return the stages of a compiled pipeline that are Ray jobs, in the order in which they run."""
    specification = next(yaml.safe_load_all(file.read_text(encoding="utf-8")))
    graphs = [specification["root"], *specification["components"].values()]
    tasks = {name for graph in graphs for name in graph.get("dag", {}).get("tasks", {})}
    return [name for name in stages.JOBS if (stages.of(name).function or name).replace("_", "-") in tasks]


def _refusal(status: int) -> str:
    if status in (401, 403):
        return message(f"it refuses ({status}); give a token in WUKONG_KFP_TOKEN")
    return message(f"it answers {status} at /apis/v2beta1/healthz; is this the address of its UI or API?")
