"""Make the RayJob manifest of one stage."""

import hashlib
import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from ray_jobs.launch.kuberay.errors import RayJobError
from ray_jobs.launch.kuberay.settings import CONFIG_MAP, GpuSettings, HeadSettings, Settings, StageSettings
from wukong import stages
from wukong.config.experiment import Experiment
from wukong.errors import ConfigError
from wukong.stages import run_paths

_MLFLOW = "wukong-mlflow"  # the Secret; of all Ray's pods only those that train log to MLflow
_LOST_NODE = ("node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable")
"""Taints of a node that does not answer. Kubernetes has each pod tolerate them for 300 seconds if it says nothing."""
MAX_NAME = 47
"""Characters of a RayJob's name: KubeRay appends to it, and the result must fit a label."""


def job_name(experiment: Experiment, run_name: str, stage: str, attempt: int, work: Sequence[str] = ()) -> str:
    """Name of the RayJob of one attempt: a DNS label of at most 47 characters, equal for equal arguments.

    The run's name is cut to fit. A digest keeps apart runs whose cut names are equal, and jobs that do other work.

    Args:
        experiment: the experiment.
        run_name: name of the pipeline run.
        stage: name of the stage.
        attempt: its number.
        work: what decides the job's work: its arguments, which name the experiment's content and the parents'
            manifests, and its images. A run that is repeated with another experiment must not find the old job.
    """
    identity = "\n".join([run_paths.uri_of(experiment, run_name, stage), *work])
    digest = hashlib.sha256(identity.encode()).hexdigest()[:8]
    ending = f"-{stage}-{digest}-{attempt}"
    slug = re.sub(r"[^a-z0-9]+", "-", run_name.lower()).strip("-")
    if not slug[:1].isalpha():
        slug = f"run-{slug}"
    return slug[: MAX_NAME - len(ending)].rstrip("-") + ending


def images_of(body: Mapping[str, Any]) -> list[str]:
    """The images of a RayJob's head and workers."""
    cluster = body["spec"]["rayClusterSpec"]
    pods = [cluster["headGroupSpec"]["template"], *(group["template"] for group in cluster["workerGroupSpecs"])]
    return [container.get("image", "") for pod in pods for container in pod["spec"]["containers"]]


def run_label(run_name: str) -> str:
    """Value of the label ``wukong/run``: at most 63 characters, beginning and ending with a letter or digit."""
    return run_name[:63].rstrip("._-")


def make_ray_job(
    template: Mapping[str, Any],
    settings: Settings,
    experiment: Experiment,
    run_name: str,
    stage: str,
    entrypoint: Sequence[str],
    environment: Mapping[str, str],
) -> dict[str, Any]:
    """Make the RayJob of a stage from the cluster's template. The caller adds name and namespace.

    Args:
        template: a RayJob manifest with a head and one group of workers.
        settings: what stages may use on this cluster.
        experiment: the experiment; it decides how many workers a training stage has, and how many GPUs each.
        run_name: name of the pipeline run.
        stage: name of the stage.
        entrypoint: the command that the head runs.
        environment: variables of every Ray container, in addition to the template's.

    Raises:
        ConfigError: the template is no RayJob with a head and one group of workers.
        RayJobError: a shell would change an argument of the entrypoint.
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
    count, gpus = _workers_and_gpus(stage, of_stage, experiment)
    spec = body["spec"]
    spec["entrypoint"] = shlex.join(entrypoint)
    spec["backoffLimit"] = 0  # KubeRay repeats every failure, also a stage's own; the launcher repeats what may help
    spec["preRunningDeadlineSeconds"] = settings.pre_running_deadline_seconds
    spec["activeDeadlineSeconds"] = of_stage.active_deadline_seconds or settings.active_deadline_seconds
    spec.update(_deletion(settings))
    workers |= {"replicas": count, "minReplicas": count, "maxReplicas": count}
    image = (settings.gpu.image if gpus else None) or settings.image
    submitter = spec.get("submitterPodTemplate")
    for pod in [*pods, *([submitter] if submitter else [])]:
        _labels(pod)["wukong/stage"] = stage
        pod["spec"].setdefault("tolerations", []).extend(
            {
                "key": taint,
                "operator": "Exists",
                "effect": "NoExecute",
                "tolerationSeconds": settings.lost_node_seconds,
            }
            for taint in _LOST_NODE
        )
        if image:
            pod["spec"]["containers"][0]["image"] = image
    for container in containers:
        if not stages.of(stage).trains:
            _without_secret(container, _MLFLOW)
        container.setdefault("env", []).extend({"name": name, "value": value} for name, value in environment.items())
    if settings.head:
        _set_head_resources(head["template"]["spec"], settings.head)
    _set_resources(workers["template"]["spec"], of_stage, settings.gpu, gpus)
    _labels(body).update({"app.kubernetes.io/name": "wukong", "wukong/stage": stage, "wukong/run": run_label(run_name)})
    body["metadata"].setdefault("annotations", {}).update(
        {"wukong/run": run_name, "wukong/experiment": experiment.name}
    )
    if settings.queue:
        _labels(body)["kueue.x-k8s.io/queue-name"] = settings.queue
        spec["suspend"] = True
    return body


def _deletion(settings: Settings) -> dict[str, Any]:
    """The fields of a RayJob that say when KubeRay deletes what.

    Rules delete the Ray cluster of a job that succeeded at once, and RayJobs after a while. Kueue and KubeRay allow no
    rules with ``suspend``; then the cluster goes at once, however the job ended, and the run's exit handler deletes the
    RayJobs.
    """
    if settings.queue:
        return {"shutdownAfterJobFinishes": True, "ttlSecondsAfterFinished": 0}

    def rule(policy: str, seconds: int, **condition: str) -> dict[str, Any]:
        return {"policy": policy, "condition": {**condition, "ttlSeconds": seconds}}

    kept = settings.keep_failed_seconds
    rules = [
        rule("DeleteCluster", 0, jobStatus="SUCCEEDED"),
        rule("DeleteSelf", settings.keep_succeeded_seconds, jobStatus="SUCCEEDED"),
        rule("DeleteCluster", min(settings.ttl_seconds, kept), jobDeploymentStatus="Failed"),
        rule("DeleteSelf", kept, jobDeploymentStatus="Failed"),
    ]
    return {"shutdownAfterJobFinishes": False, "deletionStrategy": {"deletionRules": rules}}


def _workers_and_gpus(stage: str, settings: StageSettings, experiment: Experiment) -> tuple[int, int]:
    """How many workers a stage has, and how many GPUs each.

    The experiment decides both for a training stage. Another stage has GPUs only if it runs a model.
    """
    if stages.of(stage).trains:
        training = stages.training_of(experiment, stage)
        return training.workers, training.gpus_per_worker
    return settings.workers, settings.gpus if stages.of(stage).runs_model(experiment) else 0


def _labels(manifest: dict[str, Any]) -> dict[str, str]:
    labels: dict[str, str] = manifest.setdefault("metadata", {}).setdefault("labels", {})
    return labels


def _without_secret(container: dict[str, Any], name: str) -> None:
    """Keep a Secret from a container whose variables it would be among."""
    sources = container.get("envFrom", [])
    container["envFrom"] = [source for source in sources if source.get("secretRef", {}).get("name") != name]


def _set_head_resources(pod: dict[str, Any], head: HeadSettings) -> None:
    resources = pod["containers"][0].setdefault("resources", {})
    resources.setdefault("requests", {}).update({"cpu": head.cpu, "memory": head.memory})
    resources.setdefault("limits", {})["memory"] = head.memory
    _set_shared_memory(pod, head.shared_memory)


def _set_shared_memory(pod: dict[str, Any], size: str) -> None:
    for volume in pod.get("volumes", []):
        if volume["name"] == "shared-memory":
            volume["emptyDir"] = {"medium": "Memory", "sizeLimit": size}


def _set_resources(pod: dict[str, Any], stage: StageSettings, gpu: GpuSettings, gpus: int) -> None:
    """Give a worker's pod the stage's resources; requests equal limits, so that Ray is not evicted or throttled."""
    size = {"cpu": str(stage.cpus), "memory": stage.memory} | ({gpu.resource: str(gpus)} if gpus else {})
    pod["containers"][0]["resources"] = {"requests": dict(size), "limits": dict(size)}
    _set_shared_memory(pod, stage.shared_memory)
    selector = {**pod.get("nodeSelector", {}), **stage.node_selector, **(gpu.node_selector if gpus else {})}
    tolerations = [*pod.get("tolerations", []), *stage.tolerations, *(gpu.tolerations if gpus else ())]
    if selector:
        pod["nodeSelector"] = selector
    if tolerations:
        pod["tolerations"] = [dict(toleration) for toleration in tolerations]
    if gpus and gpu.runtime_class:
        pod["runtimeClassName"] = gpu.runtime_class
