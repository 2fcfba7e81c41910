"""Run one stage as a RayJob to its end."""

import logging
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray_jobs.launch.kuberay import settings
from ray_jobs.launch.kuberay.client import KubernetesApi, Timing
from ray_jobs.launch.kuberay.errors import RayJobError
from ray_jobs.launch.kuberay.logs import JobLog, end_of_head_log
from ray_jobs.launch.kuberay.manifest import images_of, job_name, make_ray_job
from ray_jobs.launch.kuberay.status import Verdict, describe, explain_failure, pod_problems, verdict
from wukong import run_records, storage
from wukong.cancel import end_on_signal
from wukong.config import Experiment

_NAMESPACE_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
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
) -> None:
    """Run one stage as a RayJob to its end; its log goes to standard output.

    A component that was restarted waits for the RayJob that the component before it created: the run's first RayJob of
    this stage that does the same work and has not failed is used, and one is created where there is none. When this
    process gets SIGTERM or an interrupt, the job is deleted.

    Args:
        stage: name of the stage.
        experiment: the experiment that the stage belongs to.
        run_name: name of the pipeline run.
        arguments: of ``python -m ray_jobs``.
        environment: variables of the job's containers. Everyone who may read the RayJob sees them: no credentials.
        namespace: where the RayJob is made.
        timing: how long to wait.

    Raises:
        ConfigError: the namespace's ConfigMap ``ray-job`` is incomplete or not valid.
        RayJobError: the job did not succeed; the message has KubeRay's reason, the pods' problems and the log's end.
    """
    api = KubernetesApi(namespace, timing or Timing())
    job = _StageJob(api, stage, experiment, run_name)
    with end_on_signal(job.cancel):
        created = job.find_or_create(["python", "-m", "ray_jobs", *arguments], environment)
        log.info("%s %s RayJob %s/%s", stage, "created" if created else "goes on with", namespace, job.name)
        with JobLog(api, job.name) as job_log:
            ended, status = job.wait()
            job_log.drain()
    if not ended.succeeded:
        lines = list(job_log.last_lines) or end_of_head_log(api, status)
        problems = pod_problems(api.cluster_pods(status))
        raise RayJobError(explain_failure(f"{namespace}/{job.name}", ended, problems, lines), ended.reason)


def end_run(experiment: Experiment, run_name: str, namespace: str) -> list[str]:
    """Delete the RayJobs of a run that have not ended, and return their names.

    A pipeline's exit handler calls it: a component that was killed could not delete its job.
    """
    api = KubernetesApi(namespace, Timing(patience=60))
    ended = []
    for job in api.jobs_of_run(run_name):
        same = job["metadata"].get("annotations", {}).get("wukong/experiment") == experiment.name
        if same and verdict(job.get("status", {})) is None:
            api.delete_job(job["metadata"]["name"])
            ended.append(job["metadata"]["name"])
    return ended


@dataclass
class _StageJob:
    """The RayJob of one stage of one run.

    Attributes:
        api: the Kubernetes API.
        stage: name of the stage.
        experiment: the experiment that the stage belongs to.
        run_name: name of the pipeline run.
        name: of the RayJob; set just before the RayJob is created, so that a cancelled creation is cleaned up too.
    """

    api: KubernetesApi
    stage: str
    experiment: Experiment
    run_name: str
    name: str = ""

    def find_or_create(self, entrypoint: Sequence[str], environment: Mapping[str, str]) -> bool:
        """Find the first RayJob that has not failed, or create one; returns whether it is new."""
        owner = _this_pod(self.api.namespace)
        body = self._make(entrypoint, environment, owner)
        work = [*entrypoint, *images_of(body)]
        for attempt in range(1, _MAX_ATTEMPTS + 1):
            name = job_name(self.experiment, self.run_name, self.stage, attempt, work)
            existing = self.api.get_job(name)
            if existing is None:
                body["metadata"] |= {"name": name, "namespace": self.api.namespace}
                # An earlier attempt's record must not be taken for this one's.
                storage.delete(run_records.uri_of(self.experiment, self.run_name, f"{self.stage}.json"))
                self.name = name
                if self.api.create_job(body):
                    return True
                # Another process was faster, or an earlier request arrived after all, whose answer was lost.
                existing = self.api.get_job(name)
                if existing is None:
                    continue
            ended = verdict(existing.get("status", {}))
            if existing.get("metadata", {}).get("deletionTimestamp"):
                log.info("RayJob %s is being deleted; a new one is made", name)
            elif ended is None or ended.succeeded:
                self.name = name
                self._take_over(existing, owner)
                return False
            else:
                log.info("RayJob %s failed before (%s)", name, ended.reason)
        raise RayJobError(
            f"{self.stage} of run {self.run_name} failed {_MAX_ATTEMPTS} times; give the run another name"
        )

    def wait(self) -> tuple[Verdict, dict[str, Any]]:
        """Wait until the job has ended; returns how, and its last status. The log says when its state changes."""
        last, logged = "", time.monotonic()
        for status in self.api.statuses(self.name):
            ended = verdict(status)
            if ended is not None:
                return ended, status
            state = describe(status)
            if state != last:
                log.info("%s: %s", self.name, state)
                last, logged = state, time.monotonic()
            elif time.monotonic() - logged > self.api.timing.heartbeat:
                logged = time.monotonic()
                for line in pod_problems(self.api.cluster_pods(status)):
                    log.info("%s waits: %s", self.name, line)
        raise AssertionError("statuses end only with the job")

    def cancel(self) -> None:
        """Delete the RayJob, if this process has created or found one."""
        if self.name:
            log.warning("cancelled: deleting RayJob %s", self.name)
            self.api.delete_job(self.name)

    def _make(
        self, entrypoint: Sequence[str], environment: Mapping[str, str], owner: Mapping[str, Any] | None
    ) -> dict[str, Any]:
        data = self.api.read_config_map(settings.CONFIG_MAP)
        template, allowed = settings.parse(data, self.api.namespace)
        body = make_ray_job(template, allowed, self.experiment, self.run_name, self.stage, entrypoint, environment)
        if owner:
            body["metadata"]["ownerReferences"] = [owner]
        return body

    def _take_over(self, existing: Mapping[str, Any], owner: Mapping[str, Any] | None) -> None:
        """Make this pod the owner of a job that another pod created.

        Kubernetes deletes an object with its owner: the job must end with this pod, not with the other one.
        """
        owners = existing.get("metadata", {}).get("ownerReferences", [])
        if owner and all(other.get("uid") != owner["uid"] for other in owners):
            self.api.set_owner(existing, owner)


def _this_pod(namespace: str) -> dict[str, Any] | None:
    """This pod as an owner reference; None outside a pod or in another namespace, where Kubernetes allows no owner."""
    name, uid = os.environ.get("KFP_POD_NAME"), os.environ.get("KFP_POD_UID")
    if not name or not uid or not _NAMESPACE_FILE.exists():
        return None
    if _NAMESPACE_FILE.read_text(encoding="utf-8").strip() != namespace:
        return None
    return {"apiVersion": "v1", "kind": "Pod", "name": name, "uid": uid, "blockOwnerDeletion": False}
