"""The installation as data: its manifests, its pods, and what a network policy says of two of them."""

import ipaddress
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from ray_jobs.launch.kuberay.manifest import job_name, make_ray_job
from wukong.config import documents
from wukong.stages import JOBS
from wukong.stages.ray_job import Settings

FOLDER = Path(__file__).parents[2] / "k8s"
BUILDS = ("overlays/kind", "overlays/gpu", "overlays/external-s3")
"""What `kustomize build` makes of `base`."""

Manifest = dict[str, Any]


class Installation(tuple[Manifest, ...]):
    """Manifests in order; equal only to itself, so that what is derived from it can be remembered."""

    __slots__ = ()
    __hash__ = object.__hash__
    __eq__ = object.__eq__


@cache
def plain() -> Installation:
    """What `kubectl apply -f k8s/` applies, in its order."""
    return Installation(
        document
        for file in sorted(FOLDER.glob("*.yaml"))
        for document in yaml.safe_load_all(file.read_text(encoding="utf-8"))
        if document
    )


@cache
def build(folder: str) -> Installation:
    """What `kustomize build` makes of a folder."""
    command = next((name for name in ("kustomize", "kubectl") if shutil.which(name)), None)
    if command is None:
        pytest.skip("neither kustomize nor kubectl is installed (on Debian: apt-get install kustomize)")
    arguments = [command, "build" if command == "kustomize" else "kustomize", str(FOLDER / folder)]
    made = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr
    return Installation(yaml.safe_load_all(made.stdout))


def installation(name: str) -> Installation:
    """One of the ways to install: `plain` or a folder of ``BUILDS``."""
    return plain() if name == "plain" else build(name)


def named(manifests: Installation, kind: str, namespace: str = "wukong") -> dict[str, Manifest]:
    """The manifests of one kind, by name."""
    return {
        manifest["metadata"]["name"]: manifest
        for manifest in manifests
        if manifest["kind"] == kind and manifest["metadata"].get("namespace", "wukong") == namespace
    }


@dataclass(frozen=True)
class Pod:
    """A pod template: where it comes from, its labels and its spec."""

    owner: str
    labels: Mapping[str, str]
    spec: Manifest = field(hash=False)

    @property
    def containers(self) -> list[Manifest]:
        return [*self.spec.get("initContainers", []), *self.spec["containers"]]

    @property
    def ports(self) -> dict[str, int]:
        """Named ports, with their numbers."""
        return {p["name"]: p["containerPort"] for container in self.containers for p in container.get("ports", [])}

    @property
    def volumes(self) -> list[Manifest]:
        return list(self.spec.get("volumes", []))


@cache
def pods(manifests: Installation) -> list[Pod]:
    """Every pod the installation brings, those of RayJobs and RayServices included."""
    found = []
    for manifest in manifests:
        owner = f"{manifest['kind']}/{manifest['metadata']['name']}"
        match manifest["kind"]:
            case "Deployment" | "StatefulSet" | "Job":
                template = manifest["spec"]["template"]
            case "CronJob":
                template = manifest["spec"]["jobTemplate"]["spec"]["template"]
            case "RayService":
                head = manifest["spec"]["rayClusterConfig"]["headGroupSpec"]["template"]
                labels = {**head["metadata"]["labels"], "ray.io/node-type": "head"}
                template = {**head, "metadata": {**head["metadata"], "labels": labels}}
            case _:
                continue
        spec = dict(template["spec"])
        claims = manifest["spec"].get("volumeClaimTemplates", [])
        spec["volumes"] = [
            *spec.get("volumes", []),
            *({"name": claim["metadata"]["name"], "persistentVolumeClaim": {"claimName": "own"}} for claim in claims),
        ]
        found.append(Pod(owner, template["metadata"]["labels"], spec))
    for stage, job in ray_jobs(manifests).items():
        found += ray_pods(stage, job)
    return found


@cache
def ray_jobs(manifests: Installation) -> dict[str, Manifest]:
    """The RayJob of each stage, as the launcher makes it; training stages with a GPU for each worker."""
    data = named(manifests, "ConfigMap")["ray-job"]["data"]
    template = yaml.safe_load(data["template.yaml"])
    settings = Settings.model_validate(yaml.safe_load(data["settings.yaml"]))
    with_gpus = {"workers": 2, "gpus_per_worker": 1}
    crawl = {"queries": "s3://wukong/queries.txt", "endpoint": "https://search.invalid"}
    experiment = documents.parse({"name": "demo", "crawl": crawl, "pretrain": with_gpus, "finetune": with_gpus})
    made = {}
    for stage in JOBS:
        entrypoint = ["python", "-m", "ray_jobs", stage]
        body = make_ray_job(template, settings, experiment, "nightly", stage, entrypoint, {"A": "b"})
        body["metadata"] |= {"name": job_name(experiment, "nightly", stage, 1), "namespace": "wukong"}
        made[stage] = body
    return made


def ray_pods(stage: str, job: Manifest) -> list[Pod]:
    """The pods of a RayJob, with the labels that KubeRay adds."""
    cluster = job["spec"]["rayClusterSpec"]
    templates = {
        "head": cluster["headGroupSpec"]["template"],
        "worker": cluster["workerGroupSpecs"][0]["template"],
        "submitter": job["spec"]["submitterPodTemplate"],
    }
    return [
        Pod(f"RayJob/{stage}/{role}", {**template["metadata"]["labels"], "ray.io/node-type": role}, template["spec"])
        for role, template in templates.items()
    ]


def selects(selector: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    """Whether a label selector matches; an empty one matches everything."""
    wanted = selector.get("matchLabels", {})
    if not wanted.items() <= dict(labels).items():
        return False
    for rule in selector.get("matchExpressions", []):
        assert rule["operator"] == "In", rule
        if labels.get(rule["key"]) not in rule["values"]:
            return False
    return True


@dataclass(frozen=True)
class Elsewhere:
    """An end of a connection outside the namespace: a pod by its namespace and labels, or an address."""

    namespace: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    address: str = ""


def allowed(manifests: Installation, source: Pod | Elsewhere, target: Pod | Elsewhere, port: int) -> bool:
    """Whether the policies let a connection through: out of its source and into its target (TCP, or UDP for 53)."""
    policies = [manifest for manifest in manifests if manifest["kind"] == "NetworkPolicy"]
    return _lets(policies, "Egress", source, target, port) and _lets(policies, "Ingress", target, source, port)


def _lets(policies: list[Manifest], direction: str, pod: Pod | Elsewhere, peer: Pod | Elsewhere, port: int) -> bool:
    if isinstance(pod, Elsewhere):
        return True  # nobody here says what others may do
    applying = [
        policy["spec"]
        for policy in policies
        if direction in policy["spec"]["policyTypes"] and selects(policy["spec"]["podSelector"], pod.labels)
    ]
    key, ends = ("egress", "to") if direction == "Egress" else ("ingress", "from")
    rules = [rule for spec in applying for rule in spec.get(key) or []]
    return not applying or any(
        (not rule.get("ports") or any(entry["port"] == port for entry in rule["ports"]))
        and (not rule.get(ends) or any(_is(entry, peer) for entry in rule[ends]))
        for rule in rules
    )


def _is(peer: Mapping[str, Any], other: Pod | Elsewhere) -> bool:
    if block := peer.get("ipBlock"):
        if not isinstance(other, Elsewhere) or not other.address:
            return False
        address = ipaddress.ip_address(other.address)
        if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
            address = address.ipv4_mapped  # the kernel sends an IPv4 packet
        return address in ipaddress.ip_network(block["cidr"]) and not any(
            address in ipaddress.ip_network(left_out) for left_out in block.get("except", [])
        )
    if isinstance(other, Elsewhere) and other.address:
        return False
    labels = other.labels
    namespace = "wukong" if isinstance(other, Pod) else other.namespace
    if "namespaceSelector" in peer:
        if not selects(peer["namespaceSelector"], {"kubernetes.io/metadata.name": namespace}):
            return False
    elif namespace != "wukong":
        return False
    return selects(peer.get("podSelector", {}), labels)


def strings(value: Any) -> Iterator[str]:
    """Every string inside a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for entry in value.values():
            yield from strings(entry)
    elif isinstance(value, (list, tuple)):
        for entry in value:
            yield from strings(entry)


def tag_of(image: str) -> str:
    """An image's tag; empty when it has none."""
    match = re.fullmatch(r"[^@:]+(?::\d+/[^@:]+)?(?::([^@]+))?(?:@sha256:[0-9a-f]{64})?", image)
    assert match, image
    return match[1] or ""
