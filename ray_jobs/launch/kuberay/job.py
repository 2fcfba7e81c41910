"""Run one stage as a RayJob to its end."""

import itertools
import logging
import os
import signal
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import Any

from infra.cluster_api import Cluster, ClusterError, Manifest
from ray_jobs.launch.kuberay import kept_images, pipeline_run, queue
from ray_jobs.launch.kuberay.client import HEAD, KubernetesApi, Timing, explain
from ray_jobs.launch.kuberay.errors import RayJobError
from ray_jobs.launch.kuberay.logs import JobLog, end_of_head_log
from ray_jobs.launch.kuberay.manifest import WORKERS, images_of, job_name, make_ray_job, named
from ray_jobs.launch.kuberay.pods import PodsHeld, images_run_by
from ray_jobs.launch.kuberay.progress import ShownProgress
from ray_jobs.launch.kuberay.room import Node
from ray_jobs.launch.kuberay.status import (
    NO_NODE,
    Verdict,
    describe,
    explain_failure,
    finds_no_node,
    is_left_by_kuberay,
    is_suspended,
    lost_head,
    no_head_answers,
    pod_problems,
    verdict,
    without_node,
)
from wukong import stages
from wukong.config.experiment import Experiment
from wukong.errors import StackError, WukongError
from wukong.runs import origin, run_costs, run_records
from wukong.runs.run_records import Record
from wukong.runtime.cancel import JobLeftError, end_on_signal
from wukong.stages import ray_job, run_paths
from wukong.stages.ray_job import Settings
from wukong.store import storage

_MAX_ATTEMPTS = 99
_POD = "KFP_POD_NAME"  # in a component's pod
_CONTAINER = "main"  # of a component's pod

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


def images_of_this_pod() -> frozenset[str]:
    """Return references of the image of this component's container; none outside a pod, or where it may not look."""
    name, file = os.environ.get(_POD), pipeline_run.NAMESPACE_FILE
    if not name or not file.exists():
        return frozenset()
    namespace = file.read_text(encoding="utf-8").strip()
    try:
        pod = Cluster().read("v1", "Pod", name, namespace)
    except StackError as error:
        log.warning("the image of this pod is not written down: %s", error)
        return frozenset()
    return images_run_by([pod], _CONTAINER)


def was_terminated() -> bool:
    """Whether the pipeline run of this pod was terminated; False outside one.

    KFP gives an exit handler FAILED for a run that failed and for one that was terminated.
    """
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
        settings: of the cluster, as they were when the RayJob was looked for.
        of_size: makes the RayJob's manifest with so many workers; with None as many as the experiment says.
    """

    api: KubernetesApi
    stage: str
    experiment: Experiment
    run_name: str
    record_name: str
    run_of_pod: pipeline_run.PipelineRun | None = None
    name: str = ""
    settings: Settings = field(default_factory=Settings)
    of_size: Callable[[int | None], dict[str, Any]] | None = None

    def run(self, entrypoint: Sequence[str], environment: Mapping[str, str]) -> None:
        """Run the job to its end, on further RayJobs after the loss of infrastructure."""
        for repeated in itertools.count(1):
            self.find_or_create(entrypoint, environment)
            with ShownProgress(self.api, self.name) as shown, JobLog(self.api, self.name, shown.read) as job_log:
                with self.pods_held() as held:
                    ended, status = self.wait(held, shown)
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
            is_lost, retries = (
                ended.is_infrastructure and (record is None or record.infrastructure),
                self.settings.retries,
            )
            if not is_lost or repeated > retries:
                raise error
            seconds = min(self.api.timing.backoff * 2 ** (repeated - 1), self.api.timing.max_backoff)
            log.warning("%s\nanother RayJob is made in %.0f s (%d of at most %d)", error, seconds, repeated, retries)
            # With its Ray cluster: a driver that the head has only lost sight of must not write beside the next one.
            self.api.delete_job(self.name)
            self.name = ""
            time.sleep(seconds)

    def find_or_create(self, entrypoint: Sequence[str], environment: Mapping[str, str]) -> None:
        """Find the first RayJob that has not failed, or create one."""
        body = self._make(entrypoint, environment)
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
                return
            free = next((name for name in names if name not in existing), None)
            if free is None:
                break
            self._forget_record()
            self.name = free
            if self.api.create_job(named(body, free, self.api.namespace, own_key=self.settings.own_keys)):
                log.info("%s created RayJob %s/%s", self.stage, self.api.namespace, free)
                return
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
        where = (self.experiment, self.run_name, self.record_name, name)
        write, write_images = partial(run_costs.write, *where), partial(origin.store_images, *where)
        return PodsHeld(self.api, self.name, self.settings.gpu.resource, write, write_images)

    def wait(self, held: PodsHeld, shown: ShownProgress) -> tuple[Verdict, dict[str, Any]]:
        """Wait until the job has ended; returns how, and its last status. The log says when its state changes.

        A job whose pods no node can take has ended too, after a while in which a node may come. One that is suspended
        has not ended, however long that lasts.
        """
        timing, hopeless_since, suspended_since = self.api.timing, None, None
        last, said = "", time.monotonic() + timing.look - timing.heartbeat
        for status in self.api.statuses(self.name):
            held.follow(status)
            shown.follow(status)
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
            if is_suspended(status):
                if suspended_since is None:
                    suspended_since, hopeless_since = datetime.now(UTC), None
                    self._forget_record()
                if now - said >= timing.heartbeat:
                    self._wait_for_quota(suspended_since)
                    said = now
                continue
            suspended_since = None
            if runs and now - said < timing.heartbeat:
                continue
            pods = self.api.cluster_pods(status)
            never, waiting = self._without_node(pods)
            hopeless_since = (hopeless_since or now) if never and not runs else None
            if hopeless_since is not None and now - hopeless_since >= self.settings.no_node_seconds:
                return Verdict(succeeded=False, reason=NO_NODE, message="; ".join(never)), status
            if now - said >= timing.heartbeat:
                for line in never:
                    log.warning("%s: %s", self.name, line)
                for line in (*waiting, *pod_problems(pods)):
                    log.info("%s waits: %s", self.name, line)
                said = now
        raise AssertionError("statuses end only with the job")

    def _wait_for_quota(self, suspended_since: datetime) -> None:
        """Say what the suspended job waits for; if that takes long, let a training ask for fewer workers."""
        job = self.api.get_job(self.name)
        if job is None:
            return  # as the next status will say
        waiting = queue.look(self.api, job, suspended_since)
        log.info("%s: %s", self.name, waiting.text)
        asked = int(job["metadata"].get("annotations", {}).get(WORKERS, 0))  # of a training
        seconds, of_size = self.settings.fewer_workers_seconds, self.of_size
        if not asked or waiting.since is None or seconds is None or of_size is None:
            return
        training = stages.training_of(self.experiment, self.stage)
        waited = (datetime.now(UTC) - waiting.since).total_seconds()
        workers = queue.workers_to_ask_for(training.workers, training.min_workers or training.workers, waited, seconds)
        if workers == asked:
            return
        smaller = named(of_size(workers), self.name, self.api.namespace, own_key=self.settings.own_keys)
        groups = smaller["spec"]["rayClusterSpec"]["workerGroupSpecs"]
        metadata = {"resourceVersion": job["metadata"]["resourceVersion"], "annotations": {WORKERS: str(workers)}}
        try:
            # Of the version that was read: it may have been admitted since, and what runs must not be changed.
            self.api.patch_job(
                self.name, {"metadata": metadata, "spec": {"rayClusterSpec": {"workerGroupSpecs": groups}}}
            )
        except ClusterError as error:
            log.warning("%s still asks for %d workers: %s", self.name, asked, explain(error))
        else:
            log.warning("%s, after %.0f s in the queue, asks for %d workers, not %d", self.name, waited, workers, asked)

    def _without_node(self, pods: Sequence[Manifest]) -> tuple[list[str], list[str]]:
        """See ``status.without_node``; nothing where all pods have a node, or nodes cannot be listed."""
        nodes = self.api.nodes() if any(finds_no_node(pod) for pod in pods) else None
        return without_node(pods, [Node.when_empty(node) for node in nodes]) if nodes is not None else ([], [])

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

    def _make(self, entrypoint: Sequence[str], environment: Mapping[str, str]) -> dict[str, Any]:
        data = self.api.read_config_map(ray_job.CONFIG_MAP)
        template, found = ray_job.parse(data, self.api.namespace)
        self.settings = kept_images.of_run(found, self.experiment, self.run_name)
        listed = self.api.nodes() if self.settings.gpu.gpus_per_pod == "node" else None
        nodes = [Node.when_empty(node) for node in listed or ()]

        def of_size(size: int | None) -> dict[str, Any]:
            given = (self.settings, self.experiment, self.run_name, self.stage, entrypoint, environment)
            return make_ray_job(template, *given, size, nodes)

        self.of_size = of_size
        return of_size(None)

    def _forget_record(self) -> None:
        """Delete the stage's record: what an earlier driver wrote must not be taken for the next one's."""
        storage.delete(run_paths.uri_of(self.experiment, self.run_name, f"{self.record_name}.json"))

    def _has_its_output(self) -> bool:
        record = run_records.read(self.experiment, self.run_name, self.record_name)
        return record is not None and bool(record.manifest) and storage.exists(record.manifest)
