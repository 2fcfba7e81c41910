"""Make the RayJob manifest of one stage."""

import copy
import hashlib
import logging
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import yaml

from ray_jobs.launch.kuberay.errors import RayJobError
from ray_jobs.launch.kuberay.room import Node, Pod
from wukong import stages
from wukong.config.experiment import Experiment
from wukong.errors import ConfigError
from wukong.stages import access, fit, overlay, run_paths
from wukong.stages.ray_job import CONFIG_MAP, GpuSettings, HeadSettings, Settings, StageSettings

log = logging.getLogger(__name__)

_LOST_NODE = ("node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable")
"""Taints of a node that does not answer. Kubernetes has each pod tolerate them for 300 seconds if it says nothing."""
QUEUE = "kueue.x-k8s.io/queue-name"
"""The label by which Kueue knows the LocalQueue of a RayJob."""
_PRIORITY = "kueue.x-k8s.io/priority-class"
WORKERS = "wukong/workers"
"""The annotation that says how many workers a training's RayJob asks for."""
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
    size: int | None = None,
    nodes: Sequence[Node] | None = None,
) -> dict[str, Any]:
    """Make the RayJob of a stage from the cluster's template. The caller adds name and namespace.

    Args:
        template: a RayJob manifest with a head and one group of workers.
        settings: what stages may use on this cluster.
        experiment: the experiment; it decides how many workers a training stage has, and whether they have GPUs.
        run_name: name of the pipeline run.
        stage: name of the stage.
        entrypoint: the command that the head runs.
        environment: variables of every Ray container, in addition to the template's.
        size: how many workers a training stage has; None for as many as the experiment says.
        nodes: those of the cluster as they are when nothing runs there, for ``gpus_per_pod: node``; None where no
            cluster is asked.

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
        name = workers["groupName"]
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"template.yaml of the ConfigMap {CONFIG_MAP} must be a RayJob with a head and one group of workers: "
            f"{error!r}"
        ) from error
    of_stage = settings.stages.get(stage, StageSettings())
    together = settings.gpu.gpus_per_pod
    if together == "node":
        one = _worker_group(workers, name, stage, settings, _Group(1, 1, 1))["template"]["spec"]
        together = _room_of_a_node(Pod.of(stage, "worker", one), nodes or (), settings.gpu)
    groups = _groups(stage, settings, together, experiment, size)
    are_apart = together == 1 and not (settings.gpu.gpus_per_pod == "node" and nodes is None)
    gpus = sum(group.gpus * group.pods for group in groups)
    if are_apart and gpus > 1 and stages.of(stage).trains:
        log.warning(fit.APART.format(stage=stage, gpus=gpus))
    spec = body["spec"]
    spec["entrypoint"] = shlex.join(entrypoint)
    spec["backoffLimit"] = 0  # KubeRay repeats every failure, also a stage's own; the launcher repeats what may help
    spec["preRunningDeadlineSeconds"] = settings.pre_running_deadline_seconds
    spec["activeDeadlineSeconds"] = of_stage.active_deadline_seconds or settings.active_deadline_seconds
    spec.update(_deletion(settings))
    image = (settings.gpu.image if any(group.gpus for group in groups) else None) or settings.image
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
        _exchange_secrets(container, access.secrets_of_job(stage))
        # Outputs say by which image they were made.
        variables = {**environment, "WUKONG_IMAGE": container.get("image", "")}
        container.setdefault("env", []).extend({"name": name, "value": value} for name, value in variables.items())
    if settings.head:
        _set_head_resources(head["template"]["spec"], settings.head)
    _labels(workers["template"])["wukong/run"] = run_label(run_name)
    cluster["workerGroupSpecs"] = [
        _worker_group(workers, name + ending, stage, settings, group)
        for group, ending in zip(groups, ("", "-rest"), strict=False)
    ]
    _labels(body).update({"app.kubernetes.io/name": "wukong", "wukong/stage": stage, "wukong/run": run_label(run_name)})
    body["metadata"].setdefault("annotations", {}).update(
        {"wukong/run": run_name, "wukong/experiment": experiment.name}
    )
    if settings.queue:
        _labels(body)[QUEUE] = settings.queue
        if priority := experiment.priority or settings.priority:
            _labels(body)[_PRIORITY] = priority
        if stages.of(stage).trains:
            body["metadata"]["annotations"][WORKERS] = str(sum(group.pods * group.workers for group in groups))
        spec["suspend"] = True
    return body


def named(body: Mapping[str, Any], name: str, namespace: str, *, own_key: bool) -> dict[str, Any]:
    """A RayJob that ``make_ray_job`` has made, with its name and namespace.

    Args:
        body: the RayJob.
        name: its name.
        namespace: its namespace.
        own_key: whether its pods start from a Secret of its own instead of its stage's.
    """
    made = copy.deepcopy(dict(body))
    made["metadata"] |= {"name": name, "namespace": namespace}
    if own_key:
        cluster = made["spec"]["rayClusterSpec"]
        exchanged = {access.key_of_job(made["metadata"]["labels"]["wukong/stage"]): access.key_of_ray_job(name)}
        for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
            _exchange_secrets(group["template"]["spec"]["containers"][0], exchanged)
    return made


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


@dataclass(frozen=True)
class _Group:
    """Equal pods of workers.

    Attributes:
        pods: how many.
        workers: of each pod.
        gpus: of each pod.
    """

    pods: int
    workers: int
    gpus: int


def _groups(
    stage: str, settings: Settings, gpus_per_pod: int, experiment: Experiment, size: int | None
) -> list[_Group]:
    """The pods of a stage's workers, of a training as many workers as ``size`` says, or else the experiment.

    The cluster decides how many workers of a training with a GPU each share a pod: the last pod has what is left.
    """
    pods = overlay.pods_of(stage, experiment, settings)
    together = gpus_per_pod if pods.gpus and stages.of(stage).trains else 1
    full, left = divmod(size or pods.workers, together)
    groups = [_Group(full, together, together * pods.gpus), _Group(1, left, left * pods.gpus)]
    return [group for group in groups if group.pods and group.workers]


def _room_of_a_node(worker: Pod, nodes: Sequence[Node], gpu: GpuSettings) -> int:
    """Return how many workers with a GPU each can share a pod, on the node that has room for the most; at least 1.

    What a pod asks for besides is for all of its workers.
    """
    asked = {name: amount for name, amount in worker.requests.items() if name not in gpu.resources}
    alone = replace(worker, requests=asked)
    return max([1, *(node.holds(alone) for node in nodes if node.allows(alone))])


def _labels(manifest: dict[str, Any]) -> dict[str, str]:
    labels: dict[str, str] = manifest.setdefault("metadata", {}).setdefault("labels", {})
    return labels


def _exchange_secrets(container: dict[str, Any], exchanged: Mapping[str, str | None]) -> None:
    """Put other Secrets in the place of those whose variables a container would have; none in the place of None."""
    sources = []
    for source in container.get("envFrom", []):
        reference = source.get("secretRef", {})
        name = exchanged.get(reference.get("name"), reference.get("name"))
        if reference and name is not None:
            sources.append({**source, "secretRef": {**reference, "name": name}})
        elif not reference:
            sources.append(source)
    container["envFrom"] = sources


def _set_head_resources(pod: dict[str, Any], head: HeadSettings) -> None:
    resources = pod["containers"][0].setdefault("resources", {})
    resources.setdefault("requests", {}).update({"cpu": head.cpu, "memory": head.memory})
    resources.setdefault("limits", {})["memory"] = head.memory
    _set_shared_memory(pod, head.shared_memory)


def _set_shared_memory(pod: dict[str, Any], size: str) -> None:
    for volume in pod.get("volumes", []):
        if volume["name"] == "shared-memory":
            volume["emptyDir"] = {"medium": "Memory", "sizeLimit": size}


def _worker_group(template: dict[str, Any], name: str, stage: str, settings: Settings, group: _Group) -> dict[str, Any]:
    """Make a group of KubeRay's of the template's."""
    made = {**copy.deepcopy(template), "groupName": name}
    made |= dict.fromkeys(("replicas", "minReplicas", "maxReplicas"), group.pods)
    pod = made["template"]["spec"]
    _set_resources(pod, settings.stages.get(stage, StageSettings()), group.workers)
    if group.gpus:
        # KubeRay tells Ray of GPUs by the resource's name, and does not know all names that a device plugin may give.
        made["rayStartParams"] = {**(made.get("rayStartParams") or {}), "num-gpus": str(group.gpus)}
        _set_gpus(pod, settings.gpu, group.gpus)
        if stages.of(stage).trains:
            _set_network(made["template"], settings.gpu)
    return made


def _set_resources(pod: dict[str, Any], stage: StageSettings, workers: int) -> None:
    """Give a pod the resources of its workers; requests equal limits, so that Ray is not evicted or throttled."""
    size = {"cpu": str(stage.cpus * workers), "memory": _times(stage.memory, workers)}
    pod["containers"][0]["resources"] = {"requests": dict(size), "limits": dict(size)}
    _set_shared_memory(pod, _times(stage.shared_memory, workers))
    _place(pod, stage.node_selector, stage.tolerations)


def _set_gpus(pod: dict[str, Any], gpu: GpuSettings, gpus: int) -> None:
    """Give a pod its GPUs, on nodes that have them."""
    _ask(pod, {gpu.resource: str(gpus)})
    _place(pod, gpu.node_selector, gpu.tolerations)
    if gpu.runtime_class:
        pod["runtimeClassName"] = gpu.runtime_class


def _set_network(template: dict[str, Any], gpu: GpuSettings) -> None:
    """Give a training's pod what its workers exchange gradients by, near the others of its job."""
    pod, metadata = template["spec"], template["metadata"]
    _ask(pod, gpu.resources)
    if gpu.annotations:
        metadata["annotations"] = {**metadata.get("annotations", {}), **gpu.annotations}
    variables = pod["containers"][0].setdefault("env", [])
    variables.extend({"name": name, "value": value} for name, value in gpu.environment.items())
    if gpu.topology_key:
        of_job = {name: metadata["labels"][name] for name in ("wukong/run", "wukong/stage")}
        term = {"topologyKey": gpu.topology_key, "labelSelector": {"matchLabels": of_job}}
        near = pod.setdefault("affinity", {}).setdefault("podAffinity", {})
        if gpu.topology_required:
            near.setdefault("requiredDuringSchedulingIgnoredDuringExecution", []).append(term)
        else:
            preferred = {"weight": 100, "podAffinityTerm": term}
            near.setdefault("preferredDuringSchedulingIgnoredDuringExecution", []).append(preferred)


def _ask(pod: dict[str, Any], resources: Mapping[str, str]) -> None:
    """Let a pod ask for devices besides; Kubernetes wants their requests to equal their limits."""
    for bound in pod["containers"][0]["resources"].values():
        bound.update(resources)


def _place(pod: dict[str, Any], selector: Mapping[str, str], tolerations: Sequence[Mapping[str, Any]]) -> None:
    """Add labels that a pod's node must have, and taints that it tolerates."""
    if selector:
        pod["nodeSelector"] = {**pod.get("nodeSelector", {}), **selector}
    if tolerations:
        pod["tolerations"] = [*pod.get("tolerations", []), *(dict(toleration) for toleration in tolerations)]


def _times(quantity: str, count: int) -> str:
    """A Kubernetes quantity so many times, in its own unit."""
    number, unit = overlay.parts_of(quantity)
    return f"{(number * count).normalize():f}{unit}"
