"""Submit a pipeline to Kubeflow Pipelines, from Python: ``submit`` uploads it, starts a run, and waits for its end.

``wukong submit`` (``cli.submit_command``) prints what this does.
"""

import contextlib
import hashlib
import io
import json
import os
import re
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import yaml

from cli.run_result import Outcome, Result, RunError, Seen, SubmitError, stages_of, with_records
from cli.stage_progress import StageProgress
from components import run_ends
from wukong.config import documents
from wukong.config.experiment import Experiment
from wukong.errors import ConfigError
from wukong.runs import origin
from wukong.runs.origin import Source
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
_CHECK = "configure"  # the task that refuses what cannot be run, before any stage
_OURS = {"experiment", "run", "source"}  # parameters that are made here
_INTERVAL = re.compile(r"(\d+)([mhd])")
_SECONDS = {"m": 60, "h": 3600, "d": 86_400}

HOST = "http://localhost:8080"
"""The address of KFP behind a port-forward of its UI."""
_HOST, _TOKEN, _USERS_NAMESPACE = "WUKONG_KFP_HOST", "WUKONG_KFP_TOKEN", "WUKONG_KFP_NAMESPACE"
_PATH_OF_KFP = "KF_PIPELINES_SA_TOKEN_PATH"  # of a token; in a pod, one that Kubernetes renews

T = TypeVar("T")


@dataclass(frozen=True)
class Submitted:
    """A run or recurring run that was begun: its ID in KFP, its name, and the address of its page."""

    identity: str
    name: str
    url: str


def parameters(file: Path, experiment: Experiment, run: str, given: Sequence[str]) -> dict[str, Any]:
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
    known = _parameters_of(file)
    made: dict[str, Any] = {
        "experiment": experiment.model_dump(mode="json", exclude_unset=True),
        "run": run,
    }
    for entry in given:
        name, separator, text = entry.partition("=")
        if not separator:
            raise ConfigError(f"--param {entry!r}: write it as name=value, for instance epochs=3")
        if name not in known or name in _OURS:
            others = ", ".join(sorted(known.keys() - _OURS))
            raise ConfigError(f"--param {entry!r}: the {file.stem} pipeline has the parameters {others}")
        kind = known[name]["parameterType"]
        value = text if kind == "STRING" else yaml.safe_load(text)
        if not isinstance(value, _TYPES[kind]) or (isinstance(value, bool) and kind != "BOOLEAN"):
            raise ConfigError(f"--param {entry!r}: {name} is a {kind.lower().replace('_', ' ')}")
        made[name] = value
    missing = [name for name, definition in known.items() if name not in made and "defaultValue" not in definition]
    if missing:
        raise ConfigError(f"the {file.stem} pipeline needs --param {missing[0]}=…: {known[missing[0]]['description']}")
    asked_for(made)  # as the first component does
    return made


def _parameters_of(file: Path) -> Mapping[str, Any]:
    """Return the definitions of a compiled pipeline's parameters, by name."""
    found: Mapping[str, Any] = _specification(file)["root"]["inputDefinitions"]["parameters"]
    return found


def _specification(file: Path) -> Any:
    return next(yaml.safe_load_all(file.read_text(encoding="utf-8")))


def asked_for(values: Mapping[str, Any]) -> Experiment:
    """Return the experiment that a run with these parameters does.

    Raises:
        ConfigError: it is not valid.
    """
    numbers = {name: values[name] for name in run_ends.NUMBERS if name in values}
    model = values.get("model", "")
    return run_ends.experiment_of(values["experiment"], values.get("overrides", []), numbers, model)


class Pipelines:
    """The Kubeflow Pipelines API, as far as submitting needs it.

    Args:
        host: its address, for instance ``http://localhost:8080`` behind a port-forward of the UI.
        token: a bearer token, where the address asks for one. Without it, that of the file that
            ``KF_PIPELINES_SA_TOKEN_PATH`` names is taken, which is read anew for each request.
        namespace: the user's namespace, in multi-user mode.

    Raises:
        ConfigError: the token's file cannot be read.
        SubmitError: nothing answers there, or it refuses.
    """

    def __init__(self, host: str, token: str | None = None, namespace: str | None = None) -> None:
        import kfp
        import kfp_server_api
        from kfp.client import ServiceAccountTokenVolumeCredentials

        self._host, self._api_error, self._api = host.rstrip("/"), kfp_server_api.ApiException, kfp_server_api
        file = None if token else os.environ.get(_PATH_OF_KFP)
        self._probe(token or (_token_in(file) if file else None))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", category=FutureWarning)
            self._client = self._ask(
                message("reach Kubeflow Pipelines"),
                lambda: kfp.Client(
                    host=self._host,
                    existing_token=token,
                    credentials=ServiceAccountTokenVolumeCredentials(file) if file else None,
                    namespace=namespace or "kubeflow",
                ),
            )
        self.namespace = namespace

    def upload(self, file: Path) -> tuple[str, str]:
        """Upload a compiled pipeline, unless the same bytes have been uploaded before.

        The version's description is the pipeline's in full, which says how to fill in the form.

        Returns:
            The IDs of the pipeline and of its version, whose name is a digest of the file.
        """
        specification = _specification(file)["pipelineInfo"]
        version = _version(file)
        name, description = specification["name"], specification.get("description", "")
        # A pipeline keeps the description of its first upload, and lists show one line of it.
        summary = description.partition("\n")[0]
        named = json.dumps({"predicates": [{"operation": "EQUALS", "key": "display_name", "stringValue": name}]})
        known = self._ask(
            message("look up the pipeline"),
            lambda: self._client.list_pipelines(namespace=self.namespace, filter=named),
        ).pipelines
        if known:
            pipeline = known[0].pipeline_id
        else:
            pipeline = self._ask(
                message("upload the pipeline"),
                lambda: self._client.upload_pipeline(str(file), name, summary, namespace=self.namespace),
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
        """Start a run in an experiment of KFP, which is made if it does not exist.

        Raises:
            RunError: nothing was answered, so the run may have begun.
        """
        group = self._experiment(experiment)
        made = self._ask(
            message("start the run"),
            lambda: self._client.run_pipeline(
                group, name, params=dict(values), pipeline_id=version[0], version_id=version[1]
            ),
            begins=True,
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
            RunError: nothing was answered, so the recurring run may have been made.
        """
        when: dict[str, Any]
        if match := _INTERVAL.fullmatch(every):
            when = {"interval_second": int(match[1]) * _SECONDS[match[2]]}
        elif len(every.split()) == 6:
            when = {"cron_expression": every}
        else:
            raise ConfigError(f"--every {every!r}: write 30m, 12h, 7d, or six cron fields, as in '0 0 3 * * 1'")
        group = self._experiment(experiment)
        made = self._ask(
            message("make the recurring run"),
            lambda: self._client.create_recurring_run(
                group,
                name,
                **when,
                max_concurrency=1,
                no_catchup=True,
                params=dict(values),
                pipeline_id=version[0],
                version_id=version[1],
            ),
            begins=True,
        )
        return Submitted(made.recurring_run_id, name, f"{self._host}/#/recurringrun/details/{made.recurring_run_id}")

    def wait(
        self,
        run: Submitted,
        on_change: Callable[[str], None],
        timeout: float,
        pause: float = 5.0,
        progress: Callable[[], Mapping[str, str]] = dict,
        titles: Mapping[str, str] | None = None,
    ) -> Seen:
        """Wait for a run's end, and return what KFP says of it then.

        Args:
            run: what ``start`` returned.
            on_change: called with a line for the user when the state of the run or of one of its tasks changes.
            timeout: seconds to wait; the run itself continues.
            pause: seconds between two requests.
            progress: tells how far stages have come, which makes lines too.
            titles: of the tasks that count, by their names; None for all that KFP tells. It has some ten of its own for
                each of the pipeline's.

        Raises:
            RunError: it ended in a state other than SUCCEEDED, or not in time, or KFP no longer answers.
        """
        told: dict[str, str] = {}
        come: Mapping[str, str] = {}
        seen, is_terminated, until = Seen(), False, time.monotonic() + timeout
        while True:
            try:
                answer = self._ask(message("read the run"), lambda: self._client.get_run(run.identity), patience=300)
            except SubmitError as error:
                raise RunError(
                    f"{error}\nThe run {run.name} was begun and may go on: {run.url}", Outcome.LOST, seen
                ) from error
            seen = _seen(answer, titles)
            # A run that is terminated is CANCELING, and FAILED once its workflow has ended.
            is_terminated = is_terminated or _was_terminated(answer)
            for name, state in {**seen.tasks, run.name: seen.state}.items():
                if told.get(name) != state:
                    told[name] = state
                    shown = translated((titles or {}).get(name, name))
                    on_change(f"{shown}: {translated(_STATES.get(state, state.lower()))}")
            if seen.state == "SUCCEEDED":
                return seen
            if seen.state in _ENDED:
                why = answer.error.message if answer.error else ""
                raise _unsuccessful(run, seen, why, titles or {}, is_terminated=is_terminated)
            before, come = come, progress()
            for stage, said in come.items():
                if before.get(stage) != said:
                    on_change(f"{stage}: {translated(said)}")
            if time.monotonic() > until:
                said_so = message(f"run {run.name} has not ended after {timeout:.0f} s; it goes on: {run.url}")
                raise RunError(said_so, Outcome.LOST, seen)
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
        made = self._ask(
            message("make the experiment"), lambda: self._client.create_experiment(name, namespace=self.namespace)
        )
        return str(made.experiment_id)

    def _ask(self, what: str, ask: Callable[[], T], patience: float = 0.0, *, begins: bool = False) -> T:
        """Call the API and explain its errors; what kfp prints is not shown.

        Args:
            what: the request in words, for the message.
            ask: sends the request.
            patience: seconds in which it is repeated while the server is busy or does not answer.
            begins: whether it begins a run, which then may have begun without an answer.

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
            said = f"cannot {what} at {self._host}: {_said(error)}"
            if begins and error.status in (502, 504):  # of what stands before the server
                raise _may_have_begun(said) from error
            raise SubmitError(said) from error
        except unanswered as error:
            if begins:
                raise _may_have_begun(f"cannot {what} at {self._host}: {error}") from error
            raise SubmitError(
                f"cannot {what}: nothing answers at {self._host} ({error}). In a cluster of your own: "
                "kubectl -n kubeflow port-forward svc/ml-pipeline-ui 8080:80, then --host http://localhost:8080"
            ) from error


def _seen(answer: Any, titles: Mapping[str, str] | None) -> Seen:
    """Return what KFP says of a run, a ``V2beta1Run``, and of its tasks in the order in which they began."""
    details = (answer.run_details.task_details if answer.run_details else None) or []
    named = [detail for detail in details if detail.state and detail.display_name]
    named = [detail for detail in named if titles is None or detail.display_name in titles]
    named.sort(key=lambda detail: str(detail.start_time))
    ended = [detail for detail in named if detail.start_time and detail.end_time]
    return Seen(
        answer.state or "PENDING",
        {detail.display_name: detail.state for detail in named},
        {
            detail.display_name: seconds
            for detail in ended
            # The end of a task that goes on is a time before all others.
            if (seconds := (detail.end_time - detail.start_time).total_seconds()) >= 0
        },
    )


def _unsuccessful(run: Submitted, seen: Seen, why: str, titles: Mapping[str, str], *, is_terminated: bool) -> RunError:
    """Return the error of a run that has ended and not succeeded."""
    failed = ", ".join(titles.get(name, name) for name, state in seen.tasks.items() if state == "FAILED")
    said = [message(f"tasks that failed: {failed}") if failed else "", why]
    outcome = Outcome.FAILED
    if is_terminated:
        outcome = Outcome.TERMINATED
        said.append(message("somebody terminated it"))
    elif seen.tasks.get(_CHECK) == "FAILED":
        outcome = Outcome.REFUSED
        said.append(message(f"no stage was begun: the log of {titles.get(_CHECK, _CHECK)} says what to change"))
    reasons = "; ".join(filter(None, said))
    return RunError(f"run {run.name} ended as {seen.state}. {reasons}\nIts page: {run.url}", outcome, seen)


def _may_have_begun(said: str) -> RunError:
    """Return the error of a request that begins a run and was not answered."""
    return RunError(f"{said}\nIt may have begun all the same: look for it before you submit again", Outcome.LOST)


def _was_terminated(answer: Any) -> bool:
    """Whether somebody has ended a run, a ``V2beta1Run``."""
    states = [answer.state, *(entry.state for entry in answer.state_history or [])]
    return any(state in ("CANCELING", "CANCELED") for state in states)


def _said(error: Any) -> str:
    if error.status in (401, 403):
        return _refusal(error.status)
    with contextlib.suppress(ValueError, TypeError, AttributeError):
        body = json.loads(error.body)
        return str(body.get("error_message") or body.get("message") or body)[:1000]
    return str(error.reason)


@dataclass(frozen=True)
class Prepared:
    """What is to be submitted, after it was checked.

    Attributes:
        file: the compiled pipeline.
        run: name of the run.
        values: the pipeline's parameters.
        experiment: that the run does.
        source: which revisions are submitted.
        images: names of the images that the pipeline has.
    """

    file: Path
    run: str
    values: Mapping[str, Any]
    experiment: Experiment
    source: Source
    images: tuple[str, ...]

    @property
    def measures(self) -> bool:
        """Whether the pipeline evaluates a model."""
        return self.file.stem in _MEASURING


def prepare(
    pipeline: str,
    config: Path | Experiment,
    *,
    overrides: Sequence[str] = (),
    given: Sequence[str] = (),
    name: str | None = None,
    recurs: bool = False,
    pinned: bool = False,
) -> Prepared:
    """Check what is to be submitted; the arguments are those of ``submit``.

    Raises:
        ConfigError: there is no such pipeline or parameter, the experiment is not valid, or it is not pinned.
    """
    file = Path(pipeline) if pipeline.endswith(".yaml") else _COMPILED / f"{pipeline}.yaml"
    if not file.exists():
        known = ", ".join(sorted(entry.stem for entry in _COMPILED.glob("*.yaml")))
        raise ConfigError(f"there is no pipeline {pipeline!r}: use one of {known}, or the path of a compiled file")
    if isinstance(config, Experiment):
        experiment, source = config, Source(code=origin.own_revision())
    else:
        experiment, source = documents.load(config, list(overrides)), origin.of_file(config, overrides)
    run = name or f"{experiment.name}-{datetime.now():%Y%m%d-%H%M%S}"
    preflight.check_name(experiment, run)
    preflight.check_stages(experiment, ("evaluate",) if file.stem in _MEASURING else ())
    # Recurring runs take KFP's names, because each needs its own records and jobs.
    values = parameters(file, experiment, "" if recurs else run, given)
    asked = asked_for(values)
    made = {"pipeline": file.stem, "version": _version(file), "params": tuple(given)}
    source = source.model_copy(update={**made, "digest": origin.digest_of_experiment(asked)})
    if "source" in _parameters_of(file):
        values["source"] = source.model_dump_json(exclude_defaults=True)
    images = images_of(file)
    if pinned:
        _refuse_unpinned(source, images)
    return Prepared(file, run, values, asked, source, images)


def submit(
    pipeline: str,
    config: Path | Experiment,
    *,
    overrides: Sequence[str] = (),
    params: Mapping[str, Any] | None = None,
    host: str | None = None,
    token: str | None = None,
    namespace: str | None = None,
    group: str | None = None,
    name: str | None = None,
    every: str | None = None,
    pinned: bool = False,
    timeout: float = 7 * 86_400,
    records: bool = True,
    on_start: Callable[[Submitted], None] = lambda _: None,
    on_change: Callable[[str], None] = lambda _: None,
) -> Result:
    """Upload a pipeline, start a run of it or make a recurring run, and wait for the run's end.

    Args:
        pipeline: a name of ``pipelines/compiled``, or the path of a compiled pipeline.
        config: an experiment's file, with whose repository's revision the run is recorded; or the experiment itself.
        overrides: ``key.path=value`` entries that change the file's experiment.
        params: further parameters of the pipeline.
        host: address of KFP; None for that of ``WUKONG_KFP_HOST``, or http://localhost:8080.
        token: a bearer token; None for that of ``WUKONG_KFP_TOKEN``, or that in the file that
            ``KF_PIPELINES_SA_TOKEN_PATH`` names, if there is one.
        namespace: the user's, in multi-user mode; None for that of ``WUKONG_KFP_NAMESPACE``, if there is one.
        group: KFP's experiment, which is made if it does not exist; None for the experiment's name.
        name: the name of the run; None for the experiment's name and the time.
        every: see ``Pipelines.schedule``; None to start one run now.
        pinned: refuse what is not bound to a revision and to digests: see ``wukong submit --pinned``.
        timeout: seconds to wait for the run's end; 0 not to wait. The run itself goes on.
        records: whether to read what the run left in its storage, which must then be reached from here. One that is
            away is waited for as stages wait, ``WUKONG_STORE_PATIENCE`` seconds.
        on_start: called when the run has begun, or the recurring run was made.
        on_change: called with a line for a person when something has changed.

    Returns:
        What became of it, also where it did not succeed; ``Result.check`` makes an error of that.

    Raises:
        ConfigError: it is not valid; nothing was submitted.
        SubmitError: KFP cannot be reached or refuses; no run was begun.
    """
    given = [f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in (params or {}).items()]
    prepared = prepare(
        pipeline, config, overrides=overrides, given=given, name=name, recurs=every is not None, pinned=pinned
    )
    return submit_prepared(
        prepared,
        Pipelines(
            host or os.environ.get(_HOST) or HOST,
            token or os.environ.get(_TOKEN),
            namespace or os.environ.get(_USERS_NAMESPACE),
        ),
        group=group,
        every=every,
        timeout=timeout,
        records=records,
        on_start=on_start,
        on_change=on_change,
    )


def submit_prepared(
    prepared: Prepared,
    api: Pipelines,
    *,
    group: str | None,
    every: str | None,
    timeout: float,
    records: bool,
    on_start: Callable[[Submitted], None],
    on_change: Callable[[str], None],
) -> Result:
    """Submit what was prepared; arguments, result and errors are those of ``submit``."""
    version, group = api.upload(prepared.file), group or prepared.experiment.name
    result = Result(
        outcome=Outcome.SCHEDULED if every else Outcome.SUBMITTED,
        run=prepared.run,
        group=group,
        experiment=prepared.experiment.name,
        source=prepared.source,
        images=prepared.images,
    )
    try:
        if every:
            begun = api.schedule(group, prepared.run, version, prepared.values, every)
        else:
            begun = api.start(group, prepared.run, version, prepared.values)
    except RunError as raised:
        return result.model_copy(update={"outcome": raised.outcome, "error": str(raised)})
    on_start(begun)
    result = result.model_copy(update={"id": begun.identity, "url": begun.url})
    if every or not timeout:
        return result
    progress = StageProgress(cluster_of(api.namespace), prepared.experiment.name, prepared.run)
    outcome, error = Outcome.SUCCEEDED, None
    try:
        titles = titles_of(prepared.file)
        seen = api.wait(begun, on_change, timeout, progress=progress.now, titles=titles)
    except RunError as raised:
        outcome, error, seen = raised.outcome, str(raised), raised.seen
    known = {"outcome": outcome, "error": error, "state": seen.state or None, "stages": stages_of(seen)}
    result = result.model_copy(update=known)
    return with_records(result, prepared.experiment) if records else result


def images_of(file: Path) -> tuple[str, ...]:
    """Return the names of the images that a compiled pipeline has."""
    executors = _specification(file)["deploymentSpec"]["executors"].values()
    return tuple(sorted({executor["container"]["image"] for executor in executors}))


def titles_of(file: Path) -> dict[str, str]:
    """Return the titles that tasks of a compiled pipeline have in KFP, by their names; groups of tasks are left out."""
    specification = _specification(file)
    components = specification["components"]
    graphs = [specification["root"], *components.values()]
    return {
        name: task["taskInfo"]["name"]
        for graph in graphs
        for name, task in graph.get("dag", {}).get("tasks", {}).items()
        if "executorLabel" in components[task["componentRef"]["name"]]
    }


def cluster_of(namespace: str | None) -> str:
    """Return the namespace of a user's RayJobs."""
    return namespace or os.environ.get("WUKONG_CLUSTER") or _NAMESPACE


def _refuse_unpinned(source: Source, images: Sequence[str]) -> None:
    """Refuse a config that no revision holds as it is, and images that are not named by their digests.

    Raises:
        ConfigError: there is such a thing; the message names all.
    """
    problems = []
    if not source.revision:
        problems.append(message("the config is in no revision of a git repository"))
    elif source.dirty:
        problems.append(message("the config's repository has changes, or lacks the config: commit them"))
    problems += [
        message(f"the pipeline has the image {image} without a digest: docs/cluster.md, 'Images', pins it")
        for image in images
        if "@sha256:" not in image
    ]
    if problems:
        raise ConfigError("\n  ".join([message("--pinned: it is not bound to what it was made of:"), *problems]))


def _version(file: Path) -> str:
    """Return the name of a compiled pipeline's version: a digest of its file."""
    return hashlib.sha256(file.read_bytes()).hexdigest()[:12]


def _token_in(file: str) -> str:
    """Return the token in a file.

    Raises:
        ConfigError: it cannot be read.
    """
    try:
        return Path(file).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{_PATH_OF_KFP} names {file}, which cannot be read: {error}") from error


def _refusal(status: int) -> str:
    if status == 401:
        return message("it refuses (401); give a token that holds in WUKONG_KFP_TOKEN")
    if status == 403:
        return message(
            "it refuses (403): who the token in WUKONG_KFP_TOKEN is of may not do this; where there are several teams, "
            "name your own by --namespace"
        )
    return message(f"it answers {status} at /apis/v2beta1/healthz; is this the address of its UI or API?")
