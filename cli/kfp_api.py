"""What submitting asks of Kubeflow Pipelines' API: upload a pipeline, start or schedule a run, wait for its end."""

import contextlib
import io
import json
import os
import re
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from cli.compiled_pipeline import specification, version_of
from cli.run_result import Outcome, RunError, Seen, SubmitError
from wukong.errors import ConfigError
from wukong.runtime.language import _, translated

# kfp's own function for waiting does not know CANCELED and would wait for ever.
_ENDED = ("SUCCEEDED", "FAILED", "SKIPPED", "CANCELED")
_STATES = {
    "PENDING": _("pending"),
    "RUNNING": _("running"),
    "SUCCEEDED": _("succeeded"),
    "SKIPPED": _("skipped"),
    "FAILED": _("failed"),
    "CANCELING": _("canceling"),
    "CANCELED": _("canceled"),
    "PAUSED": _("paused"),
}
_CHECK = "configure"  # the task that refuses what cannot be run, before any stage
_INTERVAL = re.compile(r"(\d+)([mhd])")
_SECONDS = {"m": 60, "h": 3600, "d": 86_400}
_PATH_OF_KFP = "KF_PIPELINES_SA_TOKEN_PATH"  # of a token; in a pod, one that Kubernetes renews
T = TypeVar("T")


@dataclass(frozen=True)
class Submitted:
    """A run or recurring run that was begun: its ID in KFP, its name, and the address of its page."""

    identity: str
    name: str
    url: str


class Pipelines:
    """The Kubeflow Pipelines API, as far as submitting needs it.

    Args:
        host: its address, for instance ``http://localhost:8080`` behind a port-forward of the UI.
        token: a bearer token, where the address asks for one. Without it, that of the file that
            ``KF_PIPELINES_SA_TOKEN_PATH`` names is taken, which is read anew for each request.
        namespace: the user's namespace, in multi-user mode.

    Attributes:
        host: as given, without a slash at its end.

    Raises:
        ConfigError: the token's file cannot be read.
        SubmitError: nothing answers there, or it refuses.
    """

    def __init__(self, host: str, token: str | None = None, namespace: str | None = None) -> None:
        import kfp
        import kfp_server_api
        from kfp.client import ServiceAccountTokenVolumeCredentials

        self.host, self._api_error, self._api = host.rstrip("/"), kfp_server_api.ApiException, kfp_server_api
        file = None if token else os.environ.get(_PATH_OF_KFP)
        self._probe(token or (_token_in(file) if file else None))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", category=FutureWarning)
            self._client = self._ask(
                "reach Kubeflow Pipelines",
                lambda: kfp.Client(
                    host=self.host,
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
        info = specification(file)["pipelineInfo"]
        version = version_of(file)
        name, description = info["name"], info.get("description", "")
        # A pipeline keeps the description of its first upload, and lists show one line of it.
        summary = description.partition("\n")[0]
        named = json.dumps({"predicates": [{"operation": "EQUALS", "key": "display_name", "stringValue": name}]})
        known = self._ask(
            "look up the pipeline",
            lambda: self._client.list_pipelines(namespace=self.namespace, filter=named),
        ).pipelines
        if known:
            pipeline = known[0].pipeline_id
        else:
            pipeline = self._ask(
                "upload the pipeline",
                lambda: self._client.upload_pipeline(str(file), name, summary, namespace=self.namespace),
            ).pipeline_id
        predicate = {"operation": "EQUALS", "key": "display_name", "stringValue": version}
        versions = self._ask(
            "list the pipeline's versions",
            lambda: self._client.list_pipeline_versions(pipeline, filter=json.dumps({"predicates": [predicate]})),
        ).pipeline_versions
        if not versions:
            uploaded = self._ask(
                "upload the pipeline's version",
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
            "start the run",
            lambda: self._client.run_pipeline(
                group, name, params=dict(values), pipeline_id=version[0], version_id=version[1]
            ),
            begins=True,
        )
        return Submitted(made.run_id, name, f"{self.host}/#/runs/details/{made.run_id}")

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
            "make the recurring run",
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
        return Submitted(made.recurring_run_id, name, f"{self.host}/#/recurringrun/details/{made.recurring_run_id}")

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
                answer = self._ask("read the run", lambda: self._client.get_run(run.identity), patience=300)
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
                said_so = f"run {run.name} has not ended after {timeout:.0f} s; it goes on: {run.url}"
                raise RunError(said_so, Outcome.LOST, seen)
            time.sleep(pause)

    def _probe(self, token: str | None) -> None:
        """Check that KFP answers: its client would ask five times, every five seconds, with a traceback each time."""
        import urllib3

        headers = {"Authorization": f"Bearer {token}"} if token else {}
        answer = self._ask(
            "reach Kubeflow Pipelines",
            lambda: urllib3.request(
                "GET", f"{self.host}/apis/v2beta1/healthz", headers=headers, timeout=10.0, retries=False
            ),
        )
        if answer.status != 200:
            raise SubmitError(f"cannot reach Kubeflow Pipelines at {self.host}: {_refusal(answer.status)}")

    def _experiment(self, name: str) -> str:
        made = self._ask("make the experiment", lambda: self._client.create_experiment(name, namespace=self.namespace))
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
            said = f"cannot {what} at {self.host}: {_said(error)}"
            if begins and error.status in (502, 504):  # of what stands before the server
                raise _may_have_begun(said) from error
            raise SubmitError(said) from error
        except unanswered as error:
            if begins:
                raise _may_have_begun(f"cannot {what} at {self.host}: {error}") from error
            raise SubmitError(
                f"cannot {what}: nothing answers at {self.host} ({error}). In a cluster of your own: "
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
    said = [f"tasks that failed: {failed}" if failed else "", why]
    outcome = Outcome.FAILED
    if is_terminated:
        outcome = Outcome.TERMINATED
        said.append("somebody terminated it")
    elif seen.tasks.get(_CHECK) == "FAILED":
        outcome = Outcome.REFUSED
        said.append(f"no stage was begun: the log of {titles.get(_CHECK, _CHECK)} says what to change")
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
        return "it refuses (401); give a token that holds in WUKONG_KFP_TOKEN"
    if status == 403:
        return (
            "it refuses (403): who the token in WUKONG_KFP_TOKEN is of may not do this; where there are several teams, "
            "name your own by --namespace"
        )
    return f"it answers {status} at /apis/v2beta1/healthz; is this the address of its UI or API?"
