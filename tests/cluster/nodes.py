"""The nodes of the cluster: which may be lost, where pods are put, and the program with which an operator loses one.

``WUKONG_NODES`` names the program. It is run as ``PROGRAM VERB NODE``: ``kill`` takes the machine away without a word
to Kubernetes, ``cut`` takes its network away and ``join`` gives it back, ``add`` makes a node of that name.
"""

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import kube
import pytest
import yaml

VARIABLE = "WUKONG_NODES"
NOTICED = 180.0
"""Seconds in which Kubernetes notices that a node does not answer; by default it takes 50."""
OUT_OF_SERVICE = "node.kubernetes.io/out-of-service"
_BEFORE = "wukong/before-test"
_RESERVED = "wukong/reserved-by-test"
"""The annotation with what the ConfigMap ``ray-job`` held before a test changed it."""

Change = Callable[[dict[str, Any], dict[str, Any]], None]
"""What is changed in the template and the settings of RayJobs."""


def program() -> str:
    """The operator's program; without one the test is skipped."""
    found = os.environ.get(VARIABLE)
    if not found:
        pytest.skip(f"{VARIABLE} names no program that loses nodes: PROGRAM kill|cut|join|add NODE")
    return found


def do(verb: str, node: str) -> None:
    """Have the operator's program do something to a node."""
    print(f"{time.strftime('%H:%M:%S')} {verb} {node}", flush=True)
    done = subprocess.run([program(), verb, node], capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, f"{verb} {node}: {done.stdout[-1000:]}{done.stderr[-2000:]}"


def ready() -> list[str]:
    """The nodes that answer and take pods."""
    return [
        node["metadata"]["name"]
        for node in kube.listed("nodes", namespace="*")
        if _answers(node) and not node["spec"].get("unschedulable")
    ]


def _answers(node: kube.Object) -> bool:
    return any(entry["type"] == "Ready" and entry["status"] == "True" for entry in node["status"]["conditions"])


def answers(name: str) -> bool:
    """Whether a node is there and answers."""
    node = kube.get("node", name)
    return node is not None and _answers(node)


def expendable(least: int = 1) -> list[str]:
    """The nodes that hold nothing but pods of runs: no server of the platform, of KFP, or of the cluster.

    Args:
        least: how many are needed; with fewer the test is skipped.
    """
    held = {
        pod["spec"].get("nodeName")
        for pod in kube.listed("pods", namespace="*")
        if pod["status"].get("phase") in ("Pending", "Running") and not _may_be_lost(pod)
    }
    found = [name for name in ready() if name not in held]
    if len(found) < least:
        pytest.skip(f"of the nodes {', '.join(ready())} only {len(found)} hold no server, and {least} are needed")
    return found


def only_of(server: str) -> str:
    """The node of a server's pod, where no other server runs; else the test is skipped."""
    node = str((kube.get("pod", server) or {})["spec"]["nodeName"])
    others = [
        pod["metadata"]["name"] for pod in _pods_on(node) if not _may_be_lost(pod) and pod["metadata"]["name"] != server
    ]
    if others:
        pytest.skip(f"{server} is on {node} beside other servers: {', '.join(others)}")
    return node


def _may_be_lost(pod: kube.Object) -> bool:
    """A pod of a run, one of the test's own, or one that every node has."""
    labels = pod["metadata"].get("labels", {})
    of_run = "workflows.argoproj.io/workflow" in labels or labels.get("app.kubernetes.io/component") == "ray"
    return of_run or "wukong/test" in labels or _is_of_every_node(pod)


@contextmanager
def ray_jobs(change: Change) -> Iterator[None]:
    """Change how RayJobs are made, for as long as the block lasts; what a killed session has left is not kept."""
    found = kube.get("configmap", "ray-job") or {}
    left = found["metadata"].get("annotations", {}).get(_BEFORE)
    before = json.loads(left) if left else found["data"]
    template, settings = (yaml.safe_load(before[name]) for name in ("template.yaml", "settings.yaml"))
    change(template, settings)
    _store({"template.yaml": yaml.safe_dump(template), "settings.yaml": yaml.safe_dump(settings)}, json.dumps(before))
    try:
        yield
    finally:
        _store(before, None)


def _store(data: Mapping[str, str], before: str | None) -> None:
    patch = json.dumps({"metadata": {"annotations": {_BEFORE: before}}, "data": dict(data)})
    kube.kubectl("-n", "wukong", "patch", "configmap", "ray-job", "--type=merge", "-p", patch)


def put(**places: str) -> Change:
    """Put ``head`` and ``workers`` of RayJobs on a node each where there is room, and elsewhere once it is lost."""

    def change(template: dict[str, Any], _: dict[str, Any]) -> None:
        cluster = template["spec"]["rayClusterSpec"]
        pods = {"head": cluster["headGroupSpec"], "workers": cluster["workerGroupSpecs"][0]}
        for name, node in places.items():
            term = {"key": "kubernetes.io/hostname", "operator": "In", "values": [node]}
            wished = [{"weight": 100, "preference": {"matchExpressions": [term]}}]
            pods[name]["template"]["spec"]["affinity"] = {
                "nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": wished}
            }

    return change


def apart(template: dict[str, Any], _: dict[str, Any]) -> None:
    """Put no two Ray workers on one node."""
    workers = template["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]
    term = {"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {"ray.io/node-type": "worker"}}}
    workers["template"]["spec"]["affinity"] = {
        "podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term]}
    }


def together_on(node: str) -> Change:
    """Put all Ray workers on one node, which is ``reserved`` for them."""

    def change(template: dict[str, Any], _: dict[str, Any]) -> None:
        pod = template["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["template"]["spec"]
        pod["nodeSelector"] = {"kubernetes.io/hostname": node}
        pod["tolerations"] = [*pod.get("tolerations", []), {"key": _RESERVED, "operator": "Exists"}]

    return change


@contextmanager
def reserved(node: str) -> Iterator[None]:
    """Keep what tolerates nothing off a node, and leave what is there."""
    kube.kubectl("taint", "nodes", node, f"{_RESERVED}=workers:NoSchedule", "--overwrite")
    try:
        yield
    finally:
        kube.kubectl("taint", "nodes", node, f"{_RESERVED}=workers:NoSchedule-")


def of_ray(cluster: str, kind: str) -> list[str]:
    """The nodes of a Ray cluster's pods of a kind (``head``, ``worker``)."""
    pods = kube.listed("pods", f"ray.io/cluster={cluster},ray.io/node-type={kind}")
    return [pod["spec"]["nodeName"] for pod in pods if "nodeName" in pod["spec"]]


def kill(name: str) -> None:
    """Take a node away, and wait until Kubernetes has noticed."""
    do("kill", name)
    kube.until(f"Kubernetes to notice that {name} is gone", lambda: not answers(name), NOTICED, 1)


def say_it_is_off(name: str) -> None:
    """Tell Kubernetes that a node is off, as docs/operating.md says, and wait until its pods are gone."""
    kube.kubectl("taint", "nodes", name, f"{OUT_OF_SERVICE}=nodeshutdown:NoExecute", "--overwrite")
    kube.until("the end of its pods", lambda: not _pods_on(name), 120, 1)


def give_up(name: str) -> None:
    """Tell Kubernetes that a node is gone for good, as docs/operating.md says."""
    say_it_is_off(name)
    kube.kubectl("delete", "node", name)


def _pods_on(name: str) -> list[kube.Object]:
    """The pods of a node that work, without those that every node has."""
    return [
        pod
        for pod in kube.listed("pods", namespace="*")
        if pod["spec"].get("nodeName") == name
        and pod["status"].get("phase") in ("Pending", "Running")
        and not _is_of_every_node(pod)
    ]


def _is_of_every_node(pod: kube.Object) -> bool:
    return bool({"DaemonSet", "Node"} & {owner["kind"] for owner in pod["metadata"].get("ownerReferences", [])})


def bring_back(name: str) -> None:
    """Make a node that was lost anew."""
    if kube.get("node", name) is not None and not answers(name):
        give_up(name)
    do("add", name)
    kube.until(f"node {name}", lambda: answers(name), 300, 2)


def drain(name: str) -> None:
    """Drain a node as an operator does; pods that a budget keeps stay."""
    # A head keeps its node from being drained while it works (k8s/base/disruption.yaml).
    arguments = ("--ignore-daemonsets", "--delete-emptydir-data", "--force", "--timeout=120s")
    kube.kubectl("drain", name, *arguments, timeout=180)
