"""Run a stage as a RayJob of the KubeRay operator, and wait for it.

Where: the namespace that ``WUKONG_CLUSTER`` names. How: by the ConfigMap ``ray-job`` of that namespace, whose
``template.yaml`` is a RayJob manifest and whose ``settings.yaml`` says what each stage may use. Both belong to the
cluster's operator, not to an experiment: the same experiment gives the same data on any cluster.
"""

import contextlib
import hashlib
import logging
import os
import re
import shlex
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import Field, ValidationError

from ray_jobs.launch.cancel import cancelled_with_us
from wukong import run_records, storage
from wukong.config import Experiment, Positive, Strict
from wukong.errors import ConfigError, WukongError

MAX_NAME = 47
"""Characters of a RayJob's name: KubeRay appends to it, and the result must fit a label."""

CONFIG_MAP = "ray-job"
_GROUP, _VERSION, _PLURAL = "ray.io", "v1", "rayjobs"
_NAMESPACE_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
_TAIL = 40  # lines of the job's log in an error
_MAX_ATTEMPTS = 99
# What a job is told of the run it belongs to. Credentials come from the namespace's own Secrets, by the template.
_PASSED_ON = ("MLFLOW_RUN_ID", "WUKONG_CONNECT_TO")

log = logging.getLogger(__name__)
T = TypeVar("T")


class RayJobError(WukongError):
    """A RayJob could not be made or did not succeed.

    Attributes:
        reason: KubeRay's reason (``AppFailed``, ``DeadlineExceeded``, ...), or ours for what KubeRay has no word for.
    """

    def __init__(self, message: str, reason: str = "") -> None:
        super().__init__(message)
        self.reason = reason


class StageSettings(Strict):
    """What one stage's Ray workers get. A training stage's number of workers is the experiment's, not this one."""

    workers: Positive = 1
    cpus: Positive = 1
    memory: str = "2Gi"
    shared_memory: str = "1Gi"
    node_selector: dict[str, str] = Field(default_factory=dict)
    tolerations: tuple[dict[str, Any], ...] = ()
    active_deadline_seconds: Positive | None = None


class GpuSettings(Strict):
    """What pods with GPUs get beside them."""

    resource: str = "nvidia.com/gpu"
    image: str | None = None
    runtime_class: str | None = None
    node_selector: dict[str, str] = Field(default_factory=dict)
    tolerations: tuple[dict[str, Any], ...] = ({"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"},)


class Settings(Strict):
    """The operator's ``settings.yaml``.

    Attributes:
        image: of every Ray pod; None leaves the template's.
        queue: Kueue's LocalQueue; the job is then created suspended, and Kueue starts it.
        retries: how often KubeRay starts a failed job again, each time on a new Ray cluster.
        pre_running_deadline_seconds: for nodes, images and pods to be there.
        active_deadline_seconds: for the whole job; a stage may have its own.
        ttl_seconds: how long the Ray cluster stays after the job has ended, for looking at it.
        stages: by stage name.
        gpu: for pods with GPUs.
    """

    image: str | None = None
    queue: str | None = None
    retries: int = Field(0, ge=0)
    pre_running_deadline_seconds: Positive = 1800
    active_deadline_seconds: Positive = 86_400
    ttl_seconds: int = Field(60, ge=0)
    stages: dict[str, StageSettings] = Field(default_factory=dict)
    gpu: GpuSettings = GpuSettings()


@dataclass(frozen=True)
class Timing:
    """Seconds the launcher waits for things.

    Attributes:
        watch: for one watch request before it is made anew.
        poll: between two looks where watching is not possible.
        patience: for an API server that cannot be reached at all.
        heartbeat: between two lines that say what a job waits for.
        drain: for the rest of the log after the job has ended.
    """

    watch: int = 300
    poll: float = 5.0
    patience: float = 600.0
    heartbeat: float = 60.0
    drain: float = 10.0


@dataclass
class Verdict:
    """How a RayJob ended."""

    succeeded: bool
    reason: str = ""
    message: str = ""


def job_name(experiment: Experiment, run_name: str, stage: str, attempt: int) -> str:
    """Name of the RayJob of one attempt: a DNS label of at most 47 characters, equal for equal arguments.

    A digest of where the run's records lie keeps apart runs whose names differ only where the label was cut.
    """
    digest = hashlib.sha256(run_records.uri_of(experiment, run_name, stage).encode()).hexdigest()[:8]
    ending = f"-{stage}-{digest}-{attempt}"
    slug = re.sub(r"[^a-z0-9]+", "-", run_name.lower()).strip("-")
    if not slug[:1].isalpha():
        slug = f"run-{slug}"
    return slug[: MAX_NAME - len(ending)].rstrip("-") + ending


def verdict(status: Mapping[str, Any]) -> Verdict | None:
    """Read how a RayJob ended from its ``status``; None while it has not.

    A failed Ray job is not the end while KubeRay may start it again: that is only said by the deployment status.
    """
    deployment, job = status.get("jobDeploymentStatus", ""), status.get("jobStatus", "")
    if job == "SUCCEEDED":
        return Verdict(succeeded=True)
    if deployment in ("Failed", "ValidationFailed"):
        return Verdict(succeeded=False, reason=status.get("reason") or deployment, message=status.get("message", ""))
    if deployment == "Complete":
        return Verdict(succeeded=False, reason=status.get("reason") or job, message=status.get("message", ""))
    return None


def render(
    template: Mapping[str, Any],
    settings: Settings,
    experiment: Experiment,
    stage: str,
    entrypoint: Sequence[str],
    environment: Mapping[str, str],
) -> dict[str, Any]:
    """Fill in the operator's RayJob template for one stage; name, owner and namespace are the caller's.

    Args:
        template: a RayJob manifest with a head and one group of workers.
        settings: what the stage may use.
        experiment: says how many workers, with how many GPUs each, a training stage has.
        stage: the job's name in this package.
        entrypoint: the command that the head runs.
        environment: variables of every Ray container, beside the template's.

    Raises:
        ConfigError: the template is no RayJob with a head and one group of workers.
        RayJobError: an argument of the entrypoint would be changed by a shell.
    """
    unsafe = [argument for argument in entrypoint if shlex.quote(argument) != argument]
    if unsafe:
        raise RayJobError(
            f"{unsafe[0]!r} cannot be part of a RayJob's command: use letters, digits and ./:_- in names and URIs",
            "InvalidArgument",
        )
    body: dict[str, Any] = yaml.safe_load(yaml.safe_dump(dict(template)))
    try:
        cluster = body["spec"]["rayClusterSpec"]
        head = cluster["headGroupSpec"]
        (workers,) = cluster["workerGroupSpecs"]
        pods = [head["template"], workers["template"]]
        containers = [pod["spec"]["containers"][0] for pod in pods]
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"template.yaml of the ConfigMap {CONFIG_MAP} must be a RayJob with a head and one group of workers: "
            f"{error!r}"
        ) from error
    of_stage = settings.stages.get(stage, StageSettings())
    count, gpus = of_stage.workers, 0
    if stage in ("pretrain", "finetune"):
        training = experiment.pretrain if stage == "pretrain" else experiment.finetune
        count, gpus = training.workers, training.gpus_per_worker
    spec = body["spec"]
    spec["entrypoint"] = shlex.join(entrypoint)
    spec["backoffLimit"] = settings.retries
    spec["preRunningDeadlineSeconds"] = settings.pre_running_deadline_seconds
    spec["activeDeadlineSeconds"] = of_stage.active_deadline_seconds or settings.active_deadline_seconds
    spec["shutdownAfterJobFinishes"] = True
    spec["ttlSecondsAfterFinished"] = settings.ttl_seconds
    workers |= {"replicas": count, "minReplicas": count, "maxReplicas": count}
    image = (settings.gpu.image if gpus else None) or settings.image
    submitter = spec.get("submitterPodTemplate")
    for pod in [*pods, *([submitter] if submitter else [])]:
        _labels(pod)["wukong/stage"] = stage
        if image:
            pod["spec"]["containers"][0]["image"] = image
    for container in containers:
        container.setdefault("env", []).extend({"name": name, "value": value} for name, value in environment.items())
    _size(workers["template"]["spec"], of_stage, settings.gpu, gpus)
    _labels(body)["wukong/stage"] = stage
    if settings.queue:
        _labels(body)["kueue.x-k8s.io/queue-name"] = settings.queue
        spec["suspend"] = True
    return body


def _labels(manifest: dict[str, Any]) -> dict[str, str]:
    labels: dict[str, str] = manifest.setdefault("metadata", {}).setdefault("labels", {})
    return labels


def _size(pod: dict[str, Any], stage: StageSettings, gpu: GpuSettings, gpus: int) -> None:
    """Give a worker's pod the stage's resources; requests equal limits, so that Ray is not evicted or throttled."""
    size = {"cpu": str(stage.cpus), "memory": stage.memory} | ({gpu.resource: str(gpus)} if gpus else {})
    pod["containers"][0]["resources"] = {"requests": dict(size), "limits": dict(size)}
    for volume in pod.get("volumes", []):
        if volume["name"] == "shared-memory":
            volume["emptyDir"] = {"medium": "Memory", "sizeLimit": stage.shared_memory}
    selector = {**pod.get("nodeSelector", {}), **stage.node_selector, **(gpu.node_selector if gpus else {})}
    tolerations = [*pod.get("tolerations", []), *stage.tolerations, *(gpu.tolerations if gpus else ())]
    if selector:
        pod["nodeSelector"] = selector
    if tolerations:
        pod["tolerations"] = [dict(toleration) for toleration in tolerations]
    if gpus and gpu.runtime_class:
        pod["runtimeClassName"] = gpu.runtime_class


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

    The first attempt that has not failed is found again rather than made twice, so a component that was restarted goes
    on waiting for the job its predecessor started. Being cancelled (SIGTERM, an interrupt) deletes the job.

    Args:
        stage: the job's name, a module of this package.
        experiment: what to do.
        run_name: the pipeline run this belongs to.
        arguments: of ``python -m ray_jobs``.
        environment: variables to look for those in that a job is told of.
        namespace: where the RayJob is made.
        timing: how long to wait for things.

    Raises:
        RayJobError: the job did not succeed; the message has KubeRay's reason, what its pods say and the log's end.
    """
    cluster = _Cluster(namespace, timing or Timing())

    def stop() -> None:
        if cluster.ours:
            log.warning("cancelled: deleting RayJob %s", cluster.ours)
            cluster.delete(cluster.ours)

    with cancelled_with_us(stop):
        name, created = cluster.get_or_create(stage, experiment, run_name, arguments, environment)
        log.info("%s %s RayJob %s/%s", stage, "created" if created else "goes on with", namespace, name)
        with _JobLog(cluster, name) as job_log:
            ended, status = cluster.wait(name)
            job_log.drain()
    if not ended.succeeded:
        lines = list(job_log.tail) or cluster.head_log(status)
        parts = [f"RayJob {namespace}/{name} failed: {ended.reason}" + (f": {ended.message}" if ended.message else "")]
        if said := cluster.pods_say(status):
            parts.append("Its pods say:\n" + "\n".join(f"  {line}" for line in said))
        if lines:
            parts.append("The end of its log:\n" + "\n".join(f"  {line}" for line in lines))
        raise RayJobError("\n".join(parts), ended.reason)


def end_run(experiment: Experiment, run_name: str, namespace: str) -> list[str]:
    """Delete the RayJobs of a run that have not ended; return their names.

    For a pipeline's exit handler: it catches what a component that was killed at once could not delete itself.
    """
    cluster = _Cluster(namespace, Timing(patience=60))
    ended = []
    for job in cluster.jobs_of(run_name):
        same = job["metadata"].get("annotations", {}).get("wukong/experiment") == experiment.name
        if same and verdict(job.get("status", {})) is None:
            cluster.delete(job["metadata"]["name"])
            ended.append(job["metadata"]["name"])
    return ended


class _Cluster:
    """What the launcher asks of the Kubernetes API.

    Attributes:
        ours: name of the RayJob this process answers for, from just before it is made.
    """

    def __init__(self, namespace: str, timing: Timing) -> None:
        from kubernetes import client, config

        self.namespace, self.timing, self.ours = namespace, timing, ""
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
        self._core, self._custom = client.CoreV1Api(), client.CustomObjectsApi()
        self._where = {"group": _GROUP, "version": _VERSION, "namespace": namespace, "plural": _PLURAL}

    def get_or_create(
        self,
        stage: str,
        experiment: Experiment,
        run_name: str,
        arguments: Sequence[str],
        environment: Mapping[str, str],
    ) -> tuple[str, bool]:
        """Find the run's job of this stage that has not failed, or make one; tell which, and whether it is new."""
        owner = self._owner()
        body: dict[str, Any] | None = None
        for attempt in range(1, _MAX_ATTEMPTS + 1):
            name = job_name(experiment, run_name, stage, attempt)
            existing = self.get(name)
            if existing is None:
                if body is None:
                    template, settings = self._operators_wishes()
                    told = {key: environment[key] for key in _PASSED_ON if key in environment}
                    entrypoint = ["python", "-m", "ray_jobs", *arguments]
                    body = render(template, settings, experiment, stage, entrypoint, told)
                    body["metadata"]["labels"] |= {"app.kubernetes.io/name": "wukong", "wukong/run": _label(run_name)}
                    body["metadata"]["annotations"] = {
                        **body["metadata"].get("annotations", {}),
                        "wukong/run": run_name,
                        "wukong/experiment": experiment.name,
                    }
                    if owner:
                        body["metadata"]["ownerReferences"] = [owner]
                body["metadata"] |= {"name": name, "namespace": self.namespace}
                storage.delete(run_records.uri_of(experiment, run_name, f"{stage}.json"))
                self.ours = name
                if self._create(body):
                    return name, True
                existing = self.get(name)
                if existing is None:
                    continue
            ended = verdict(existing.get("status", {}))
            if existing.get("metadata", {}).get("deletionTimestamp"):
                log.info("RayJob %s is being deleted; a new one is made", name)
            elif ended is None or ended.succeeded:
                self.ours = name
                self._take_over(existing, owner)
                return name, False
            else:
                log.info("RayJob %s failed before (%s)", name, ended.reason)
        raise RayJobError(f"{stage} of run {run_name} failed {_MAX_ATTEMPTS} times; give the run another name")

    def jobs_of(self, run_name: str) -> list[dict[str, Any]]:
        """Every RayJob of a run."""
        found = self._patiently(
            lambda: self._custom.list_namespaced_custom_object(
                **self._where, label_selector=f"wukong/run={_label(run_name)}", _request_timeout=(5, 30)
            ),
            f"list the RayJobs of run {run_name}",
        )
        return list(found["items"])

    def get(self, name: str) -> dict[str, Any] | None:
        """The RayJob, or None when there is none."""
        from kubernetes.client import ApiException

        def ask() -> dict[str, Any] | None:
            try:
                found: dict[str, Any] = self._custom.get_namespaced_custom_object(
                    **self._where, name=name, _request_timeout=(5, 30)
                )
            except ApiException as error:
                if error.status == 404:
                    return None
                raise
            return found

        return self._patiently(ask, f"read RayJob {name}")

    def delete(self, name: str) -> None:
        """Delete the RayJob, and with it its Ray cluster; a job that is gone already is fine."""
        from kubernetes.client import ApiException

        try:
            self._custom.delete_namespaced_custom_object(
                **self._where, name=name, propagation_policy="Background", _request_timeout=(5, 10)
            )
        except ApiException as error:
            if error.status != 404:
                log.error("RayJob %s could not be deleted: %s", name, _explained(error))
        except Exception as error:  # noqa: BLE001 - we are being ended; the job's owner reference is the second net
            log.error("RayJob %s could not be deleted: %s", name, error)

    def wait(self, name: str) -> tuple[Verdict, dict[str, Any]]:
        """Wait until the job has ended; its verdict and last status."""
        last, spoke = "", time.monotonic()
        for status in self._statuses(name):
            ended = verdict(status)
            if ended is not None:
                return ended, status
            now = status.get("jobDeploymentStatus") or "New"
            if job := status.get("jobStatus"):
                now += f", Ray job {job}"
            if now != last:
                log.info("%s: %s", name, now)
                last, spoke = now, time.monotonic()
            elif time.monotonic() - spoke > self.timing.heartbeat:
                spoke = time.monotonic()
                for line in self.pods_say(status):
                    log.info("%s waits: %s", name, line)
        raise AssertionError("statuses end only with the job")

    def _statuses(self, name: str) -> Iterator[dict[str, Any]]:
        """The job's status now and at every change: watched where possible, else polled.

        Each round begins with a plain read, so whatever ends a watch (a dropped connection, an expired version, a
        restarted API server) costs at most a moment, never a change.
        """
        may_watch = True
        while True:
            found = self.get(name)
            if found is None:
                raise RayJobError(f"RayJob {self.namespace}/{name} was deleted while it ran", "Deleted")
            yield found.get("status") or {}
            if not may_watch:
                time.sleep(self.timing.poll)
                continue
            began = time.monotonic()
            may_watch = yield from self._watch(name, found["metadata"]["resourceVersion"])
            if time.monotonic() - began < self.timing.poll:
                time.sleep(self.timing.poll / 5)

    def _watch(self, name: str, version: str) -> Generator[dict[str, Any], None, bool]:
        """Statuses of one watch request; returns whether watching is allowed here."""
        import urllib3
        from kubernetes import watch
        from kubernetes.client import ApiException

        stream = watch.Watch().stream(
            self._custom.list_namespaced_custom_object,
            **self._where,
            field_selector=f"metadata.name={name}",
            resource_version=version,
            timeout_seconds=self.timing.watch,
            _request_timeout=(5, self.timing.watch + 10),
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

    def submitter_pods(self, name: str) -> list[Any]:
        """Pods that submit the job and follow its log, oldest first."""
        found = self._core.list_namespaced_pod(
            self.namespace, label_selector=f"batch.kubernetes.io/job-name={name}", _request_timeout=(5, 30)
        ).items
        return sorted(found, key=lambda pod: str(pod.metadata.creation_timestamp))

    def follow(self, pod: str, since: str | None) -> Iterator[tuple[str, str]]:
        """A pod's log as (time, line) pairs, until it ends or the connection does."""
        options = [("follow", "true"), ("timestamps", "true"), *([("sinceTime", since)] if since else [])]
        # The generated method knows only sinceSeconds, which would depend on how two machines' clocks agree.
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

    def head_log(self, status: Mapping[str, Any]) -> list[str]:
        """The end of the Ray head's own log, for jobs that never came to write one."""
        lines: list[str] = []
        for pod in self._pods(status, "ray.io/node-type=head")[-1:]:
            with contextlib.suppress(*_api_errors()):
                text = self._core.read_namespaced_pod_log(
                    pod.metadata.name, self.namespace, tail_lines=_TAIL, _request_timeout=(5, 30)
                )
                lines += str(text or "").splitlines()
        return lines[-_TAIL:]

    def pods_say(self, status: Mapping[str, Any]) -> list[str]:
        """Why the job's pods do not run: not schedulable, image not found, killed for memory, and the like."""
        said = []
        for pod in self._pods(status):
            for condition in pod.status.conditions or []:
                if condition.type == "PodScheduled" and condition.status == "False":
                    said.append(f"{pod.metadata.name}: {condition.reason}: {condition.message}")
            for container in [*(pod.status.init_container_statuses or []), *(pod.status.container_statuses or [])]:
                state = container.state
                ended = state.terminated or (container.last_state and container.last_state.terminated)
                if state.waiting and state.waiting.reason not in ("PodInitializing", "ContainerCreating"):
                    message = f": {state.waiting.message}" if state.waiting.message else ""
                    said.append(f"{pod.metadata.name}/{container.name}: {state.waiting.reason}{message}")
                if ended and ended.exit_code:
                    said.append(
                        f"{pod.metadata.name}/{container.name}: {ended.reason}, exit status {ended.exit_code}"
                        + (" (give the stage more memory)" if ended.reason == "OOMKilled" else "")
                    )
        return said

    def _pods(self, status: Mapping[str, Any], selector: str = "") -> list[Any]:
        cluster = status.get("rayClusterName")
        if not cluster:
            return []
        labels = ",".join(filter(None, [f"ray.io/cluster={cluster}", selector]))
        try:
            return list(
                self._core.list_namespaced_pod(self.namespace, label_selector=labels, _request_timeout=(5, 30)).items
            )
        except _api_errors() as error:
            log.debug("pods of %s cannot be listed: %s", cluster, error)
            return []

    def _create(self, body: dict[str, Any]) -> bool:
        """Create the RayJob; False when another process was faster."""
        from kubernetes.client import ApiException

        def ask() -> bool:
            try:
                self._custom.create_namespaced_custom_object(**self._where, body=body, _request_timeout=(5, 30))
            except ApiException as error:
                if error.status == 409:
                    return False
                raise
            return True

        return self._patiently(ask, f"create RayJob {body['metadata']['name']}")

    def _take_over(self, existing: dict[str, Any], owner: dict[str, Any] | None) -> None:
        """Tie a job that another pod started to this one: it must not be collected with the other, but with us."""
        metadata = existing.get("metadata", {})
        if not owner or any(other.get("uid") == owner["uid"] for other in metadata.get("ownerReferences", [])):
            return
        patch = {"metadata": {"ownerReferences": [owner], "resourceVersion": metadata["resourceVersion"]}}
        try:
            self._custom.patch_namespaced_custom_object(
                **self._where, name=metadata["name"], body=patch, _request_timeout=(5, 30)
            )
        except _api_errors() as error:
            log.warning("RayJob %s keeps its old owner: %s", metadata["name"], _explained(error))

    def _owner(self) -> dict[str, Any] | None:
        """This pod as an owner reference, when this is a pod of the jobs' namespace (owners cannot be elsewhere)."""
        name, uid = os.environ.get("KFP_POD_NAME"), os.environ.get("KFP_POD_UID")
        if not name or not uid or not _NAMESPACE_FILE.exists():
            return None
        if _NAMESPACE_FILE.read_text(encoding="utf-8").strip() != self.namespace:
            return None
        return {"apiVersion": "v1", "kind": "Pod", "name": name, "uid": uid, "blockOwnerDeletion": False}

    def _operators_wishes(self) -> tuple[dict[str, Any], Settings]:
        """Read the operator's template and settings.

        Raises:
            ConfigError: one of them is not what it should be; the message says which.
        """
        found = self._patiently(
            lambda: self._core.read_namespaced_config_map(CONFIG_MAP, self.namespace, _request_timeout=(5, 30)),
            f"read the ConfigMap {CONFIG_MAP}",
        )
        data = found.data or {}
        where = f"of the ConfigMap {self.namespace}/{CONFIG_MAP}"
        if "template.yaml" not in data:
            raise ConfigError(f"there is no template.yaml {where}; `kubectl apply -f k8s/` brings it")
        try:
            template = yaml.safe_load(data["template.yaml"])
            settings = Settings.model_validate(yaml.safe_load(data.get("settings.yaml", "")) or {})
        except yaml.YAMLError as error:
            raise ConfigError(f"template.yaml or settings.yaml {where} is not valid YAML: {error}") from error
        except ValidationError as error:
            raise ConfigError(f"settings.yaml {where} is not valid: {error}") from error
        return template, settings

    def _patiently(self, ask: Callable[[], T], what: str) -> T:
        """Ask the API server, again while it cannot be reached or is overloaded."""
        import urllib3
        from kubernetes.client import ApiException

        since, pause = time.monotonic(), 0.2
        while True:
            try:
                return ask()
            except ApiException as error:
                if error.status not in (429, 500, 502, 503, 504):
                    raise RayJobError(f"cannot {what}: {_explained(error)}", str(error.reason)) from error
                problem: Exception = error
            except (urllib3.exceptions.HTTPError, OSError) as error:
                problem = error
            if time.monotonic() - since > self.timing.patience:
                raise RayJobError(
                    f"cannot {what}: the Kubernetes API has not answered for {self.timing.patience:.0f} s ({problem})",
                    "Unreachable",
                ) from problem
            log.debug("cannot %s yet: %s", what, problem)
            time.sleep(pause)
            pause = min(pause * 2, 30.0)


def _api_errors() -> tuple[type[Exception], ...]:
    import urllib3
    from kubernetes.client import ApiException

    return (ApiException, urllib3.exceptions.HTTPError, OSError)


def _explained(error: Any) -> str:
    """What an API error means for the operator."""
    status = getattr(error, "status", None)
    said = _message(getattr(error, "body", None)) or str(getattr(error, "reason", "") or error)
    if status == 403:
        return f"{said}. Bind the Role ray-job-launcher to the service account that runs components (k8s/access.yaml)"
    if status == 404:
        return f"{said}. Is KubeRay installed, and was `kubectl apply -f k8s/` run?"
    return said


def _message(body: Any) -> str:
    try:
        value = yaml.safe_load(body) if isinstance(body, (str, bytes)) else None
    except yaml.YAMLError:
        return str(body)[:500]
    return str(value.get("message", "")) if isinstance(value, dict) else ""


def _comparable(moment: str) -> str:
    """An RFC 3339 time (UTC) as a text that sorts like the time: with nine digits after the point."""
    whole, _, fraction = moment.rstrip("Z").partition(".")
    return f"{whole}.{fraction:0<9}"


def _label(text: str) -> str:
    """A text as a label's value: at most 63 characters, beginning and ending with a letter or digit."""
    return text[:63].rstrip("._-")


@dataclass
class _JobLog:
    """Follows the log of whichever pod submits the job, on a thread of its own, and keeps its end.

    Every line carries the kubelet's time stamp. After a dropped connection the log is asked for from the second of the
    last line on, and lines up to that line's time are left out: none is lost, none comes twice.
    """

    cluster: _Cluster
    name: str
    tail: deque[str] = field(default_factory=lambda: deque(maxlen=_TAIL))

    def __post_init__(self) -> None:
        self._ended = threading.Event()
        self._left = threading.Event()
        self._thread = threading.Thread(target=self._follow_all, name=f"log of {self.name}", daemon=True)

    def __enter__(self) -> "_JobLog":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._left.set()

    def drain(self) -> None:
        """Call when the job has ended: wait for the rest of the log."""
        self._ended.set()
        self._thread.join(self.cluster.timing.drain)

    def _follow_all(self) -> None:
        last: dict[str, str] = {}
        finished: set[str] = set()
        while True:
            leaving = self._ended.is_set()
            try:
                for pod in self.cluster.submitter_pods(self.name):
                    name, phase = pod.metadata.name, pod.status.phase
                    if name in finished or phase == "Pending":
                        continue
                    seen = last.get(name)
                    for moment, line in self.cluster.follow(name, seen):
                        if self._left.is_set():
                            return
                        if seen is None or _comparable(moment) > _comparable(seen):
                            last[name] = moment
                            self.tail.append(line)
                            sys.stdout.write(line + "\n")
                            sys.stdout.flush()
                    if phase in ("Succeeded", "Failed"):
                        finished.add(name)
            except _api_errors() as error:
                log.debug("log of %s: %s", self.name, error)
            if leaving:
                return
            self._ended.wait(min(1.0, self.cluster.timing.poll))
