"""Calls of the Kubernetes API: RayJobs, their pods, the pods' logs, and one ConfigMap.

A call that fails because the API server cannot be reached or is overloaded is repeated for ``Timing.patience`` seconds.
"""

import logging
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import urllib3
import yaml
from kubernetes import client, config, watch
from kubernetes.client import ApiException
from tenacity import RetryError, Retrying, retry_if_exception, stop_after_delay, wait_exponential

from ray_jobs.launch.kuberay.errors import RayJobError
from ray_jobs.launch.kuberay.manifest import run_label

API_ERRORS: tuple[type[Exception], ...] = (ApiException, urllib3.exceptions.HTTPError, OSError)
"""Errors of one call: the API server answered with an error, or did not answer."""

HEAD = "ray.io/node-type=head"
"""Selects the head among the pods of a Ray cluster."""

_GROUP, _VERSION, _PLURAL = "ray.io", "v1", "rayjobs"
_KUEUE_VERSION = "v1beta2"  # of both its groups, from Kueue 0.15 on
_BUSY = (429, 500, 502, 503, 504)

log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True)
class Timing:
    """Seconds the launcher waits.

    Attributes:
        watch: length of one watch request, before the next is made; how late a lost node is noticed.
        look: the same while a job does not run yet: how late it is noticed that its pods find no node.
        poll: pause between two reads where watching is not possible.
        patience: longest wait for an API server that cannot be reached.
        heartbeat: pause between two lines that say what a job waits for.
        pods: pause between two looks at the pods that a job holds.
        drain: longest wait for the rest of the log after the job has ended.
        progress: pause between two writes of how far a job has come.
        backoff: pause before the first RayJob that is made again; twice as long before each further one.
        max_backoff: the longest such wait.
    """

    watch: int = 30
    look: int = 15
    poll: float = 5.0
    patience: float = 600.0
    heartbeat: float = 60.0
    pods: float = 15.0
    drain: float = 10.0
    progress: float = 10.0
    backoff: float = 10.0
    max_backoff: float = 120.0


def load_credentials(namespace: str) -> None:
    """Let clients of Kubernetes be the service account of this pod, or else the kubeconfig's user.

    Args:
        namespace: the one that ``WUKONG_CLUSTER`` names; for the message.

    Raises:
        RayJobError: there is neither a service account nor a kubeconfig.
    """
    try:
        config.load_incluster_config()
    except config.ConfigException:
        try:
            config.load_kube_config()
        except config.ConfigException as error:
            raise RayJobError(
                f"WUKONG_CLUSTER names the namespace {namespace!r}, but there is neither a service account nor a "
                f"kubeconfig here to reach a cluster with: {error}",
                "NoCluster",
            ) from error


class KubernetesApi:
    """The Kubernetes API, with the credentials that ``load_credentials`` finds.

    Args:
        namespace: the RayJobs'.
        timing: how long to wait.

    Raises:
        RayJobError: there are no credentials.
    """

    def __init__(self, namespace: str, timing: Timing) -> None:
        self.namespace, self.timing = namespace, timing
        load_credentials(namespace)
        self._core, self._custom = client.CoreV1Api(), client.CustomObjectsApi()
        self._where = {"group": _GROUP, "version": _VERSION, "namespace": namespace, "plural": _PLURAL}

    def read_config_map(self, name: str) -> dict[str, str]:
        """The data of a ConfigMap."""
        config_map = self._repeat(
            lambda: self._core.read_namespaced_config_map(name, self.namespace, _request_timeout=(5, 30)),
            f"cannot read the ConfigMap {name}",
        )
        return dict(config_map.data or {})

    def jobs_of_run(self, run_name: str) -> list[dict[str, Any]]:
        """Every RayJob with the run's label."""
        jobs = self._repeat(
            lambda: self._custom.list_namespaced_custom_object(
                **self._where, label_selector=f"wukong/run={run_label(run_name)}", _request_timeout=(5, 30)
            ),
            f"cannot list the RayJobs of run {run_name}",
        )
        return list(jobs["items"])

    def get_job(self, name: str) -> dict[str, Any] | None:
        """The RayJob, or None when there is none."""

        def ask() -> dict[str, Any] | None:
            try:
                job: dict[str, Any] = self._custom.get_namespaced_custom_object(
                    **self._where, name=name, _request_timeout=(5, 30)
                )
            except ApiException as error:
                if error.status == 404:
                    return None
                raise
            return job

        return self._repeat(ask, f"cannot read RayJob {name}")

    def create_job(self, body: Mapping[str, Any]) -> bool:
        """Create a RayJob; False when one of this name exists."""

        def ask() -> bool:
            try:
                self._custom.create_namespaced_custom_object(**self._where, body=body, _request_timeout=(5, 30))
            except ApiException as error:
                if error.status == 409:
                    return False
                raise
            return True

        return self._repeat(ask, f"cannot create RayJob {body['metadata']['name']}")

    def patch_job(self, name: str, body: Mapping[str, Any]) -> None:
        """Change a RayJob by a merge patch, in one attempt.

        Raises:
            Exception: one of ``API_ERRORS``: it was refused, or nothing answered.
        """
        self._custom.patch_namespaced_custom_object(**self._where, name=name, body=body, _request_timeout=(5, 10))

    def delete_job(self, name: str) -> None:
        """Delete a RayJob, and with it its Ray cluster. A failure is only logged, and a job that is gone is none."""
        try:
            self._custom.delete_namespaced_custom_object(
                **self._where, name=name, propagation_policy="Background", _request_timeout=(5, 10)
            )
        except ApiException as error:
            if error.status != 404:
                log.error("RayJob %s could not be deleted: %s", name, explain(error))
        except Exception as error:  # noqa: BLE001 - this process is being ended; the exit handler deletes the job
            log.error("RayJob %s could not be deleted: %s", name, error)

    def statuses(self, name: str) -> Iterator[dict[str, Any]]:
        """The ``status`` of a RayJob, now, after every change, and every few seconds until it runs; without end.

        The job is watched, or polled where watching is forbidden.
        Each round begins with a plain read. So whatever ends a watch (a dropped connection, an expired version, a
        restarted API server) delays a change by a moment at most, and loses none.

        Raises:
            RayJobError: the job was deleted, or the API server cannot be reached.
        """
        may_watch = True
        while True:
            job = self.get_job(name)
            if job is None:
                raise RayJobError(f"RayJob {self.namespace}/{name} was deleted while it ran", "Deleted")
            status = job.get("status") or {}
            yield status
            if not may_watch:
                time.sleep(self.timing.poll)
                continue
            began = time.monotonic()
            seconds = self.timing.watch if status.get("jobStatus") == "RUNNING" else self.timing.look
            may_watch = yield from self._watch(name, job["metadata"]["resourceVersion"], seconds)
            if time.monotonic() - began < self.timing.poll:
                time.sleep(self.timing.poll / 5)

    def _watch(self, name: str, version: str, seconds: int) -> Generator[dict[str, Any], None, bool]:
        """Statuses of one watch request of so many seconds; returns whether watching is allowed."""
        stream = watch.Watch().stream(
            self._custom.list_namespaced_custom_object,
            **self._where,
            field_selector=f"metadata.name={name}",
            resource_version=version,
            timeout_seconds=seconds,
            _request_timeout=(5, seconds + 10),
        )
        try:
            for event in stream:
                if event["type"] == "DELETED":
                    return True
                if event["type"] in ("ADDED", "MODIFIED"):
                    yield event["object"].get("status") or {}
        except ApiException as error:
            if error.status in (401, 403, 405):
                log.warning("RayJobs cannot be watched here (%s); asking every %g s", error.reason, self.timing.poll)
                return False
            log.debug("watch of %s ended: %s", name, error.reason)
        except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            log.debug("watch of %s was dropped: %s", name, error)
        return True

    def cluster_pods(self, status: Mapping[str, Any], labels: str = "") -> list[Any]:
        """Pods of the Ray cluster of a RayJob.

        Args:
            status: the RayJob's.
            labels: a label selector; empty for all pods.

        Returns:
            ``V1Pod`` objects; none where there is no cluster yet or the pods cannot be listed.
        """
        cluster = status.get("rayClusterName")
        if not cluster:
            return []
        try:
            return self.pods_of_cluster(cluster, labels)
        except API_ERRORS as error:
            log.debug("pods of %s cannot be listed: %s", cluster, error)
            return []

    def pods_of_cluster(self, cluster: str, labels: str = "") -> list[Any]:
        """Pods of the Ray cluster of this name, as ``cluster_pods``; raises an error of the API."""
        return self._list_pods(",".join(filter(None, [f"ray.io/cluster={cluster}", labels])))

    def workload(self, uid: str) -> dict[str, Any] | None:
        """Kueue's Workload of the RayJob with this uid, or None when there is none; raises an error of the API."""
        found = self._custom.list_namespaced_custom_object(
            *("kueue.x-k8s.io", _KUEUE_VERSION, self.namespace, "workloads"),
            label_selector=f"kueue.x-k8s.io/job-uid={uid}",
            _request_timeout=(5, 30),
        )["items"]
        return next(iter(found), None)

    def pending_workloads(self, queue: str) -> list[dict[str, Any]]:
        """The Workloads that wait in a LocalQueue, as Kueue orders them; raises an error of the API."""
        answer: dict[str, Any] = self._core.api_client.call_api(
            "/apis/visibility.kueue.x-k8s.io/{version}/namespaces/{namespace}/localqueues/{queue}/pendingworkloads",
            "GET",
            path_params={"version": _KUEUE_VERSION, "namespace": self.namespace, "queue": queue},
            header_params={"Accept": "application/json"},
            auth_settings=["BearerToken"],
            response_type="object",
            _return_http_data_only=True,
            _request_timeout=(5, 30),
        )
        return list(answer.get("items") or [])

    def nodes(self) -> list[dict[str, Any]] | None:
        """The nodes of the cluster; None where they cannot be listed."""
        try:
            found = self._core.list_node(_request_timeout=(5, 30)).items
        except API_ERRORS as error:
            log.debug("nodes cannot be listed: %s", error)
            return None
        return [self.as_sent(node) for node in found]

    def as_sent(self, made: Any) -> dict[str, Any]:
        """What the Kubernetes client made of an object, as the API sends it."""
        sent: dict[str, Any] = self._core.api_client.sanitize_for_serialization(made)
        return sent

    def submitter_pods(self, job: str) -> list[Any]:
        """Pods that submit a RayJob to its cluster and print the job's log, oldest first."""
        pods = self._list_pods(f"batch.kubernetes.io/job-name={job}")
        return sorted(pods, key=lambda pod: str(pod.metadata.creation_timestamp))

    def _list_pods(self, labels: str) -> list[Any]:
        return list(
            self._core.list_namespaced_pod(self.namespace, label_selector=labels, _request_timeout=(5, 30)).items
        )

    def read_log(self, pod: str, lines: int) -> list[str]:
        """The last lines of a pod's log."""
        text = self._core.read_namespaced_pod_log(pod, self.namespace, tail_lines=lines, _request_timeout=(5, 30))
        return str(text or "").splitlines()

    def follow_log(self, pod: str, since: str | None) -> Iterator[tuple[str, str]]:
        """A pod's log as (time, line) pairs, until the log or the connection ends.

        Args:
            pod: name of the pod.
            since: an RFC 3339 time; the log begins with the second it lies in. None for the whole log.
        """
        options = [("follow", "true"), ("timestamps", "true"), *([("sinceTime", since)] if since else [])]
        # The client's own method has only sinceSeconds, which is right only where two machines' clocks agree.
        response = self._core.api_client.call_api(
            "/api/v1/namespaces/{namespace}/pods/{name}/log",
            "GET",
            path_params={"namespace": self.namespace, "name": pod},
            query_params=options,
            header_params={"Accept": "*/*"},
            auth_settings=["BearerToken"],
            _preload_content=False,
            _return_http_data_only=True,
            _request_timeout=(5, 120),
        )
        try:
            buffer = b""
            for chunk in response.stream(None, decode_content=False):
                *lines, buffer = (buffer + chunk).split(b"\n")
                for line in lines:
                    moment, _, text = line.decode("utf-8", errors="replace").partition(" ")
                    yield moment, text
        finally:
            response.close()
            response.release_conn()

    def _repeat(self, ask: Callable[[], T], problem: str) -> T:
        """Call ``ask``, again while the API server is away or overloaded. What is raised begins with ``problem``."""
        attempts = Retrying(
            retry=retry_if_exception(_is_temporary),
            wait=wait_exponential(0.2, max=30.0),
            stop=stop_after_delay(self.timing.patience),
            before_sleep=lambda state: log.debug("%s yet: %s", problem, state.outcome and state.outcome.exception()),
        )
        try:
            return attempts(ask)
        except RetryError as error:
            last = error.last_attempt.exception()
            raise RayJobError(
                f"{problem}: the Kubernetes API has not answered for {self.timing.patience:.0f} s ({last})",
                "Unreachable",
            ) from last
        except ApiException as error:
            raise RayJobError(f"{problem}: {explain(error)}", str(error.reason)) from error


def _is_temporary(error: BaseException) -> bool:
    return error.status in _BUSY if isinstance(error, ApiException) else isinstance(error, API_ERRORS)


def explain(error: Any) -> str:
    """What an error of the API means, and how to mend it."""
    status = getattr(error, "status", None)
    said = _message(getattr(error, "body", None)) or str(getattr(error, "reason", "") or error)
    if status == 403:
        return f"{said}. Bind the Role ray-job-launcher to the service account of the components (k8s/base/access.yaml)"
    if status == 404:
        return f"{said}. Is KubeRay installed, and was `kubectl apply -f k8s/` run?"
    return said


def _message(body: Any) -> str:
    """The ``message`` of a Status object that the API answered with."""
    try:
        value = yaml.safe_load(body) if isinstance(body, (str, bytes)) else None
    except yaml.YAMLError:
        return str(body)[:500]
    return str(value.get("message", "")) if isinstance(value, dict) else ""
