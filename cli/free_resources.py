"""Whether the pods of a run fit on the nodes of a cluster as it is now, for ``wukong submit --dry-run``.

The scheduler decides by more than this looks at: affinities, spreading, priorities. An autoscaler may add nodes.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from kubernetes import client
from kubernetes.client import ApiException
from kubernetes.utils.quantity import parse_quantity

from ray_jobs.launch.kuberay.manifest import make_ray_job
from ray_jobs.launch.kuberay.settings import Settings
from wukong.config.experiment import Experiment
from wukong.runtime.language import message

Resources = dict[str, Decimal]
"""Amounts by resource: cores of ``cpu``, bytes of ``memory``, units of others."""

_TIMEOUT = (5, 30)  # seconds: to connect, to read
_GIB = 2**30


@dataclass(frozen=True)
class Pod:
    """What the scheduler knows of a pod that is to come.

    Attributes:
        stage: name of its stage.
        role: ``head``, ``worker`` or ``submitter``.
        requests: what it asks for.
        selector: labels that its node must have.
        tolerations: taints that it tolerates.
    """

    stage: str
    role: str
    requests: Resources
    selector: Mapping[str, str] = field(default_factory=dict)
    tolerations: Sequence[Mapping[str, Any]] = ()


@dataclass(frozen=True)
class Node:
    """A node that takes pods.

    Attributes:
        name: its name.
        free: what it can give to new pods.
        labels: its labels.
        taints: those that keep pods away.
    """

    name: str
    free: Resources
    labels: Mapping[str, str] = field(default_factory=dict)
    taints: Sequence[Mapping[str, Any]] = ()

    def takes(self, pod: Pod) -> bool:
        """Whether the labels, taints and free resources of the node allow the pod."""
        return (
            all(self.labels.get(key) == value for key, value in pod.selector.items())
            and all(any(_tolerates(each, taint) for each in pod.tolerations) for taint in self.taints)
            and all(self.free.get(name, Decimal(0)) >= amount for name, amount in pod.requests.items())
        )


def pods_of(experiment: Experiment, template: Mapping[str, Any], settings: Settings, stage: str) -> list[Pod]:
    """Return the pods of a stage's job: head, workers, and the one that submits it.

    Args:
        experiment: the experiment; it says how many workers a training has.
        template: a RayJob manifest.
        settings: what stages may use.
        stage: name of the stage.
    """
    spec = make_ray_job(template, settings, experiment, "dry-run", stage, ["true"], {})["spec"]
    cluster = spec["rayClusterSpec"]
    (workers,) = cluster["workerGroupSpecs"]
    pods = [_pod(stage, "head", cluster["headGroupSpec"]["template"]["spec"])]
    pods += [_pod(stage, "worker", workers["template"]["spec"])] * workers["replicas"]
    submitter = spec.get("submitterPodTemplate")
    return [*pods, _pod(stage, "submitter", submitter["spec"])] if submitter else pods


def nodes(core: client.CoreV1Api) -> list[Node]:
    """Return the nodes of a cluster that take pods, with what their pods leave free.

    Raises:
        ApiException: the API refuses; nodes and pods of all namespaces are for users who may list them.
    """
    used: dict[str, Resources] = {}
    for pod in core.list_pod_for_all_namespaces(_request_timeout=_TIMEOUT).items:
        if pod.spec.node_name and pod.status.phase not in ("Succeeded", "Failed"):
            asked = requests_of(core.api_client.sanitize_for_serialization(pod.spec))
            used[pod.spec.node_name] = _sum([used.get(pod.spec.node_name, {}), asked, {"pods": Decimal(1)}])
    return [
        Node(
            node.metadata.name,
            {
                name: parse_quantity(amount) - used.get(node.metadata.name, {}).get(name, Decimal(0))
                for name, amount in node.status.allocatable.items()
            },
            node.metadata.labels or {},
            [taint.to_dict() for taint in node.spec.taints or () if taint.effect != "PreferNoSchedule"],
        )
        for node in core.list_node(_request_timeout=_TIMEOUT).items
        if not node.spec.unschedulable
    ]


def unplaced(pods: Iterable[Pod], on: Sequence[Node]) -> list[Pod]:
    """Return the pods that find no node: those that ask for most choose first, each the node that has least to spare.

    Args:
        pods: all at the same time.
        on: the nodes, which stay as they are.
    """
    left = [Node(node.name, dict(node.free), node.labels, node.taints) for node in on]
    without = []
    for pod in sorted(pods, key=lambda pod: _weight(pod.requests), reverse=True):
        fitting = [node for node in left if node.takes(pod)]
        if not fitting:
            without.append(pod)
            continue
        node = min(fitting, key=lambda node: _weight(node.free))
        for name, amount in _sum([pod.requests, {"pods": Decimal(1)}]).items():
            node.free[name] = node.free.get(name, Decimal(0)) - amount
    return without


def unfit(core: client.CoreV1Api, namespace: str, jobs: Mapping[str, Sequence[Pod]]) -> tuple[list[str], list[str]]:
    """Say which stages' pods do not fit, on the nodes and in the quotas of their namespace.

    Args:
        core: the Kubernetes API.
        namespace: the one of the pods.
        jobs: the pods by stage; stages do not run at the same time.

    Returns:
        A line for each group of pods without a place, and a line for each thing that the user may not see.
    """
    lines: list[str] = []
    unseen: list[str] = []
    for look, what in ((_on_nodes, message("nodes and their pods")), (_in_quotas, message("the namespace's quotas"))):
        try:
            lines += look(core, namespace, jobs)
        except ApiException as error:
            unseen.append(
                message(f"not looked at: {what} ({error.reason}); whoever may list them sees whether all fits")
            )
    return lines, unseen


def _on_nodes(core: client.CoreV1Api, _namespace: str, jobs: Mapping[str, Sequence[Pod]]) -> Iterator[str]:
    seen = nodes(core)
    for stage, pods in jobs.items():
        without = unplaced(pods, seen)
        for role in dict.fromkeys(pod.role for pod in without):
            example = next(pod for pod in without if pod.role == role)
            count = sum(pod.role == role for pod in without)
            yield message(
                f"{stage}: {count} of {sum(pod.role == role for pod in pods)} pods ({role}) fit on no node now: each "
                f"asks for {_words(example.requests)}{_placed(example)}; {_most_room(example, seen)}"
            )


def _in_quotas(core: client.CoreV1Api, namespace: str, jobs: Mapping[str, Sequence[Pod]]) -> Iterator[str]:
    for quota in core.list_namespaced_resource_quota(namespace, _request_timeout=_TIMEOUT).items:
        hard, used = quota.status.hard or {}, quota.status.used or {}
        for stage, pods in jobs.items():
            asked = _sum(pod.requests for pod in pods)
            asked |= {f"requests.{name}": amount for name, amount in asked.items()} | {"pods": Decimal(len(pods))}
            for name in hard.keys() & asked.keys():
                free = parse_quantity(hard[name]) - parse_quantity(used.get(name, "0"))
                if asked[name] > free:
                    yield message(
                        f"{stage}: its pods ask for {_amount(name, asked[name])}, and the quota {quota.metadata.name} "
                        f"of the namespace {namespace} leaves {_amount(name, free)}"
                    )


def requests_of(spec: Mapping[str, Any]) -> Resources:
    """Return what the scheduler counts for a pod: its containers together, or an init container that asks for more."""
    together = _sum([*(_requests(each) for each in spec["containers"]), _quantities(spec.get("overhead") or {})])
    for each in map(_requests, spec.get("initContainers") or ()):
        together |= {name: max(amount, together.get(name, Decimal(0))) for name, amount in each.items()}
    return together


def _pod(stage: str, role: str, spec: Mapping[str, Any]) -> Pod:
    return Pod(stage, role, requests_of(spec), spec.get("nodeSelector") or {}, spec.get("tolerations") or ())


def _requests(container: Mapping[str, Any]) -> Resources:
    resources = container.get("resources") or {}
    # What has a limit and no request asks for its limit.
    return _quantities((resources.get("limits") or {}) | (resources.get("requests") or {}))


def _quantities(written: Mapping[str, Any]) -> Resources:
    return {name: parse_quantity(amount) for name, amount in written.items()}


def _sum(resources: Iterable[Resources]) -> Resources:
    total: Resources = {}
    for each in resources:
        total |= {name: total.get(name, Decimal(0)) + amount for name, amount in each.items()}
    return total


def _weight(resources: Resources) -> tuple[Decimal, ...]:
    """How much resources are: those with a domain in their name, such as GPUs, count most."""
    devices = (amount for name, amount in resources.items() if "/" in name)
    return sum(devices, Decimal(0)), *(resources.get(name, Decimal(0)) for name in ("memory", "cpu"))


def _tolerates(toleration: Mapping[str, Any], taint: Mapping[str, Any]) -> bool:
    return (
        toleration.get("effect") in (None, "", taint["effect"])
        and toleration.get("key") in (None, "", taint["key"])
        and (toleration.get("operator") == "Exists" or (toleration.get("value") or "") == (taint.get("value") or ""))
    )


def _words(requests: Resources) -> str:
    return ", ".join(_amount(name, amount) for name, amount in sorted(requests.items()))


def _placed(pod: Pod) -> str:
    labels = ", ".join(f"{key}={value}" for key, value in pod.selector.items())
    return message(f", on a node with {labels}") if labels else ""


def _most_room(pod: Pod, seen: Sequence[Node]) -> str:
    allowed = [node for node in seen if Node(node.name, pod.requests, node.labels, node.taints).takes(pod)]
    if not allowed:
        return message("no node has these labels, or taints that it tolerates")
    roomiest = max(allowed, key=lambda node: _weight({name: node.free.get(name, Decimal(0)) for name in pod.requests}))
    free = {name: roomiest.free.get(name, Decimal(0)) for name in pod.requests}
    return message(f"the node with most room, {roomiest.name}, has {_words(free)} free")


def _amount(name: str, amount: Decimal) -> str:
    if name.endswith(("memory", "storage")):
        return f"{amount / _GIB:,.1f} GiB {name}"
    return f"{amount.normalize():f} {name}"
