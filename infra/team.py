"""Makes a team on a cluster, or what it lacks: ``python -m infra.team NAME``; ``--delete`` takes it away again.

A team is a namespace. In it are the accounts of its people and components, its credentials, settings, policies and
quota; the components of its pipelines and its RayJobs run there. Its S3 keys open ``s3://wukong/teams/NAME`` alone, its
users of MLflow the workspace NAME alone (``wukong.stages.access``, ``infra.cluster``). Much of this is a copy of what
the installation has in its own namespace, so it is run again after an upgrade, for each team.

An operator runs this, with a kubeconfig that may change all of it. MLflow is reached from inside the cluster alone, so
a Job of the installation's image makes the users there. SeaweedFS learns its keys when it starts, and is started again.
"""

import argparse
import copy
import hashlib
import json
import logging
import re
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from infra import s3_keys
from infra.cluster import MLFLOW_USERS
from infra.cluster_api import Cluster, Manifest
from infra.cluster_secrets import Secrets, mlflow_user, s3_key
from wukong.errors import ConfigError, StackError, WukongError
from wukong.runtime import forwarded, logs
from wukong.stages import access
from wukong.tracking.mlflow_rest import WORKSPACE

HOME = "wukong"
"""The namespace of the installation."""
LABEL = "wukong/team"
"""Label of a team's namespace, by which policies know it; its value is the team's name."""
MANIFESTS = Path(__file__).parents[1] / "k8s" / "team"

_NAME = re.compile(r"[a-z]([-a-z0-9]{0,28}[a-z0-9])")
_TAKEN = (HOME, "default", "kubeflow", "monitoring", "kuberay-system", "workspaces", "api", "ajax-api", "static-files")
_OF_KFP = "mlpipeline-minio-artifact"  # KFP's and Argo's name of the Secret with the key of artifacts
_COPIED_POLICIES = ("default-deny", "dns", "to-object-store", "ray", "crawler", "metrics")
_SERVERS = ("object-store", "mlflow")  # what these policies lead to, which stays in the namespace of the installation
_SECONDS = 600.0
_PAUSE = 2.0
_LABELS = {"app.kubernetes.io/name": "wukong", "app.kubernetes.io/component": "team"}

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Quota:
    """What a team may ask for at once: cores, memory as Kubernetes writes it, and GPUs."""

    cpu: str = "16"
    memory: str = "64Gi"
    gpus: str = "0"


def make(name: str, quota: Quota, *, seconds: float = _SECONDS) -> None:
    """Make a team, or what it lacks.

    A Secret that exists is kept. So where the object store is the operator's own, they make the team's ``wukong-s3``
    first, with a key that opens the team's prefix alone; the others are copies of it unless they exist too.

    Args:
        name: the team's, and its namespace's.
        quota: what it may ask for at once.
        seconds: how long to wait for the Job that makes its users of MLflow.

    Raises:
        ConfigError: it cannot be called so.
        StackError: the namespace is somebody else's, the installation is not ready for teams, or the cluster refuses.
    """
    _check_name(name)
    cluster = Cluster()
    secrets = Secrets(cluster)
    _check_installation(cluster)
    settings, job = (_config_map(cluster, each) for each in ("wukong-settings", "ray-job"))
    existing = cluster.get("v1", "Namespace", name)
    if existing is not None and existing["metadata"].get("labels", {}).get(LABEL) != name:
        raise StackError(
            f"there is a namespace {name}, and it is no team's. If it is to be this one's: "
            f"kubectl label namespace {name} {LABEL}={name}"
        )
    cluster.apply(_namespace(name))
    pulled = _copy_pull_secrets(cluster, name)
    for manifest in _from_files(name, "access.yaml"):
        if manifest["kind"] == "ServiceAccount" and pulled:
            manifest["imagePullSecrets"] = pulled
        cluster.apply(manifest)
    for manifest in (*_config_maps(cluster, name, settings, job), *_policies(cluster, name)):
        cluster.apply(manifest)
    for manifest in _quota(cluster, name, quota, job):
        cluster.apply(manifest)
    ours = cluster.get("apps/v1", "StatefulSet", "object-store", HOME) is not None
    _make_s3_keys(secrets, name, ours=ours)
    users = {
        "stages": secrets.get_or_create(name, "wukong-mlflow", lambda: mlflow_user(f"{name}-stages")),
        "runs": secrets.get_or_create(name, "runs-mlflow", lambda: mlflow_user(f"{name}-runs")),
        "search": secrets.get_or_create(name, "search-mlflow", lambda: mlflow_user(f"{name}-search")),
    }
    secrets.put(HOME, f"team-{name}", _variables(users))
    _run_in_cluster(cluster, name, ["--team", name], seconds)
    log.info("The team %s is ready. Its experiments have storage: %s", name, access.storage_of_team(name))


def delete(name: str, *, seconds: float = _SECONDS) -> None:
    """Take a team away: its namespace with all that is in it, its keys, its users of MLflow, its quota.

    Its data in the object store, its workspace of MLflow and what KFP has recorded of its runs stay.

    Args:
        name: the team's.
        seconds: how long to wait for the Job that deletes its users of MLflow.

    Raises:
        ConfigError: no team is called so.
        StackError: the namespace is somebody else's, or the cluster refuses.
    """
    _check_name(name)
    cluster = Cluster()
    secrets = Secrets(cluster)
    existing = cluster.get("v1", "Namespace", name)
    if existing is not None:
        if existing["metadata"].get("labels", {}).get(LABEL) != name:
            raise StackError(f"the namespace {name} is no team's; nothing is deleted")
        cluster.delete("v1", "Namespace", name)
    _put_identities(secrets, name, [])
    if secrets.get(HOME, f"team-{name}") is not None:
        _run_in_cluster(cluster, name, ["--delete"], seconds)
        cluster.delete("v1", "Secret", f"team-{name}", HOME)
    if cluster.get("apiextensions.k8s.io/v1", "CustomResourceDefinition", "clusterqueues.kueue.x-k8s.io"):
        cluster.delete("kueue.x-k8s.io/v1beta2", "ClusterQueue", name)
    log.info("The team %s is gone. Its data are kept in %s", name, access.storage_of_team(name))


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name) or name in _TAKEN or name.startswith("kube-"):
        raise ConfigError(
            f"a team cannot be called {name!r}: use 2 to 30 lower-case letters, digits and hyphens, beginning with a "
            "letter, and no name of a namespace that the cluster's own services have"
        )


def _check_installation(cluster: Cluster) -> None:
    """Refuse to make a team whose experiments everybody would see."""
    server = cluster.get("apps/v1", "Deployment", "mlflow", HOME)
    if server is None:
        raise StackError(f"there is no MLflow in the namespace {HOME}: install the platform first")
    container = server["spec"]["template"]["spec"]["containers"][0]
    if {"name": "MLFLOW_ENABLE_WORKSPACES", "value": "true"} not in container.get("env", []):
        raise StackError(
            "MLflow has no workspaces here: name k8s/components/teams under `components` in your overlay, and apply it"
        )


def _config_map(cluster: Cluster, name: str) -> dict[str, str]:
    found = cluster.get("v1", "ConfigMap", name, HOME)
    if found is None:
        raise StackError(f"there is no ConfigMap {HOME}/{name}: install the platform first")
    return dict(found["data"])


def _object(version: str, kind: str, name: str, namespace: str = "", **more: Any) -> Manifest:
    place = {"namespace": namespace} if namespace else {}
    return {"apiVersion": version, "kind": kind, "metadata": {"name": name, **place, "labels": dict(_LABELS)}, **more}


def _namespace(name: str) -> Manifest:
    """Its pods meet the restricted standard as far as they are ours; some of KFP's and Argo's do not."""
    made = _object("v1", "Namespace", name)
    standards = {"enforce": "baseline", "audit": "restricted", "warn": "restricted"}
    made["metadata"]["labels"] |= {LABEL: name}
    made["metadata"]["labels"] |= {f"pod-security.kubernetes.io/{mode}": value for mode, value in standards.items()}
    return made


def _from_files(name: str, *files: str) -> Iterator[Manifest]:
    """The manifests of files of ``k8s/team``, in the namespace of a team."""
    for file in files:
        for manifest in yaml.safe_load_all((MANIFESTS / file).read_text(encoding="utf-8")):
            manifest["metadata"]["namespace"] = name
            for subject in manifest.get("subjects", []):
                subject["namespace"] = name
            yield manifest


def _config_maps(
    cluster: Cluster, name: str, settings: Mapping[str, str], job: Mapping[str, str]
) -> Iterator[Manifest]:
    """The installation's, for this team, and those that tell KFP and Argo where to keep what they keep of its runs."""
    own = {**settings, "WUKONG_CLUSTER": name, WORKSPACE: name}
    yield _object("v1", "ConfigMap", "wukong-settings", name, data=own)
    # A key of each RayJob's own is made in the namespace of the installation alone (k8s/components/stage-keys).
    shared = {key: value for key, value in job.items() if key != "keys.yaml"}
    yield _object("v1", "ConfigMap", "ray-job", name, data=shared)
    authority = cluster.get("v1", "ConfigMap", forwarded.STORE_CA[0], HOME)
    if authority is not None:
        yield _object("v1", "ConfigMap", forwarded.STORE_CA[0], name, data=authority["data"])
    endpoint, below = settings.get("AWS_ENDPOINT_URL_S3", ""), f"{access.storage_of_team(name)}/kfp"
    insecure, host = endpoint.startswith("http://"), endpoint.partition("://")[2].rstrip("/")
    reference = {"secretName": _OF_KFP, "accessKeyKey": "accesskey", "secretKeyKey": "secretkey"}
    provider = {
        "endpoint": host,
        "region": settings.get("AWS_REGION", ""),
        "disableSSL": insecure,
        "forcePathStyle": settings.get("WUKONG_S3_ADDRESSING") != "virtual",
        "credentials": {"fromEnv": False, "secretRef": reference},
    }
    launcher = {"defaultPipelineRoot": below, "providers": yaml.safe_dump({"s3": {"default": provider}})}
    yield _object("v1", "ConfigMap", "kfp-launcher", name, data=launcher)
    bucket, _, prefix = below.removeprefix("s3://").partition("/")
    logs = {
        "endpoint": host,
        "bucket": bucket,
        "region": settings.get("AWS_REGION", ""),
        "keyFormat": f"{prefix}/logs/{{{{workflow.name}}}}/{{{{pod.name}}}}",
        "insecure": insecure,
        "accessKeySecret": {"name": _OF_KFP, "key": "accesskey"},
        "secretKeySecret": {"name": _OF_KFP, "key": "secretkey"},
    }
    repository = {"team": yaml.safe_dump({"archiveLogs": True, "s3": logs})}
    made = _object("v1", "ConfigMap", "artifact-repositories", name, data=repository)
    made["metadata"]["annotations"] = {"workflows.argoproj.io/default-artifact-repository": "team"}
    yield made


def _policies(cluster: Cluster, name: str) -> Iterator[Manifest]:
    """Network policies: those of Ray's pods as the installation has them, and that of components."""
    version, found = "networking.k8s.io/v1", dict[str, Manifest]()
    for policy in _COPIED_POLICIES:
        existing = cluster.get(version, "NetworkPolicy", policy, HOME)
        if existing is None:
            raise StackError(f"there is no NetworkPolicy {HOME}/{policy}: install the platform first")
        found[policy] = copy.deepcopy(existing["spec"])
        for rule in found[policy].get("egress", []):
            if "to" in rule:
                rule["to"] = [_elsewhere(peer) for peer in rule["to"]]
        yield _object(version, "NetworkPolicy", policy, name, spec=found[policy])
    (components,) = _from_files(name, "network.yaml")
    components["spec"]["egress"] += found["to-object-store"]["egress"]
    yield components
    budget = cluster.get("policy/v1", "PodDisruptionBudget", "ray-head", HOME)
    if budget is not None:
        yield _object("policy/v1", "PodDisruptionBudget", "ray-head", name, spec=budget["spec"])


def _elsewhere(peer: Manifest) -> Manifest:
    """A peer of a policy of the installation's namespace, seen from another one."""
    labels = peer.get("podSelector", {}).get("matchLabels", {})
    if labels.get("app.kubernetes.io/component") in _SERVERS and "namespaceSelector" not in peer:
        return {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": HOME}}, **peer}
    return peer


def _quota(cluster: Cluster, name: str, quota: Quota, job: Mapping[str, str]) -> Iterator[Manifest]:
    """A queue of Kueue where the installation has one, in the same cohort; else a quota of Kubernetes'.

    A quota of Kubernetes' refuses what Kueue has admitted with what another team lends, so there is never both.
    """
    said = [yaml.safe_load(job.get(key, "")) or {} for key in ("settings.yaml", "queue.yaml")]
    if local := next((each["queue"] for each in said if each.get("queue")), None):
        version = "kueue.x-k8s.io/v1beta2"
        theirs = cluster.get(version, "LocalQueue", local, HOME)
        model = cluster.get(version, "ClusterQueue", theirs["spec"]["clusterQueue"]) if theirs else None
        if model is None:
            raise StackError(f"the ConfigMap {HOME}/ray-job names the queue {local}, and there is none")
        spec = {key: value for key, value in model["spec"].items() if key != "stopPolicy"}
        spec["namespaceSelector"] = {"matchLabels": {"kubernetes.io/metadata.name": name}}
        spec["resourceGroups"] = [_with_quota(group, quota) for group in spec["resourceGroups"]]
        yield _object(version, "ClusterQueue", name, spec=spec)
        yield _object(version, "LocalQueue", local, name, spec={"clusterQueue": name})
        return
    for manifest in _from_files(name, "quota.yaml"):
        if manifest["kind"] == "ResourceQuota":
            amounts = {"cpu": quota.cpu, "memory": quota.memory, "nvidia.com/gpu": quota.gpus}
            manifest["spec"]["hard"] = {f"requests.{resource}": amount for resource, amount in amounts.items()}
        yield manifest


def _with_quota(group: Manifest, quota: Quota) -> Manifest:
    """A group of resources in which the team has its quota of the first flavor; of the others it borrows."""
    amounts = {"cpu": quota.cpu, "memory": quota.memory, "nvidia.com/gpu": quota.gpus}
    flavors = []
    for number, flavor in enumerate(group["flavors"]):
        named = [resource["name"] for resource in flavor["resources"]]
        own = [{"name": each, "nominalQuota": "0" if number else amounts.get(each, "0")} for each in named]
        flavors.append({"name": flavor["name"], "resources": own})
    return {"coveredResources": group["coveredResources"], "flavors": flavors}


def _copy_pull_secrets(cluster: Cluster, name: str) -> list[dict[str, str]]:
    """Copy what the installation pulls images with; a node takes it from the pod's own namespace alone."""
    account = cluster.get("v1", "ServiceAccount", "ray", HOME) or {}
    named = [reference["name"] for reference in account.get("imagePullSecrets", [])]
    for each in named:
        found = cluster.get("v1", "Secret", each, HOME)
        if found is None:
            raise StackError(f"the account {HOME}/ray names the pull secret {each}, and there is none")
        made = _object("v1", "Secret", each, name, type=found["type"], data=found["data"])
        cluster.apply(made)
    return [{"name": each} for each in named]


def _make_s3_keys(secrets: Secrets, name: str, *, ours: bool) -> None:
    """Make the team's S3 keys, and tell the object store of them if it is the installation's."""
    if not ours and secrets.get(name, "wukong-s3") is None:
        raise StackError(
            f"the object store is your own: make the Secret {name}/wukong-s3 first, with a key that opens "
            f"{access.storage_of_team(name)} alone. `python -m infra.cluster s3-policy wukong-s3 --team {name}` prints "
            "its policy"
        )
    one = secrets.get_or_create(name, "wukong-s3", s3_key)
    apart = secrets.made_here(name, "wukong-s3")
    allowed = access.s3_keys_of_team(name)
    keys = {each: secrets.get_or_create(name, each, s3_key if apart else lambda: one) for each in allowed}
    of_kfp = {"accesskey": "AWS_ACCESS_KEY_ID", "secretkey": "AWS_SECRET_ACCESS_KEY"}
    secrets.put(name, _OF_KFP, {theirs: keys[access.KEY_OF_KFP][key] for theirs, key in of_kfp.items()})
    if ours:
        actions = {each: s3_keys.actions_for(key) for each, key in allowed.items()}
        _put_identities(secrets, name, s3_keys.identities(keys, actions))


def _put_identities(secrets: Secrets, team: str, identities: list[dict[str, Any]]) -> None:
    """Have SeaweedFS know these identities of a team and no other of it. It is started again if that is new to it."""
    held = secrets.get(HOME, "object-store")
    if held is None:
        return
    known = json.loads(held["s3.json"])["identities"]
    of_teams = [each for each in known if _team_of(each["name"])]
    own = [{**each, "name": f"team-{team}:{each['name']}"} for each in identities]
    # In one order, whoever is made last: what differs in its order alone would start the store again.
    teams = [*own, *(each for each in of_teams if _team_of(each["name"]) != team)]
    teams.sort(key=lambda each: str(each["name"]))
    text = json.dumps({"identities": [*teams, *(each for each in known if each not in of_teams)]})
    if secrets.put(HOME, "object-store", {"s3.json": text}):
        secrets.restart(HOME, "object-store", hashlib.sha256(text.encode()).hexdigest()[:16])


def _team_of(identity: str) -> str:
    """The team that an identity is of; empty for the installation's and other people's."""
    found = re.fullmatch(r"team-([^:]+):.+", identity)
    return found[1] if found else ""


def _variables(users: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """What the Job gets, which makes these users."""
    keys = ("USERNAME", "PASSWORD")
    return {f"{kind.upper()}_{key}": users[kind][f"MLFLOW_TRACKING_{key}"] for kind in MLFLOW_USERS for key in keys}


def _run_in_cluster(cluster: Cluster, team: str, options: list[str], seconds: float) -> None:
    """Have MLflow make a team's users or delete them, by a Job like that which makes the installation's.

    Raises:
        StackError: there is none to be like, or it failed, or did not end in time.
    """
    version, kind = "batch/v1", "Job"
    setups = cluster.items(version, kind, HOME, "app.kubernetes.io/component=setup")
    if not setups:
        raise StackError(f"there is no setup job in the namespace {HOME}: apply the installation again")
    template = setups[-1]["spec"]["template"]
    (container,) = (each for each in template["spec"]["containers"] if each["name"] == "mlflow-users")
    home = [entry for entry in container["env"] if entry["name"] == "HOME"]
    users = {"secretRef": {"name": f"team-{team}"}}
    command = [*container["command"], *options]
    container = {**container, "command": command, "env": home, "envFrom": [*container["envFrom"], users]}
    pod = {**template["spec"], "containers": [container], "initContainers": [], "restartPolicy": "Never"}
    pod["automountServiceAccountToken"] = False
    labels = {"app.kubernetes.io/name": "wukong", "app.kubernetes.io/component": "setup"}  # policies know it by these
    job = _object(version, kind, "", HOME)
    job["metadata"] = {"generateName": f"team-{team}-", "namespace": HOME, "labels": dict(_LABELS)}
    job["spec"] = {
        "backoffLimit": 3,
        "ttlSecondsAfterFinished": 3600,
        "template": {"metadata": {"labels": labels}, "spec": pod},
    }
    name, until = (cluster.create(job) or job)["metadata"]["name"], time.monotonic() + seconds
    log.info("Job %s/%s asks MLflow", HOME, name)
    while True:
        status = (cluster.get(version, kind, name, HOME) or {}).get("status", {})
        ended = {each["type"] for each in status.get("conditions", []) if each["status"] == "True"}
        if "Complete" in ended:
            return
        if "Failed" in ended or time.monotonic() > until:
            how = "has failed" if "Failed" in ended else f"has not ended after {seconds:.0f} s"
            raise StackError(f"the Job {HOME}/{name} {how}: kubectl -n {HOME} logs job/{name}")
        time.sleep(_PAUSE)


def main(arguments: list[str] | None = None) -> int:
    """Make a team, or delete it."""
    logs.start(formatter=logs.PLAIN)
    parser = argparse.ArgumentParser(prog="python -m infra.team", description=__doc__.split("\n", 1)[0])
    parser.add_argument("name", metavar="NAME", help="the team's, and its namespace's")
    parser.add_argument("--cpu", default=Quota.cpu, help="cores that it may ask for at once")
    parser.add_argument("--memory", default=Quota.memory, help="memory that it may ask for at once")
    parser.add_argument("--gpus", default=Quota.gpus, help="GPUs that it may ask for at once")
    parser.add_argument("--delete", action="store_true", help="delete the team; its data stay")
    options = parser.parse_args(arguments)
    try:
        if options.delete:
            delete(options.name)
        else:
            make(options.name, Quota(options.cpu, options.memory, options.gpus))
    except WukongError as error:
        log.error("%s", error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
