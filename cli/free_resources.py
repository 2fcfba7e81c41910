"""Whether the pods of a run fit on the nodes of a cluster as it is now, for ``wukong submit --dry-run``.

The scheduler decides by more than this looks at: affinities, spreading, priorities. An autoscaler may add nodes.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from decimal import Decimal
from typing import Any

from infra.cluster_api import Cluster, ClusterError
from ray_jobs.launch.kuberay import room
from ray_jobs.launch.kuberay.manifest import make_ray_job
from ray_jobs.launch.kuberay.room import Node, Pod, amount_of
from wukong.config.experiment import Experiment
from wukong.stages.ray_job import Settings


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
    pods = [Pod.of(stage, "head", cluster["headGroupSpec"]["template"]["spec"])]
    for group in cluster["workerGroupSpecs"]:
        pods += [Pod.of(stage, "worker", group["template"]["spec"])] * group["replicas"]
    submitter = spec.get("submitterPodTemplate")
    return [*pods, Pod.of(stage, "submitter", submitter["spec"])] if submitter else pods


def nodes(cluster: Cluster) -> list[Node]:
    """Return the nodes of a cluster that take pods, with what their pods leave free.

    Raises:
        ClusterError: the API refuses; nodes and pods of all namespaces are for users who may list them.
    """
    used: dict[str, room.Resources] = {}
    for pod in cluster.items("v1", "Pod"):
        if (name := pod["spec"].get("nodeName")) and pod["status"].get("phase") not in ("Succeeded", "Failed"):
            used[name] = room.total([used.get(name, {}), room.requests_of(pod["spec"]), {"pods": Decimal(1)}])
    open_nodes = (node for node in cluster.items("v1", "Node") if not node["spec"].get("unschedulable"))
    return [Node.of(node, used.get(node["metadata"]["name"], {})) for node in open_nodes]


def unplaced(pods: Iterable[Pod], on: Sequence[Node]) -> list[Pod]:
    """Return the pods that find no node: those that ask for most choose first, each the node that has least to spare.

    Args:
        pods: all at the same time.
        on: the nodes, which stay as they are.
    """
    left = list(on)
    without = []
    for pod in sorted(pods, key=lambda pod: room.weight(pod.requests), reverse=True):
        fitting = [node for node in left if node.takes(pod)]
        if not fitting:
            without.append(pod)
            continue
        node = min(fitting, key=lambda node: room.weight(node.free))
        left[left.index(node)] = replace(node, free=room.less(node.free, pod.requests | {"pods": Decimal(1)}))
    return without


def unfit(cluster: Cluster, namespace: str, jobs: Mapping[str, Sequence[Pod]]) -> tuple[list[str], list[str]]:
    """Say which stages' pods do not fit, on the nodes and in the quotas of their namespace.

    Args:
        cluster: that of the pods.
        namespace: the one of the pods.
        jobs: the pods by stage; stages do not run at the same time.

    Returns:
        A line for each group of pods without a place, and a line for each thing that the user may not see.
    """
    lines: list[str] = []
    unseen: list[str] = []
    for look, what in ((_on_nodes, "nodes and their pods"), (_in_quotas, "the namespace's quotas")):
        try:
            lines += look(cluster, namespace, jobs)
        except ClusterError as error:
            unseen.append(f"not looked at: {what} ({error.reason}); whoever may list them sees whether all fits")
    return lines, unseen


def _on_nodes(cluster: Cluster, _namespace: str, jobs: Mapping[str, Sequence[Pod]]) -> Iterator[str]:
    seen = nodes(cluster)
    for stage, pods in jobs.items():
        without = unplaced(pods, seen)
        for role in dict.fromkeys(pod.role for pod in without):
            example = next(pod for pod in without if pod.role == role)
            count = sum(pod.role == role for pod in without)
            yield (
                f"{stage}: {count} of {sum(pod.role == role for pod in pods)} pods ({role}) fit on no node now: each "
                f"asks for {example.asks}; {room.roomiest(example, seen)}"
            )


def _in_quotas(cluster: Cluster, namespace: str, jobs: Mapping[str, Sequence[Pod]]) -> Iterator[str]:
    for quota in cluster.items("v1", "ResourceQuota", namespace):
        hard, used = (room.quantities(quota["status"].get(key, {})) for key in ("hard", "used"))
        for stage, pods in jobs.items():
            asked = room.total(pod.requests for pod in pods)
            asked |= {f"requests.{name}": amount for name, amount in asked.items()} | {"pods": Decimal(len(pods))}
            for name in hard.keys() & asked.keys():
                free = hard[name] - used.get(name, Decimal(0))
                if asked[name] > free:
                    yield (
                        f"{stage}: its pods ask for {amount_of(name, asked[name])}, and the quota "
                        f"{quota['metadata']['name']} of the namespace {namespace} leaves {amount_of(name, free)}"
                    )
