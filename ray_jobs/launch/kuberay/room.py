"""Which nodes could take a pod: what a pod asks for, and what a node has and allows.

The scheduler decides by more than this looks at: affinities, spreading, priorities. So a node that is found here may
still be refused there; a pod that no node takes here is never placed.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any

from wukong.stages import overlay

Resources = dict[str, Decimal]
"""Amounts by resource: cores of ``cpu``, bytes of ``memory``, units of others."""

_GIB = 2**30
_PASSING = ("node.kubernetes.io/", "node.cloudprovider.kubernetes.io/")
"""What keys of taints begin with that Kubernetes sets and removes: of a node that is cordoned, lost or too full."""


@dataclass(frozen=True)
class Pod:
    """What the scheduler knows of a pod.

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

    @classmethod
    def of(cls, stage: str, role: str, spec: Mapping[str, Any]) -> "Pod":
        """The pod that a spec describes."""
        return cls(stage, role, requests_of(spec), spec.get("nodeSelector") or {}, spec.get("tolerations") or ())

    @property
    def asks(self) -> str:
        """What it asks for, in words."""
        labels = ", ".join(f"{key}={value}" for key, value in self.selector.items())
        return words(self.requests) + (f", on a node with {labels}" if labels else "")


@dataclass(frozen=True)
class Node:
    """A node.

    Attributes:
        name: its name.
        free: what it can give to pods.
        labels: its labels.
        taints: those that keep pods away.
    """

    name: str
    free: Resources
    labels: Mapping[str, str] = field(default_factory=dict)
    taints: Sequence[Mapping[str, Any]] = ()

    @classmethod
    def of(cls, node: Mapping[str, Any], used: Resources) -> "Node":
        """A node of the Kubernetes API of which so much is used."""
        taints = [taint for taint in node["spec"].get("taints") or () if taint["effect"] != "PreferNoSchedule"]
        free, metadata = quantities(node["status"]["allocatable"]), node["metadata"]
        return cls(metadata["name"], less(free, used), metadata.get("labels") or {}, taints)

    @classmethod
    def when_empty(cls, node: Mapping[str, Any]) -> "Node":
        """A node of the Kubernetes API as it would be if nothing ran on it, and if what passes had passed."""
        empty = cls.of(node, {})
        return replace(empty, taints=[taint for taint in empty.taints if not taint["key"].startswith(_PASSING)])

    def allows(self, pod: Pod) -> bool:
        """Whether its labels and taints allow the pod."""
        return all(self.labels.get(key) == value for key, value in pod.selector.items()) and all(
            any(_tolerates(each, taint) for each in pod.tolerations) for taint in self.taints
        )

    def takes(self, pod: Pod) -> bool:
        """Whether the labels, taints and free resources of the node allow the pod."""
        return self.allows(pod) and self.holds(pod) > 0

    def holds(self, pod: Pod) -> int:
        """How many pods like this one its free resources are enough for."""
        shares = [self.free.get(name, Decimal(0)) // asked for name, asked in pod.requests.items() if asked]
        return max(0, int(min(shares, default=Decimal(1))))


def places(pod: Pod, on: Iterable[Node]) -> int:
    """Return how many pods like this one the nodes take together."""
    return sum(node.holds(pod) for node in on if node.allows(pod))


def roomiest(pod: Pod, on: Iterable[Node]) -> str:
    """Say which of the nodes that a pod allows has most of what it asks for."""
    allowed = [node for node in on if node.allows(pod)]
    if not allowed:
        return "no node has these labels, or taints that it tolerates"
    node = max(allowed, key=lambda node: weight({name: node.free.get(name, Decimal(0)) for name in pod.requests}))
    free = {name: node.free.get(name, Decimal(0)) for name in pod.requests}
    return f"the node with most room, {node.name}, has {words(free)} free"


def requests_of(spec: Mapping[str, Any]) -> Resources:
    """Return what the scheduler keeps for a pod, by its spec as Kubernetes writes it.

    It is the larger of two sums, with the runtime's overhead: that of all containers which run beside each other, with
    init containers that stay (sidecars), and that of an init container with the sidecars that were started before it.
    """
    sidecars: Resources = {}
    most: Resources = {}
    for container in spec.get("initContainers") or ():
        beside = total([sidecars, _requests(container)])
        if container.get("restartPolicy") == "Always":
            sidecars = beside
        most |= {name: max(amount, most.get(name, Decimal(0))) for name, amount in beside.items()}
    together = total([sidecars, *map(_requests, spec["containers"])])
    most |= {name: max(amount, most.get(name, Decimal(0))) for name, amount in together.items()}
    return total([most, quantities(spec.get("overhead") or {})])


def _requests(container: Mapping[str, Any]) -> Resources:
    resources = container.get("resources") or {}
    # What has a limit and no request asks for its limit.
    return quantities((resources.get("limits") or {}) | (resources.get("requests") or {}))


def quantities(written: Mapping[str, Any]) -> Resources:
    """Return the amounts that Kubernetes writes as quantities."""
    return {name: overlay.amount_of(amount) for name, amount in written.items()}


def total(resources: Iterable[Resources]) -> Resources:
    """Return the sum of resources."""
    summed: Resources = {}
    for each in resources:
        summed |= {name: summed.get(name, Decimal(0)) + amount for name, amount in each.items()}
    return summed


def less(resources: Resources, used: Resources) -> Resources:
    """Return what is left of resources."""
    return {name: amount - used.get(name, Decimal(0)) for name, amount in resources.items()}


def weight(resources: Resources) -> tuple[Decimal, ...]:
    """Return how much resources are: those with a domain in their name, such as GPUs, count most."""
    devices = (amount for name, amount in resources.items() if "/" in name)
    return sum(devices, Decimal(0)), *(resources.get(name, Decimal(0)) for name in ("memory", "cpu"))


def words(resources: Resources) -> str:
    """Return resources in words."""
    return ", ".join(amount_of(name, amount) for name, amount in sorted(resources.items()))


def amount_of(name: str, amount: Decimal) -> str:
    """Return an amount of a resource in words."""
    if name.endswith(("memory", "storage")):
        return f"{amount / _GIB:,.1f} GiB {name}"
    return f"{amount.normalize():f} {name}"


def _tolerates(toleration: Mapping[str, Any], taint: Mapping[str, Any]) -> bool:
    return (
        toleration.get("effect") in (None, "", taint["effect"])
        and toleration.get("key") in (None, "", taint["key"])
        and (toleration.get("operator") == "Exists" or (toleration.get("value") or "") == (taint.get("value") or ""))
    )
