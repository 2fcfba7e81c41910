"""Run one stage as a RayJob to its end."""

import itertools
import logging
import signal
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from ray_jobs.launch.kuberay import pipeline_run, settings
from ray_jobs.launch.kuberay.client import HEAD, KubernetesApi, Timing, load_credentials
from ray_jobs.launch.kuberay.errors import RayJobError
from ray_jobs.launch.kuberay.logs import JobLog, end_of_head_log
from ray_jobs.launch.kuberay.manifest import images_of, job_name, make_ray_job, named
from ray_jobs.launch.kuberay.pods import PodsHeld
from ray_jobs.launch.kuberay.progress import ShownProgress
from ray_jobs.launch.kuberay.room import Node
from ray_jobs.launch.kuberay.status import (
    NO_NODE,
    Verdict,
    describe,
    explain_failure,
    finds_no_node,
    is_left_by_kuberay,
    lost_head,
    no_head_answers,
    pod_problems,
    verdict,
    without_node,
)
from wukong.config.experiment import Experiment
from wukong.errors import WukongError
from wukong.runs import run_costs, run_records
from wukong.runs.run_records import Record
from wukong.runtime.cancel import JobLeftError, end_on_signal
from wukong.stages import run_paths
from wukong.store import storage

_MAX_ATTEMPTS = 99

log = logging.getLogger(__name__)


def run_job(
    stage: str,
    experiment: Experiment,
    run_name: str,
    arguments: Sequence[str],
    environment: Mapping[str, str],
    namespace: str,
    timing: Timing | None = None,
    *,
    record_name: str = "",
) -> None:
    """Run one stage as a RayJob to its end; its log goes to standard output.

    A component that was restarted waits for the RayJob that the component before it created: the run's first RayJob of
    this stage that does the same work and has not failed is used, and one is created where there is none. When a head,
    a submitter or a node was lost, another RayJob is made, as often as the cluster's settings say; a failure of the
    stage's own work is not repeated.

    When this process gets SIGTERM or an interrupt, the job is deleted, unless this is a pod of a pipeline run that goes
    on (``pipeline_run``): then the next attempt of the component takes it over. No pod owns a RayJob, since Kubernetes
    deletes what a deleted pod owns. What a run has left, its exit handler deletes.

    Args:
        stage: name of the stage.
        experiment: the experiment that the stage belongs to.
        run_name: name of the pipeline run.
        arguments: what follows ``python -m ray_jobs``.
        environment: variables of the job's containers. Everyone who may read the RayJob sees them: no credentials.
        namespace: where the RayJob is made.
        timing: how long to wait.
        record_name: name of the record that the job writes; empty for the stage's.

    Raises:
        ConfigError: the namespace's ConfigMap ``ray-job`` is incomplete or not valid.
        RayJobError: the job did not succeed; the message has KubeRay's reason, the pods' problems and the log's end.
        JobLeftError: this process is being ended, and the job goes on.
    """
    api = KubernetesApi(namespace, timing or Timing())
    run = pipeline_run.of_this_pod()
    job = _StageJob(api, stage, experiment, run_name, record_name or stage, run)
    over = threading.Event()
    with end_on_signal(job.cancel):
        if run is not None:
            run.end_when_terminated(over)
        try:
            job.run(["python", "-m", "ray_jobs", *arguments], environment)
        finally:
            over.set()


def end_run(experiment: Experiment, run_name: str, namespace: str) -> list[str]:
    """Delete the RayJobs of a run that have not ended, and return their names.

    A pipeline's exit handler calls it: a component that was killed could not delete its job, and one that was ended may
    have left it to a next attempt that never came. RayJobs that have ended go too, where no rule (``manifest``) deletes
    all of them.
    """
    api = KubernetesApi(namespace, Timing(patience=60))
    ended = []
    for job in api.jobs_of_run(run_name):
        if job["metadata"].get("annotations", {}).get("wukong/experiment") != experiment.name:
            continue
        name, status = job["metadata"]["name"], job.get("status", {})
        if verdict(status) is None:
            ended.append(name)
        if is_left_by_kuberay(status) or "deletionStrategy" not in job["spec"]:
            api.delete_job(name)
    return ended


def was_terminated(namespace: str) -> bool:
    """Whether the pipeline run of this pod was terminated; False outside one.

    KFP gives an exit handler FAILED for a run that failed and for one that was terminated.

    Args:
        namespace: the one that ``WUKONG_CLUSTER`` names.
    """
    load_credentials(namespace)
    pipeline = pipeline_run.of_this_pod()
    return pipeline is not None and pipeline.was_terminated()


@dataclass
class _StageJob:
    """The RayJob of one stage of one run.

    Attributes:
        api: the Kubernetes API.
        stage: name of the stage.
        experiment: the experiment that the stage belongs to.
        run_name: name of the pipeline run.
        record_name: name of the record that the job writes.
        run_of_pod: the pipeline run that this pod belongs to, if it is a pod of one.
        name: the RayJob's; set just before the RayJob is created, so that a cancelled creation is cleaned up too.
        no_node_seconds: how long its pods may wait for which there is no node; of the cluster's settings.
        gpu: name of the resource that counts as a GPU; likewise.
        own_key: whether its pods have an S3 key of their own; likewise.
    """

    api: KubernetesApi
    stage: str
    experiment: Experiment
    run_name: str
    record_name: str
    run_of_pod: pipeline_run.PipelineRun | None = None
    name: str = ""
    no_node_seconds: float = 0.0
    gpu: str = ""
    own_key: bool = False

    def run(self, entrypoint: Sequence[str], environment: Mapping[str, str]) -> None:
        """Run the job to its end, on further RayJobs after the loss of infrastructure."""
        for repeated in itertools.count(1):
            retries = self.find_or_create(entrypoint, environment)
            with ShownProgress(self.api, self.name) as shown, JobLog(self.api, self.name, shown.read) as job_log:
                with self.pods_held() as held:
                    ended, status = self.wait(held)
                job_log.drain()
            record = run_records.read(self.experiment, self.run_name, self.record_name)
            # The driver may have done its work before the head or the submitter was lost.
            succeeded = ended.succeeded or (
                ended.is_infrastructure and record is not None and record.state == "succeeded"
            )
            shown.end(succeeded=succeeded)
            if ended.succeeded:
                return
            where = f"{self.api.namespace}/{self.name}"
            lines = list(job_log.last_lines) or end_of_head_log(self.api, status)
            problems = pod_problems(self.api.cluster_pods(status))
            error = RayJobError(explain_failure(where, ended, problems, lines), ended.reason)
            if is_left_by_kuberay(status):
                self.api.delete_job(self.name)
            if succeeded:
                return
            is_lost = ended.is_infrastructure and (record is None or record.infrastructure)
            if not is_lost or repeated > retries:
                raise error
            seconds = min(self.api.timing.backoff * 2 ** (repeated - 1), self.api.timing.max_backoff)
            log.warning("%s\nanother RayJob is made in %.0f s (%d of at most %d)", error, seconds, repeated, retries)
            # With its Ray cluster: a driver that the head has only lost sight of must not write beside the next one.
            self.api.delete_job(self.name)
            self.name = ""
            time.sleep(seconds)

    def find_or_create(self, entrypoint: Sequence[str], environment: Mapping[str, str]) -> int:
        """Find the first RayJob that has not failed, or create one.

        Returns:
            How often a RayJob may be made again after the loss of infrastructure.
        """
        body, retries = self._make(entrypoint, environment)
        work = [*entrypoint, *images_of(body)]
        names = [
            job_name(self.experiment, self.run_name, self.record_name, attempt, work)
            for attempt in range(1, _MAX_ATTEMPTS + 1)
        ]
        for _ in names:
            # All are looked at first: an earlier one may have been deleted since a later one was made.
            existing = {job["metadata"]["name"]: job for job in self.api.jobs_of_run(self.run_name)}
            self.name = next((name for name in names if name in existing and self._goes_on(name, existing[name])), "")
            if self.name:
                log.info("%s goes on with RayJob %s/%s", self.stage, self.api.namespace, self.name)
                return retries
            free = next((name for name in names if name not in existing), None)
            if free is None:
                break
            # An earlier attempt's record must not be taken for this one's.
            storage.delete(run_paths.uri_of(self.experiment, self.run_name, f"{self.record_name}.json"))
            self.name = free
            if self.api.create_job(named(body, free, self.api.namespace, own_key=self.own_key)):
                log.info("%s created RayJob %s/%s", self.stage, self.api.namespace, free)
                return retries
            # Another process was faster, or an earlier request arrived after all, whose answer was lost.
        raise RayJobError(
            f"{self.stage} of run {self.run_name} failed {_MAX_ATTEMPTS} times; give the run another name"
        )

    def _goes_on(self, name: str, job: Mapping[str, Any]) -> bool:
        """Whether a RayJob of an earlier process is this stage's: it does the work, or has done it."""
        status = job.get("status", {})
        ended = verdict(status)
        if job["metadata"].get("deletionTimestamp"):
            log.info("RayJob %s is being deleted; a new one is made", name)
        elif ended is not None and not ended.succeeded:
            log.info("RayJob %s failed before (%s)", name, ended.reason)
            if is_left_by_kuberay(status):
                self.api.delete_job(name)
        elif ended is not None and not self._has_its_output():
            log.info("RayJob %s succeeded before, and its output is gone; a new one is made", name)
        else:
            return True
        return False

    def pods_held(self) -> PodsHeld:
        """What writes down the pods that the RayJob holds."""
        name = f"pods-{uuid.uuid4().hex[:12]}"  # of this process and RayJob alone
        write = partial(run_costs.write, self.experiment, self.run_name, self.record_name, name)
        return PodsHeld(self.api, self.name, self.gpu, write)

    def wait(self, held: PodsHeld) -> tuple[Verdict, dict[str, Any]]:
        """Wait until the job has ended; returns how, and its last status. The log says when its state changes.

        A job whose pods no node can take has ended too, after a while in which a node may come.
        """
        timing, hopeless_since = self.api.timing, None
        last, said = "", time.monotonic() + timing.look - timing.heartbeat
        for status in self.api.statuses(self.name):
            held.follow(status)
            ended = verdict(status)
            if ended is None and no_head_answers(status):
                ended = lost_head(self.api.cluster_pods(status, HEAD))
            if ended is not None:
                return ended, status
            state, runs = describe(status), status.get("jobStatus") == "RUNNING"
            if state != last:
                log.info("%s: %s", self.name, state)
                last = state
            now = time.monotonic()
            if runs and now - said < timing.heartbeat:
                continue
            pods = self.api.cluster_pods(status)
            never, waiting = self._without_node(pods)
            hopeless_since = (hopeless_since or now) if never and not runs else None
            if hopeless_since is not None and now - hopeless_since >= self.no_node_seconds:
                return Verdict(succeeded=False, reason=NO_NODE, message="; ".join(never)), status
            if now - said >= timing.heartbeat:
                for line in never:
                    log.warning("%s: %s", self.name, line)
                for line in (*waiting, *pod_problems(pods)):
                    log.info("%s waits: %s", self.name, line)
                said = now
        raise AssertionError("statuses end only with the job")

    def _without_node(self, pods: Sequence[Any]) -> tuple[list[str], list[str]]:
        """See ``status.without_node``; nothing where all pods have a node, or nodes cannot be listed."""
        sent = [self.api.as_sent(pod) for pod in pods]
        nodes = self.api.nodes() if any(finds_no_node(pod) for pod in sent) else None
        return without_node(sent, [Node.when_empty(node) for node in nodes]) if nodes is not None else ([], [])

    def cancel(self) -> None:
        """Delete the RayJob, if this process has created or found one and the pipeline run does not go on.

        Raises:
            JobLeftError: the run goes on, and the next attempt of the component takes the job over.
        """
        if not self.name:
            return
        if self.run_of_pod is not None and self.run_of_pod.goes_on():
            log.warning("this pod is being ended and its run goes on: RayJob %s is left to the next attempt", self.name)
            raise JobLeftError(128 + signal.SIGTERM)
        log.warning("cancelled: deleting RayJob %s", self.name)
        self.api.delete_job(self.name)
        if self.run_of_pod is not None and self.run_of_pod.was_terminated():
            self.record_termination()

    def record_termination(self) -> None:
        """Record that the run was terminated, as its exit handler does, whose pod Argo may end like this one."""
        try:
            record = Record(stage="run", state="failed", error="terminated")
            run_records.write(self.experiment, self.run_name, record)
        except WukongError as error:
            log.error("that the run was terminated is not recorded: %s", error)

    def _make(self, entrypoint: Sequence[str], environment: Mapping[str, str]) -> tuple[dict[str, Any], int]:
        data = self.api.read_config_map(settings.CONFIG_MAP)
        template, allowed = settings.parse(data, self.api.namespace)
        body = make_ray_job(template, allowed, self.experiment, self.run_name, self.stage, entrypoint, environment)
        self.no_node_seconds, self.gpu = allowed.no_node_seconds, allowed.gpu.resource
        self.own_key = allowed.own_keys
        return body, allowed.retries

    def _has_its_output(self) -> bool:
        record = run_records.read(self.experiment, self.run_name, self.record_name)
        return record is not None and bool(record.manifest) and storage.exists(record.manifest)
