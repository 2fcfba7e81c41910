"""What stages may use on a cluster: the ConfigMap ``ray-job`` of the namespace in which RayJobs are made.

Its ``template.yaml`` is a RayJob manifest, its ``settings.yaml`` is described here by ``Settings``. Both belong to the
cluster, not to an experiment: the same experiment makes the same data on every cluster. A component of Kustomize cannot
change a part of ``settings.yaml``, so ``k8s/components/kueue`` brings ``queue.yaml`` and ``k8s/components/stage-keys``
brings ``keys.yaml``, whose settings count where ``settings.yaml`` does not name them.
"""

import logging
from collections.abc import Mapping
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError

from wukong.config.section import Positive, Strict
from wukong.errors import ConfigError
from wukong.runtime import installed

CONFIG_MAP = "ray-job"
_SETTINGS = ("queue.yaml", "keys.yaml", "settings.yaml")
"""Keys of the ConfigMap; what a later one says counts."""
VERSION = "version"
"""The key of the ConfigMap with the version of Wukong that it was written for."""

log = logging.getLogger(__name__)


class StageSettings(Strict):
    """Resources of one stage's Ray workers, each a pod. A training's pod with several GPUs has a worker for each of
    them, and so many times these cores and memories.

    Attributes:
        workers: number of workers. For a training stage the experiment's ``workers`` decides instead.
        cpus: cores of each worker.
        gpus: GPUs of each worker, where the stage runs a model; for a training stage the experiment's
            ``gpus_per_worker`` decides instead.
        memory: each worker's, as a Kubernetes quantity.
        shared_memory: size of each worker's ``/dev/shm``, where Ray keeps its objects and NCCL exchanges what goes
            between the GPUs of a pod; it counts as ``memory``.
        node_selector: labels that the workers' nodes must have, in addition to the template's.
        tolerations: taints that the workers tolerate, in addition to the template's.
        active_deadline_seconds: limit for the whole job; None leaves that of ``Settings``.
    """

    workers: Positive = 1
    cpus: Positive = 1
    gpus: int = Field(0, ge=0)
    memory: str = "2Gi"
    shared_memory: str = "1Gi"
    node_selector: dict[str, str] = Field(default_factory=dict)
    tolerations: tuple[dict[str, Any], ...] = ()
    active_deadline_seconds: Positive | None = None


class HeadSettings(Strict):
    """Resources of a job's head. It schedules, and runs the stage's driver; no task of the stage runs there.

    Attributes:
        cpu: cores that are kept for it, as a Kubernetes quantity; it may use more where there are more.
        memory: a Kubernetes quantity.
        shared_memory: size of its ``/dev/shm``, where Ray keeps its objects; it counts as ``memory``.
    """

    cpu: str = "500m"
    memory: str = "4Gi"
    shared_memory: str = "1280Mi"


class GpuSettings(Strict):
    """What worker pods with GPUs get in addition.

    Attributes:
        resource: name of the GPU resource.
        image: image of every Ray pod of the job; None leaves that of ``Settings``.
        runtime_class: the workers', where the cluster needs one for GPUs.
        node_selector: labels that the workers' nodes must have.
        tolerations: taints that the workers tolerate.
        gpus_per_pod: GPUs of a training's pod, with a worker for each, so that those of a pod exchange by NVLink where
            the node has it; the last pod has what is left. At most what a node has; ``node`` takes as many as the nodes
            have room for, or 1 where they cannot be listed.
        topology_key: label of nodes; pods of one training go to nodes with the same value if there is room. None leaves
            them where there is room.
        topology_required: whether they wait until there is room on such nodes.
        resources: what each of a training's pods asks for besides, such as ``rdma/rdma_shared_device_a``.
        annotations: of a training's pods, such as ``k8s.v1.cni.cncf.io/networks``.
        environment: variables of a training's workers, such as ``NCCL_IB_HCA``.
    """

    resource: str = "nvidia.com/gpu"
    image: str | None = None
    runtime_class: str | None = None
    node_selector: dict[str, str] = Field(default_factory=dict)
    tolerations: tuple[dict[str, Any], ...] = ({"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"},)
    gpus_per_pod: Positive | Literal["node"] = 1
    topology_key: str | None = None
    topology_required: bool = False
    resources: dict[str, str] = Field(default_factory=dict)
    annotations: dict[str, str] = Field(default_factory=dict)
    environment: dict[str, str] = Field(default_factory=dict)


class Settings(Strict):
    """The content of ``settings.yaml``.

    Attributes:
        image: image of every Ray pod; None leaves the template's.
        queue: Kueue's LocalQueue; the job is then created suspended, and Kueue starts it.
        priority: name of the WorkloadPriorityClass of jobs whose experiment names none; None for Kueue's own, 0.
        fewer_workers_seconds: how long a training with ``min_workers`` waits in the queue before it asks for half of
            its workers, and as long again before each further halving, down to ``min_workers``. None: it always waits
            for all.
        retries: how often the launcher makes a new RayJob after the loss of a head, a submitter or a node. A failure of
            the stage's own work, a deadline and a job that a person ended are not repeated.
        lost_node_seconds: how long a job's pods stay bound to a node that does not answer; then Kubernetes counts them
            as lost. It begins when the node is tainted, some 50 seconds after its last sign of life.
        pre_running_deadline_seconds: limit for nodes, images and pods to be ready.
        no_node_seconds: limit for pods that the nodes of the cluster could not take even if nothing else ran there.
            Where nodes are made for pods that wait, give it the time that making one takes. It is looked at where the
            launcher may list nodes.
        active_deadline_seconds: limit for the whole job; a stage may have its own.
        ttl_seconds: how long the Ray cluster of a failed job stays, so that a person can look at it. That of a job that
            succeeded goes at once. With a ``queue``, both go at once.
        keep_succeeded_seconds: how long the RayJob of a job that succeeded stays, with its submitter's log.
        keep_failed_seconds: the same for a job that failed.
        own_keys: whether each RayJob's pods start from a Secret of their own, which is made for it
            (``infra.stage_keys``).
        head: resources of every job's head; None leaves the template's.
        stages: resources by stage name.
        gpu: what pods with GPUs get in addition.
    """

    image: str | None = None
    queue: str | None = None
    priority: str | None = None
    fewer_workers_seconds: Positive | None = None
    retries: int = Field(2, ge=0)
    lost_node_seconds: int = Field(60, ge=0)
    pre_running_deadline_seconds: Positive = 1800
    no_node_seconds: int = Field(300, ge=0)
    active_deadline_seconds: Positive = 86_400
    ttl_seconds: int = Field(60, ge=0)
    keep_succeeded_seconds: int = Field(86_400, ge=0)
    keep_failed_seconds: int = Field(604_800, ge=0)
    own_keys: bool = False
    head: HeadSettings | None = None
    stages: dict[str, StageSettings] = Field(default_factory=dict)
    gpu: GpuSettings = GpuSettings()


def parse(data: Mapping[str, str], namespace: str) -> tuple[dict[str, Any], Settings]:
    """Read the ConfigMap's data.

    A run may be in its middle when the cluster gets another version, whose ConfigMap may name settings that this code
    does not know. It does without them, as it did before.

    Args:
        data: the ConfigMap's ``data``.
        namespace: the ConfigMap's, for messages.

    Returns:
        The template and the settings.

    Raises:
        ConfigError: the template is missing, or one of the two is not valid; the message says which.
    """
    where = f"{namespace}/{CONFIG_MAP}"
    if "template.yaml" not in data:
        raise ConfigError(f"there is no template.yaml of the ConfigMap {where}; `kubectl apply -f k8s/` brings it")
    values: dict[str, Any] = {}
    for key in _SETTINGS:
        value = _read(data.get(key, ""), key, where) or {}
        if not isinstance(value, dict):
            raise ConfigError(f"{key} of the ConfigMap {where} is no mapping of settings")
        values |= value
    try:
        settings = Settings.model_validate(values)
    except ValidationError as error:
        unknown = [each["loc"] for each in error.errors() if each["type"] == "extra_forbidden"]
        written_for = data.get(VERSION, installed.version())
        if written_for == installed.version() or len(unknown) < error.error_count():
            raise ConfigError(f"settings.yaml of the ConfigMap {where} is not valid: {error}") from error
        for *path, name in unknown:
            log.warning("%s is a setting of version %s, left out", ".".join(map(str, (*path, name))), written_for)
            section: Any = values
            for each in path:
                section = section[each]
            del section[name]
        settings = Settings.model_validate(values)
    return _read(data["template.yaml"], "template.yaml", where), settings


def _read(text: str, key: str, where: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{key} of the ConfigMap {where} is not valid YAML: {error}") from error
