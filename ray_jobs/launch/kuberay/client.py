"""Calls of the Kubernetes API: RayJobs, their pods, the pods' logs, and one ConfigMap.

A call that fails because the API server cannot be reached or is overloaded is repeated for ``Timing.patience`` seconds.
"""

import logging
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from tenacity import RetryError, Retrying, retry_if_exception, stop_after_delay, wait_exponential

from infra.cluster_api import Cluster, ClusterError, Manifest
from ray_jobs.launch.kuberay.errors import RayJobError
from ray_jobs.launch.kuberay.manifest import run_label
from wukong.errors import StackError
from wukong.runtime.language import message

HEAD = "ray.io/node-type=head"
"""Selects the head among the pods of a Ray cluster."""

_RAY_JOB = ("ray.io/v1", "RayJob")
_KUEUE_VERSION = "v1beta2"  # of both its groups, from Kueue 0.15 on
_BUSY = (None, 429, 500, 502, 503, 504)  # None: nothing has answered
_HURRY = (5.0, 10.0)

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


class KubernetesApi:
    """The Kubernetes API of RayJobs, with the credentials that are here.

    Args:
        namespace: the RayJobs', which ``WUKONG_CLUSTER`` names.
        timing: how long to wait.

    Raises:
        RayJobError: there are no credentials.
    """

    def __init__(self, namespace: str, timing: Timing) -> None:
        self.namespace, self.timing = namespace, timing
        try:
            self._cluster = Cluster()
        except StackError as error:
            raise RayJobError(f"WUKONG_CLUSTER names the namespace {namespace!r}, but {error}") from error

    def read_config_map(self, name: str) -> dict[str, str]:
        """The data of a ConfigMap."""
        config_map = self._repeat(
            lambda: self._cluster.read("v1", "ConfigMap", name, self.namespace),
            message(f"cannot read the ConfigMap {name}"),
        )
        return dict(config_map.get("data") or {})

    def jobs_of_run(self, run_name: str) -> list[Manifest]:
        """Every RayJob with the run's label."""
        return self._repeat(
            lambda: self._cluster.items(*_RAY_JOB, self.namespace, f"wukong/run={run_label(run_name)}"),
            message(f"cannot list the RayJobs of run {run_name}"),
        )

    def get_job(self, name: str) -> Manifest | None:
        """The RayJob, or None when there is none."""
        return self._repeat(
            lambda: self._cluster.get(*_RAY_JOB, name, self.namespace), message(f"cannot read RayJob {name}")
        )

    def create_job(self, body: Manifest) -> bool:
        """Create a RayJob; False when one of this name exists."""
        made = self._repeat(
            lambda: self._cluster.create(body), message(f"cannot create RayJob {body['metadata']['name']}")
        )
        return made is not None

    def patch_job(self, name: str, body: Manifest) -> None:
        """Change a RayJob by a merge patch, in one attempt.

        Raises:
            ClusterError: it was refused, or nothing answered.
        """
        self._cluster.patch(*_RAY_JOB, name, self.namespace, body, _HURRY)

    def delete_job(self, name: str) -> None:
        """Delete a RayJob, and with it its Ray cluster. A failure is only logged, and a job that is gone is none."""
        try:
            self._cluster.delete(*_RAY_JOB, name, self.namespace, _HURRY)
        except Exception as error:  # noqa: BLE001 - this process is being ended; the exit handler deletes the job
            log.error("RayJob %s could not be deleted: %s", name, explain(error))

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
        try:
            for kind, job in self._cluster.watch(*_RAY_JOB, name, self.namespace, seconds, version):
                if kind == "DELETED":
                    return True
                if kind in ("ADDED", "MODIFIED"):
                    yield job.get("status") or {}
        except (ClusterError, ValueError) as error:
            if getattr(error, "status", None) in (401, 403, 405):
                log.warning("RayJobs cannot be watched here (%s); asking every %g s", error, self.timing.poll)
                return False
            log.debug("watch of %s ended: %s", name, error)
        return True

    def cluster_pods(self, status: Mapping[str, Any], labels: str = "") -> list[Manifest]:
        """Pods of the Ray cluster of a RayJob.

        Args:
            status: the RayJob's.
            labels: a label selector; empty for all pods.

        Returns:
            None where there is no cluster yet or the pods cannot be listed.
        """
        cluster = status.get("rayClusterName")
        if not cluster:
            return []
        try:
            return self.pods_of_cluster(cluster, labels)
        except ClusterError as error:
            log.debug("pods of %s cannot be listed: %s", cluster, error)
            return []

    def pods_of_cluster(self, cluster: str, labels: str = "") -> list[Manifest]:
        """Pods of the Ray cluster of this name, as ``cluster_pods``; raises an error of the API."""
        selector = ",".join(filter(None, [f"ray.io/cluster={cluster}", labels]))
        return self._cluster.items("v1", "Pod", self.namespace, selector)

    def workload(self, uid: str) -> Manifest | None:
        """Kueue's Workload of the RayJob with this uid, or None when there is none; raises an error of the API."""
        group = f"kueue.x-k8s.io/{_KUEUE_VERSION}"
        return next(iter(self._cluster.items(group, "Workload", self.namespace, f"kueue.x-k8s.io/job-uid={uid}")), None)

    def pending_workloads(self, queue: str) -> list[Manifest]:
        """The Workloads that wait in a LocalQueue, as Kueue orders them; raises an error of the API."""
        group, name = f"visibility.kueue.x-k8s.io/{_KUEUE_VERSION}", f"{queue}/pendingworkloads"
        return list(self._cluster.read(group, "LocalQueue", name, self.namespace).get("items") or [])

    def nodes(self) -> list[Manifest] | None:
        """The nodes of the cluster; None where they cannot be listed."""
        try:
            return self._cluster.items("v1", "Node")
        except ClusterError as error:
            log.debug("nodes cannot be listed: %s", error)
            return None

    def submitter_pods(self, job: str) -> list[Manifest]:
        """Pods that submit a RayJob to its cluster and print the job's log, oldest first."""
        return self._cluster.items("v1", "Pod", self.namespace, f"batch.kubernetes.io/job-name={job}")

    def read_log(self, pod: str, lines: int) -> list[str]:
        """The last lines of a pod's log."""
        return [*self._cluster.log(pod, self.namespace, tailLines=str(lines))]

    def follow_log(self, pod: str, since: str | None) -> Iterator[tuple[str, str]]:
        """A pod's log as (time, line) pairs, until the log or the connection ends.

        Args:
            pod: name of the pod.
            since: an RFC 3339 time; the log begins with the second it lies in. None for the whole log.
        """
        options = {"follow": "true", "timestamps": "true"} | ({"sinceTime": since} if since else {})
        for line in self._cluster.log(pod, self.namespace, **options):
            moment, _, text = line.partition(" ")
            yield moment, text

    def _repeat(self, ask: Callable[[], T], problem: str) -> T:
        """Call ``ask``, again while the API server is away or overloaded. What is raised begins with ``problem``."""
        attempts = Retrying(
            retry=retry_if_exception(lambda error: isinstance(error, ClusterError) and error.status in _BUSY),
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
        except ClusterError as error:
            raise RayJobError(f"{problem}: {explain(error)}", error.reason) from error


def explain(error: Exception) -> str:
    """What an error of the API means, and how to mend it."""
    status, said = getattr(error, "status", None), str(getattr(error, "said", error))
    if status == 403:
        return message(
            f"{said}. Bind the Role ray-job-launcher to the service account of the components (k8s/base/access.yaml)"
        )
    if status == 404:
        return message(f"{said}. Is KubeRay installed, and was `kubectl apply -f k8s/` run?")
    return said
