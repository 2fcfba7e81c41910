"""The installation without a cluster: schemas, and the rules that a schema cannot say."""

import ipaddress
import json
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import api_server
import crd
import kubernetes_validate
import pytest
import yaml
from manifests import (
    BUILDS,
    FOLDER,
    Elsewhere,
    Installation,
    Manifest,
    Pod,
    allowed,
    build,
    installation,
    named,
    plain,
    pods,
    ray_jobs,
    selects,
    strings,
    tag_of,
)
from typer.testing import CliRunner

from infra import cluster, install_manifest, stage_keys
from ray_jobs.launch.kuberay import room
from wukong.commands.app import app
from wukong.publish.unneeded import DAY, Policy
from wukong.runtime import forwarded
from wukong.stages import JOBS, access
from wukong.stages import ray_job as launcher_settings
from wukong.stages.overlay import amount_of

VERSIONS = ("1.30.0", kubernetes_validate.latest_version())
PROJECT = tomllib.loads((FOLDER.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
(SETUP,) = (f"Job/{manifest['metadata']['name']}" for manifest in plain() if manifest["kind"] == "Job")
ELSEWHERE = {  # what KFP brings
    ("kubeflow", "ServiceAccount", "pipeline-runner"),
}


@pytest.fixture(scope="module", params=["plain", *BUILDS])
def manifests(request: pytest.FixtureRequest) -> Installation:
    return installation(request.param)


@pytest.fixture(scope="module")
def made_secrets(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, dict[str, str]]]:
    """The Secrets that the setup job makes, by making them."""
    folder = tmp_path_factory.mktemp("cluster")
    with pytest.MonkeyPatch.context() as patch, api_server.running(folder, patch) as api:
        for each in plain():
            api.put(each)
        api.secrets["kubeflow/mysql-secret"] = {"username": "root", "password": ""}
        cluster.make_credentials("wukong", "kubeflow")
        yield {key.removeprefix("wukong/"): value for key, value in api.secrets.items() if key.startswith("wukong/")}


# --- files


def test_every_base_file_is_applied_and_built() -> None:
    """`kubectl apply -f k8s/` takes the YAML files of the folder itself; the overlays take those of ``base``."""
    base = {file.name for file in (FOLDER / "base").glob("*.yaml")} - {"kustomization.yaml"}
    listed = yaml.safe_load((FOLDER / "base" / "kustomization.yaml").read_text(encoding="utf-8"))["resources"]
    assert listed == sorted(base)
    assert [file.name for file in FOLDER.iterdir() if file.suffix in (".yaml", ".yml", ".json")] == ["install.yaml"]
    apart = [
        document
        for name in listed
        for document in yaml.safe_load_all((FOLDER / "base" / name).read_text(encoding="utf-8"))
    ]
    assert list(plain()) == apart, "k8s/install.yaml is not what k8s/base says: run `make generate`"


def test_the_installation_file_is_what_make_manifests_writes() -> None:
    base = FOLDER / "base"
    made = {
        base / install_manifest.COMPONENTS_SETTINGS: install_manifest.settings_of_components(base),
        base / "setup.yaml": install_manifest.named_by_content(base),
        FOLDER / "install.yaml": install_manifest.joined(base),
    }
    assert {file: file.read_text(encoding="utf-8") for file in made} == made, "run `make generate`"


def test_the_namespace_comes_first() -> None:
    """Manifests are applied in the order of the file."""
    assert plain()[0]["kind"] == "Namespace"
    assert plain()[0]["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"


def test_base_and_plain_are_the_same() -> None:
    def key(manifest: Manifest) -> tuple[str, ...]:
        return (manifest["kind"], manifest["metadata"].get("namespace", ""), manifest["metadata"]["name"])

    built = {key(manifest): manifest for manifest in installation("base")}
    assert built == {key(manifest): manifest for manifest in plain()}


# --- schemas


@pytest.mark.parametrize("version", VERSIONS)
def test_kubernetes_accepts_it(manifests: Installation, version: str) -> None:
    for manifest in manifests:
        _accepted(json.dumps(manifest, sort_keys=True), version)


@cache
def _accepted(manifest: str, version: str) -> None:
    kubernetes_validate.validate(json.loads(manifest), version, strict=True)


def test_the_schemas_refuse_a_mistake() -> None:
    """So that the test above means something."""
    wrong = json.loads(json.dumps(next(m for m in plain() if m["kind"] == "Deployment")))
    wrong["spec"]["template"]["spec"]["containers"][0]["imagePullPolcy"] = "Always"
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, VERSIONS[0], strict=True)


def test_kuberay_accepts_every_stages_job(manifests: Installation) -> None:
    for stage, job in ray_jobs(manifests).items():
        assert crd.errors(job) == [], stage
        ray_cluster = {"apiVersion": "ray.io/v1", "kind": "RayCluster", "spec": job["spec"]["rayClusterSpec"]}
        assert crd.errors(ray_cluster) == [], stage
        assert len(job["metadata"]["name"]) <= 47


def test_kuberays_schema_refuses_a_mistake() -> None:
    job = json.loads(json.dumps(ray_jobs(plain())["filter"]))
    job["spec"]["shutdownAfterJobFinish"] = True
    job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]["image"] = 7
    assert len(crd.errors(job)) == 2


def test_there_are_settings_for_every_stage(manifests: Installation) -> None:
    data = named(manifests, "ConfigMap")["ray-job"]["data"]
    assert set(yaml.safe_load(data["settings.yaml"])["stages"]) == set(JOBS)


# --- references


def test_workloads_select_their_own_pods(manifests: Installation) -> None:
    workloads = [m for m in manifests if m["kind"] in ("Deployment", "StatefulSet")]
    for workload in workloads:
        matching = [w for w in workloads if selects(workload["spec"]["selector"], _labels(w))]
        assert matching == [workload], workload["metadata"]["name"]


def _labels(workload: Manifest) -> dict[str, str]:
    labels: dict[str, str] = workload["spec"]["template"]["metadata"]["labels"]
    return labels


def test_services_lead_to_a_port_that_listens(manifests: Installation) -> None:
    for name, service in named(manifests, "Service").items():
        targets = [pod for pod in pods(manifests) if selects({"matchLabels": service["spec"]["selector"]}, pod.labels)]
        assert len(targets) == 1, name
        for port in service["spec"]["ports"]:
            assert port["targetPort"] in targets[0].ports, (name, port)
    for name, workload in named(manifests, "StatefulSet").items():
        assert workload["spec"]["serviceName"] in named(manifests, "Service"), name


def test_probes_ask_a_port_that_listens(manifests: Installation) -> None:
    for pod in pods(manifests):
        for container in pod.containers:
            for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
                if "httpGet" in container.get(probe, {}):
                    assert container[probe]["httpGet"]["port"] in pod.ports, pod.owner


def test_every_secret_config_map_and_key_exists(
    manifests: Installation, made_secrets: dict[str, dict[str, str]]
) -> None:
    maps = {name: set(manifest["data"]) for name, manifest in named(manifests, "ConfigMap").items()}
    secrets = {name: set(value) for name, value in made_secrets.items()}
    claims = named(manifests, "PersistentVolumeClaim")
    used = set()
    for pod in pods(manifests):
        for container in pod.containers:
            for source in container.get("envFrom", []):
                if "secretRef" in source:
                    used.add(source["secretRef"]["name"])
                    assert source["secretRef"]["name"] in secrets, pod.owner
                else:
                    assert source["configMapRef"]["name"] in maps, pod.owner
            for entry in container.get("env", []):
                if reference := entry.get("valueFrom", {}).get("configMapKeyRef"):
                    assert reference["key"] in maps[reference["name"]], (pod.owner, reference)
                if reference := entry.get("valueFrom", {}).get("secretKeyRef"):
                    used.add(reference["name"])
                    assert reference["key"] in secrets[reference["name"]], (pod.owner, reference)
        for volume in pod.volumes:
            if "secret" in volume:
                used.add(volume["secret"]["secretName"])
                for item in volume["secret"].get("items", []):
                    assert item["key"] in secrets[volume["secret"]["secretName"]], pod.owner
                assert volume["secret"]["secretName"] in secrets, pod.owner
            if "configMap" in volume and not volume["configMap"].get("optional"):
                assert volume["configMap"]["name"] in maps, pod.owner
            if (claim := volume.get("persistentVolumeClaim", {}).get("claimName")) not in (None, "own"):
                assert claim in claims, pod.owner
    unused = secrets.keys() - used
    # Where the store is not SeaweedFS, nothing reads its identities.
    # The search page and what deletes old outputs are components of overlays; pipelines' components are elsewhere.
    elsewhere = {"object-store", "search-s3", "wukong-s3", *access.copied_to_components()}
    assert unused <= elsewhere, "a credential that nobody needs should not be made"


def test_every_mount_has_its_volume_and_every_volume_its_mount(manifests: Installation) -> None:
    for pod in pods(manifests):
        mounted = {mount["name"] for container in pod.containers for mount in container.get("volumeMounts", [])}
        assert mounted == {volume["name"] for volume in pod.volumes}, pod.owner


def test_every_service_account_and_role_exists(manifests: Installation) -> None:
    accounts = set(named(manifests, "ServiceAccount"))
    for pod in pods(manifests):
        assert pod.spec["serviceAccountName"] in accounts, pod.owner
    for manifest in manifests:
        if manifest["kind"] != "RoleBinding":
            continue
        namespace = manifest["metadata"]["namespace"]
        assert manifest["roleRef"]["name"] in named(manifests, "Role", namespace)
        for subject in manifest["subjects"]:
            known = subject["namespace"] == "wukong" and subject["name"] in accounts
            assert known or (subject["namespace"], subject["kind"], subject["name"]) in ELSEWHERE


def test_only_the_overlay_with_gpus_lets_the_launcher_see_nodes() -> None:
    """The accounts that launch RayJobs, and no others; the other installations have no right outside of namespaces."""
    for name in ("plain", *BUILDS):
        kinds = [manifest["kind"] for manifest in installation(name)]
        assert kinds.count("ClusterRole") == kinds.count("ClusterRoleBinding") == (name == "overlays/gpu"), name
    found = {m["kind"]: m for m in build("overlays/gpu") if m["metadata"]["name"] == "wukong-see-nodes"}
    assert found["ClusterRoleBinding"]["roleRef"]["name"] == found["ClusterRole"]["metadata"]["name"]
    launchers = named(build("overlays/gpu"), "RoleBinding")["ray-job-launcher"]["subjects"]
    assert found["ClusterRoleBinding"]["subjects"] == launchers


def test_the_setup_job_may_do_what_it_does(manifests: Installation, made_secrets: dict[str, Any]) -> None:
    """It may read exactly the Secrets it makes (that it may make them is tested against the API, under its Roles)."""
    readable = {
        name
        for rule in named(manifests, "Role")["setup"]["rules"]
        if "secrets" in rule["resources"] and "get" in rule["verbs"]
        for name in rule["resourceNames"]
    }
    assert readable == set(made_secrets)


def test_no_role_is_wider_than_names_and_verbs(manifests: Installation) -> None:
    for manifest in manifests:
        if manifest["kind"] in ("ClusterRole", "ClusterRoleBinding"):
            assert manifest["metadata"]["name"] == "wukong-see-nodes", "nothing else here needs the whole cluster"
        if manifest["kind"] == "ClusterRole":
            assert manifest["rules"] == [{"apiGroups": [""], "resources": ["nodes"], "verbs": ["list"]}]
        for rule in manifest.get("rules", []):
            assert "*" not in [*rule["apiGroups"], *rule["resources"], *rule["verbs"]]
            if "secrets" in rule["resources"]:
                assert rule["verbs"] == ["create"] or rule.get("resourceNames")


# --- pods

ALLOWED_VOLUMES = {"configMap", "emptyDir", "persistentVolumeClaim", "secret", "projected", "downwardAPI", "csi"}


def restricted(spec: Manifest) -> list[str]:
    """What the restricted Pod Security Standard has against a pod."""
    found = [key for key in ("hostNetwork", "hostPID", "hostIPC") if spec.get(key)]
    of_pod = spec.get("securityContext", {})
    for volume in spec.get("volumes", []):
        kinds = volume.keys() - {"name"}
        if not kinds <= ALLOWED_VOLUMES:
            found.append(f"volume {volume['name']}: {kinds}")
    if of_pod.get("sysctls"):
        found.append("sysctls")
    for container in [*spec.get("initContainers", []), *spec["containers"]]:
        own = {**of_pod, **container.get("securityContext", {})}
        checks = {
            "privileged": not own.get("privileged"),
            "allowPrivilegeEscalation": own.get("allowPrivilegeEscalation") is False,
            "runAsNonRoot": own.get("runAsNonRoot") is True,
            "runAsUser": own.get("runAsUser") != 0,
            "seccompProfile": own.get("seccompProfile", {}).get("type") in ("RuntimeDefault", "Localhost"),
            "capabilities.drop": own.get("capabilities", {}).get("drop") == ["ALL"],
            "capabilities.add": set(own.get("capabilities", {}).get("add", [])) <= {"NET_BIND_SERVICE"},
            "procMount": own.get("procMount", "Default") == "Default",
            "hostPort": not any(port.get("hostPort") for port in container.get("ports", [])),
        }
        found += [f"{container['name']}: {name}" for name, holds in checks.items() if not holds]
    return found


def test_every_pod_meets_the_restricted_standard(manifests: Installation) -> None:
    found = {pod.owner: restricted(pod.spec) for pod in pods(manifests)}
    assert {owner: wrong for owner, wrong in found.items() if wrong} == {}
    assert sum(owner.startswith("RayJob/") for owner in found) == 3 * len(JOBS)


def test_the_standard_refuses_a_pod_that_says_nothing() -> None:
    said = restricted({"containers": [{"name": "x", "image": "x"}], "volumes": [{"name": "h", "hostPath": {}}]})
    assert len(said) == 5


def test_pods_are_bounded_and_cannot_write_their_image(manifests: Installation) -> None:
    for pod in pods(manifests):
        for container in pod.containers:
            for bound in ("requests", "limits"):
                assert {"cpu", "memory"} <= container["resources"][bound].keys(), (pod.owner, container["name"])
            assert container["securityContext"]["readOnlyRootFilesystem"] is True, (pod.owner, container["name"])
        for volume in pod.volumes:
            if "emptyDir" in volume:
                assert volume["emptyDir"].get("sizeLimit"), (pod.owner, volume["name"])


def test_only_the_setup_job_gets_a_token(manifests: Installation) -> None:
    with_token = {pod.owner for pod in pods(manifests) if pod.spec.get("automountServiceAccountToken", True)}
    assert with_token == {SETUP}


def test_services_are_probed(manifests: Installation) -> None:
    for workload in manifests:
        if workload["kind"] in ("Deployment", "StatefulSet"):
            for container in workload["spec"]["template"]["spec"]["containers"]:
                assert {"startupProbe", "readinessProbe", "livenessProbe"} <= container.keys()


def test_ray_can_write_what_it_must(manifests: Installation) -> None:
    for pod in pods(manifests):
        if pod.labels["app.kubernetes.io/component"] != "ray" or pod.owner.endswith("/submitter"):
            continue
        mounts = {mount["mountPath"]: mount["name"] for mount in pod.containers[0]["volumeMounts"]}
        volumes = {volume["name"]: volume for volume in pod.volumes}
        assert "emptyDir" in volumes[mounts["/tmp/ray"]], pod.owner
        assert volumes[mounts["/dev/shm"]]["emptyDir"]["medium"] == "Memory", pod.owner


def test_shared_memory_fits_the_memory_limit(manifests: Installation) -> None:
    """What is in /dev/shm counts against the container's memory."""
    for pod in pods(manifests):
        for volume in pod.volumes:
            if volume.get("emptyDir", {}).get("medium") == "Memory":
                limit = pod.containers[0]["resources"]["limits"]["memory"]
                assert amount_of(volume["emptyDir"]["sizeLimit"]) <= amount_of(limit) / 2, pod.owner


def test_rays_objects_fit_in_shared_memory(manifests: Installation) -> None:
    """Ray gives its object store this share of a pod's memory; where /dev/shm is smaller, the store is on the disk."""
    from ray._private.ray_constants import DEFAULT_OBJECT_STORE_MEMORY_PROPORTION as SHARE

    for pod in pods(manifests):
        for volume in pod.volumes:
            if volume["name"] == "shared-memory":
                limit = pod.containers[0]["resources"]["limits"]["memory"]
                assert amount_of(volume["emptyDir"]["sizeLimit"]) >= SHARE * float(amount_of(limit)), pod.owner


def _requests(found: list[Pod]) -> tuple[float, float]:
    """Cores and GiB that the scheduler counts."""
    asked = room.total(room.requests_of(pod.spec) for pod in found)
    return float(asked["cpu"]), float(asked["memory"]) / 1024**3


def test_a_laptop_of_two_cores_has_room() -> None:
    """At rest, and for any stage beside: KFP and the system's own pods need the remainder."""
    manifests = installation("overlays/kind")
    at_rest = [pod for pod in pods(manifests) if pod.owner.startswith(("Deployment/", "StatefulSet/"))]
    assert {pod.owner for pod in at_rest} == {"Deployment/mlflow", "StatefulSet/object-store", "StatefulSet/postgres"}
    cores, memory = _requests(at_rest)
    assert cores <= 0.5
    assert memory <= 1.5
    for stage in JOBS:
        cores, _ = _requests([pod for pod in pods(manifests) if pod.owner.startswith(f"RayJob/{stage}/")])
        assert cores <= 1.5, stage


def test_go_programs_know_their_memory(manifests: Installation) -> None:
    for pod in pods(manifests):
        if pod.labels["app.kubernetes.io/component"] == "object-store":
            (container,) = pod.containers
            (known,) = [entry["value"] for entry in container["env"] if entry["name"] == "GOMEMLIMIT"]
            assert known.endswith("iB")
            share = amount_of(known.removesuffix("B")) / amount_of(container["resources"]["limits"]["memory"])
            assert 0.5 <= share <= 0.75, "room for what Go does not count: mapped files, stacks, the program"


# --- images and secrets


def test_images_have_a_fixed_tag(manifests: Installation) -> None:
    for pod in pods(manifests):
        for container in pod.containers:
            tag = tag_of(container["image"])
            assert tag, container["image"]
            assert tag not in ("latest", "main", "master", "nightly")
            if container["image"].startswith("localhost/wukong/"):
                assert tag.removesuffix("-cuda") == PROJECT, container["image"]


def test_a_new_version_brings_a_new_setup_job(manifests: Installation) -> None:
    """A Job's template cannot be changed, so an upgrade must not try to."""
    (name,) = named(manifests, "Job")
    assert re.fullmatch(rf"setup-{PROJECT.replace('.', '-')}-[0-9a-f]{{8}}", name)


def test_what_the_setup_job_does_is_in_its_name(tmp_path: Path) -> None:
    """So a pinned image or a changed setting brings a new Job, and what it does not read brings none."""
    for file in ("setup.yaml", "settings.yaml"):
        (tmp_path / file).write_text((FOLDER / "base" / file).read_text())
    seen = [install_manifest.named_by_content(tmp_path)]
    for file, old, new in [
        ("setup.yaml", "wukong/data:", "wukong/other:"),
        ("settings.yaml", "us-east-1", "eu-west-1"),
        ("settings.yaml", "# Where things are", "# Where everything is"),
    ]:
        text = (tmp_path / file).read_text()
        assert old in text
        (tmp_path / file).write_text(text.replace(old, new))
        seen.append(install_manifest.named_by_content(tmp_path))
    names = [next(yaml.safe_load_all(text))["metadata"]["name"] for text in seen]
    assert len(set(names)) == 3
    assert names[2] == names[3]


def test_no_secret_is_in_git(manifests: Installation) -> None:
    sensitive = re.compile(r"PASSWORD|SECRET|TOKEN|_KEY$|PWD", re.IGNORECASE)
    in_uri = re.compile(r"://[^/\s:@]+:[^/\s@$]+@")
    for manifest in manifests:
        assert manifest["kind"] != "Secret"
        assert not any(in_uri.search(text) for text in strings(manifest))
    for pod in pods(manifests):
        for container in pod.containers:
            for entry in container.get("env", []):
                assert "value" not in entry or not sensitive.search(entry["name"]), (pod.owner, entry["name"])


def test_only_pods_that_need_a_credential_hold_it(manifests: Installation) -> None:
    """A crawler reads what strangers send. Its key is its stage's; no pod of Ray or KFP may make buckets."""
    held: dict[str, set[str]] = {}
    for pod in pods(manifests):
        for container in pod.containers:
            sources = [source["secretRef"]["name"] for source in container.get("envFrom", []) if "secretRef" in source]
            entries = [entry.get("valueFrom", {}).get("secretKeyRef", {}) for entry in container.get("env", [])]
            for name in [*sources, *(entry["name"] for entry in entries if entry)]:
                held.setdefault(name, set()).add(pod.owner.removesuffix("/head").removesuffix("/worker"))
    assert "wukong-s3" not in held
    for stage in JOBS:
        assert held[f"job-{stage}-s3"] == {f"RayJob/{stage}"}
    assert held["backup-s3"] == {"CronJob/backup-manifests"}
    assert held["runs-mlflow"] == {"RayJob/pretrain", "RayJob/finetune", SETUP}
    assert held["wukong-mlflow"] == {SETUP}
    assert held["mlflow-admin"] == {"Deployment/mlflow", SETUP}
    assert held["mlflow-s3"] == {"Deployment/mlflow"}
    assert held["setup-s3"] == {SETUP}


# --- network


def pod_of(manifests: Installation, owner: str) -> Pod:
    (found,) = [pod for pod in pods(manifests) if pod.owner == owner]
    return found


COMPONENT = Elsewhere("kubeflow", {"pipelines.kubeflow.org/v2_component": "true"})
OPERATOR = Elsewhere("kuberay-system", {"app.kubernetes.io/component": "kuberay-operator"})
IMPOSTOR = Elsewhere("default", {"app.kubernetes.io/component": "kuberay-operator"})
STRANGER = Elsewhere("default", {"app": "shell"})
DNS = Elsewhere("kube-system", {"k8s-app": "kube-dns"})
MYSQL = Elsewhere("kubeflow", {"app": "mysql"})
PROMETHEUS = Elsewhere("monitoring", {"app": "prometheus"})
WEB, METADATA, PRIVATE = Elsewhere(address="93.184.216.34"), Elsewhere(address="169.254.169.254"), "10.1.2.3"


@pytest.mark.parametrize(
    ("source", "target", "port", "expected"),
    [
        ("RayJob/filter/worker", "StatefulSet/object-store", 8333, True),
        ("RayJob/filter/worker", "Deployment/mlflow", 5000, True),
        ("RayJob/filter/worker", "RayJob/filter/head", 6379, True),
        ("RayJob/filter/submitter", "RayJob/filter/head", 8265, True),
        ("RayJob/filter/worker", "StatefulSet/postgres", 5432, False),
        ("RayJob/filter/worker", "StatefulSet/object-store", 9324, False),
        ("RayJob/filter/worker", "StatefulSet/object-store", 18333, False),
        (COMPONENT, "StatefulSet/object-store", 18333, False),
        (PROMETHEUS, "StatefulSet/object-store", 18333, False),
        ("Deployment/mlflow", "StatefulSet/postgres", 5432, True),
        ("Deployment/mlflow", "StatefulSet/object-store", 8333, True),
        ("Deployment/mlflow", WEB, 443, False),
        ("CronJob/backup-mlflow", "StatefulSet/postgres", 5432, True),
        ("CronJob/backup-kfp", MYSQL, 3306, True),
        ("CronJob/backup-manifests", "StatefulSet/object-store", 8333, True),
        (SETUP, Elsewhere(address="10.96.0.1"), 443, True),
        (SETUP, "StatefulSet/object-store", 8333, True),
        (SETUP, "Deployment/mlflow", 5000, True),
        (SETUP, "StatefulSet/postgres", 5432, False),
        (COMPONENT, "StatefulSet/object-store", 8333, True),
        (COMPONENT, "Deployment/mlflow", 5000, True),
        (COMPONENT, "StatefulSet/postgres", 5432, False),
        (COMPONENT, "RayJob/filter/head", 8265, False),
        (OPERATOR, "RayJob/filter/head", 8265, True),
        (OPERATOR, "StatefulSet/object-store", 8333, False),
        (IMPOSTOR, "RayJob/filter/head", 8265, False),
        (STRANGER, "StatefulSet/object-store", 8333, False),
        (STRANGER, "Deployment/mlflow", 5000, False),
        (STRANGER, "RayJob/crawl/head", 8265, False),
        (PROMETHEUS, "RayJob/crawl/worker", 8080, True),
        (PROMETHEUS, "StatefulSet/object-store", 9324, True),
        (PROMETHEUS, "StatefulSet/postgres", 5432, False),
        ("RayJob/crawl/worker", WEB, 443, True),
        ("RayJob/crawl/worker", WEB, 80, True),
        ("RayJob/crawl/worker", Elsewhere(address="2606:2800:220:1::1"), 443, True),
        ("RayJob/crawl/worker", WEB, 22, False),
        ("RayJob/crawl/worker", METADATA, 80, False),
        ("RayJob/crawl/worker", Elsewhere(address=PRIVATE), 80, False),
        ("RayJob/crawl/worker", Elsewhere(address="fd00::1"), 443, False),
        ("RayJob/crawl/worker", Elsewhere(address="::ffff:10.1.2.3"), 443, False),
        ("RayJob/crawl/worker", Elsewhere(address="2002:a01:203::1"), 443, False),
        ("RayJob/crawl/worker", Elsewhere(address="64:ff9b:1::a01:203"), 443, False),
        ("RayJob/filter/worker", WEB, 443, False),
        ("RayJob/pretrain/worker", WEB, 443, False),
        ("StatefulSet/postgres", WEB, 443, False),
        ("StatefulSet/postgres", DNS, 53, True),
        ("RayJob/crawl/worker", DNS, 53, True),
    ],
    ids=str,
)
def test_who_may_reach_whom(source: str | Elsewhere, target: str | Elsewhere, port: int, expected: bool) -> None:
    ends = [pod_of(plain(), end) if isinstance(end, str) else end for end in (source, target)]
    assert allowed(plain(), *ends, port) is expected


def test_exceptions_are_strict_subsets_as_the_api_server_reads_them(manifests: Installation) -> None:
    """Kubernetes' ValidateIPBlock; Go reads an IPv4-mapped network as the IPv4 network that it maps."""

    def read(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
        network = ipaddress.ip_network(text)
        if isinstance(network, ipaddress.IPv6Network) and network.network_address.ipv4_mapped:
            return ipaddress.IPv4Network((network.network_address.ipv4_mapped, network.prefixlen - 96))
        return network

    blocks = [
        peer["ipBlock"]
        for policy in named(manifests, "NetworkPolicy").values()
        for rule in [*policy["spec"].get("egress", []), *policy["spec"].get("ingress", [])]
        for peer in [*rule.get("to", []), *rule.get("from", [])]
        if "ipBlock" in peer
    ]
    assert blocks
    for block in blocks:
        whole = read(block["cidr"])
        for text in block.get("except", []):
            part = read(text)
            assert part.version == whole.version, text
            assert part != whole and part.subnet_of(whole), text  # type: ignore[arg-type]


def test_every_pod_is_denied_by_default(manifests: Installation) -> None:
    default = named(manifests, "NetworkPolicy")["default-deny"]["spec"]
    assert default == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}


def test_policies_name_pods_and_ports_that_exist(manifests: Installation) -> None:
    everything = pods(manifests)
    for name, policy in named(manifests, "NetworkPolicy").items():
        spec = policy["spec"]
        selected = [pod for pod in everything if selects(spec["podSelector"], pod.labels)]
        assert selected, name
        for rule in spec.get("ingress", []):
            for entry in rule.get("ports", []):
                assert any(entry["port"] in pod.ports.values() for pod in selected), (name, entry)
        for key, ends in (("ingress", "from"), ("egress", "to")):
            for rule in spec.get(key, []):
                for peer in rule.get(ends, []):
                    if "podSelector" in peer and "namespaceSelector" not in peer:
                        reached = [pod for pod in everything if selects(peer["podSelector"], pod.labels)]
                        assert reached or name == "to-object-store", (name, peer)


def test_budgets_select_pods(manifests: Installation) -> None:
    for name, budget in named(manifests, "PodDisruptionBudget").items():
        assert any(selects(budget["spec"]["selector"], pod.labels) for pod in pods(manifests)), name


def test_the_settings_name_services_that_exist() -> None:
    data = named(plain(), "ConfigMap")["wukong-settings"]["data"]
    services = named(plain(), "Service")
    for key in ("AWS_ENDPOINT_URL_S3", "MLFLOW_TRACKING_URI"):
        name, port = re.fullmatch(r"http://([a-z-]+)\.wukong\.svc:(\d+)", data[key]).groups()  # type: ignore[union-attr]
        assert int(port) in [entry["port"] for entry in services[name]["spec"]["ports"]]


# --- what the programs themselves say


def test_seaweedfs_knows_its_flags() -> None:
    container = named(plain(), "StatefulSet")["object-store"]["spec"]["template"]["spec"]["containers"][0]
    said = subprocess.run(
        [str(Path(sys.executable).parent / "weed"), "server", "-h"], capture_output=True, text=True, check=False
    )
    known = set(re.findall(r"^  -([\w.]+)", said.stdout + said.stderr, re.MULTILINE))
    used = [argument.lstrip("-").split("=")[0] for argument in container["args"] if argument.startswith("-")]
    assert set(used) - known == {"logtostderr"}  # of weed itself


@pytest.mark.slow
def test_mlflow_knows_its_options() -> None:
    from mlflow.cli import server

    container = named(plain(), "Deployment")["mlflow"]["spec"]["template"]["spec"]["containers"][0]
    known = {option for parameter in server.params for option in parameter.opts}
    (script,) = container["args"]
    used = set(re.findall(r" (--[a-z-]+)=", script))
    assert {"--allowed-hosts", "--cors-allowed-origins"} <= used <= known
    variables = {parameter.envvar for parameter in server.params if parameter.envvar}
    assert "MLFLOW_BACKEND_STORE_URI" in variables


def test_shell_scripts_parse(manifests: Installation) -> None:
    for pod in pods(manifests):
        for container in pod.containers:
            if container.get("command", [""])[0] == "bash":
                (script,) = container["args"]
                subprocess.run(["bash", "-n", "-c", script], check=True)


def test_the_jobs_own_commands_parse(manifests: Installation, monkeypatch: pytest.MonkeyPatch) -> None:
    """The arguments of `python -m infra.cluster` are those it takes."""
    calls: list[tuple[Any, ...]] = []
    for name in ("make_credentials", "make_buckets", "make_mlflow_users", "back_up"):
        monkeypatch.setattr(cluster, name, lambda *given: calls.append(given))
    users = {name: {"USERNAME": name, "PASSWORD": f"{name}s-password"} for name in ("stages", "runs", "search")}
    for user, values in users.items():
        for key, value in values.items():
            monkeypatch.setenv(f"{user.upper()}_{key}", value)
    monkeypatch.setenv("WUKONG_BUCKETS", named(manifests, "ConfigMap")["wukong-settings"]["data"]["WUKONG_BUCKETS"])
    for pod in pods(manifests):
        for container in pod.containers:
            if container.get("command", [])[:3] == ["python", "-m", "infra.cluster"]:
                cluster.main(container["command"][3:])
    made = ("wukong", "kubeflow")
    expected = [("s3://wukong", "file:///backups/manifests", 30), made, (["wukong", "mlflow"],), (users, "")]
    assert sorted(map(str, calls)) == sorted(map(str, expected))


def test_the_dashboard_is_one(manifests: Installation) -> None:
    dashboard = json.loads(named(manifests, "ConfigMap")["wukong-dashboard"]["data"]["wukong.json"])
    assert dashboard["uid"] == "wukong"
    identities = [panel["id"] for panel in dashboard["panels"]]
    assert len(identities) == len(set(identities))
    for panel in dashboard["panels"]:
        assert all(target["expr"].count("(") == target["expr"].count(")") for target in panel.get("targets", ()))


# --- components for overlays


def component(tmp_path: Path, *names: str, on: str = "base") -> Installation:
    """The base or an overlay with some components, as an overlay of somebody's own takes them."""
    for folder in dict.fromkeys(("base", on, *(f"components/{name}" for name in names))):
        shutil.copytree(FOLDER / folder, tmp_path / "k8s" / folder)
    own = tmp_path / "k8s" / "own"
    own.mkdir()
    content = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": [f"../{on}"],
        "components": [f"../components/{name}" for name in names],
    }
    (own / "kustomization.yaml").write_text(yaml.safe_dump(content))
    return build(str(own))


def test_a_pull_secret_reaches_every_pod(tmp_path: Path) -> None:
    manifests = component(tmp_path, "pull-secret")
    accounts = named(manifests, "ServiceAccount")
    assert {pod.spec["serviceAccountName"] for pod in pods(manifests)} <= set(accounts)
    for name, account in accounts.items():
        assert account["imagePullSecrets"] == [{"name": "registry"}], name


def test_a_store_with_a_private_authority_is_trusted_by_every_pod_that_has_a_key(tmp_path: Path) -> None:
    """They mount the ConfigMap where it is, and the setting names its file in both namespaces."""
    manifests = component(tmp_path, "store-ca", "gc", "serve", "stage-keys")
    name, folder = forwarded.STORE_CA
    for namespace in ("wukong", "kubeflow"):
        settings = named(manifests, "ConfigMap", namespace)["wukong-settings"]["data"]
        assert settings["AWS_CA_BUNDLE"] == f"{folder}/ca.crt"
    holders = set()
    for pod in pods(manifests):
        volumes = {volume["name"] for volume in pod.volumes if volume.get("configMap", {}).get("name") == name}
        for container in pod.containers:
            keys = [source.get("secretRef", {}).get("name", "") for source in container.get("envFrom", [])]
            if any(key.endswith("-s3") for key in keys):
                holders.add(pod.owner)
                mounts = {mount["name"] for mount in container["volumeMounts"] if mount["mountPath"] == folder}
                assert len(mounts) == 1 and mounts <= volumes, pod.owner
    assert {"Deployment/mlflow", "CronJob/backup-manifests", SETUP} < holders
    assert {"CronJob/gc", "RayService/search", "Deployment/stage-keys"} < holders
    assert {f"RayJob/{stage}/{role}" for stage in JOBS for role in ("head", "worker")} < holders


def test_every_pod_with_a_key_reaches_another_store(tmp_path: Path) -> None:
    """And no other pod of ours does, but the setup job, which asks the API, and the crawler."""
    manifests = component(tmp_path, "gc", "serve", on="overlays/external-s3")
    store = Elsewhere(address="10.1.2.3")
    reach = {pod.owner for pod in pods(manifests) if allowed(manifests, pod, store, 443)}
    with_key = {
        pod.owner
        for pod in pods(manifests)
        for container in pod.containers
        for source in container.get("envFrom", [])
        if source.get("secretRef", {}).get("name", "").endswith("-s3")
    }
    beside = {f"RayJob/{stage}/submitter" for stage in JOBS} | {"CronJob/backup-mlflow", "CronJob/backup-kfp"}
    assert with_key <= reach <= with_key | beside


def test_without_that_authority_the_public_ones_are_asked(manifests: Installation) -> None:
    """An empty variable would not do: boto3 takes it for "check no certificate"."""
    for namespace in ("wukong", "kubeflow"):
        assert "AWS_CA_BUNDLE" not in named(manifests, "ConfigMap", namespace)["wukong-settings"]["data"]


def test_monitors_find_the_pods_that_tell_metrics(tmp_path: Path) -> None:
    """Those that say so by annotation to other Prometheus installations, at the port that the policies open."""
    manifests = component(tmp_path, "serve", "pod-monitors")
    found = set()
    for name, monitor in named(manifests, "PodMonitor").items():
        (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
        selected = [pod for pod in pods(manifests) if selects(monitor["spec"]["selector"], pod.labels)]
        for pod in selected:
            assert allowed(manifests, PROMETHEUS, pod, pod.ports[endpoint["port"]]), (name, pod.owner)
        found |= {pod.owner for pod in selected}
    rays = {f"RayJob/{stage}/{role}" for stage in JOBS for role in ("head", "worker")}
    assert found == rays | {"StatefulSet/object-store", "RayService/search"}


def test_an_overlay_may_have_queues(tmp_path: Path) -> None:
    """Kueue's own schemas are not here; what is said of each other and of the launcher's jobs is checked."""
    manifests = component(tmp_path, "kueue")
    _, settings = launcher_settings.parse(named(manifests, "ConfigMap")["ray-job"]["data"], "wukong")
    (queue,) = named(manifests, "LocalQueue").values()
    assert settings.queue == queue["metadata"]["name"]
    assert settings.priority in named(manifests, "WorkloadPriorityClass")
    priorities = [each["value"] for each in named(manifests, "WorkloadPriorityClass").values()]
    assert len(set(priorities)) == len(priorities)
    quota = named(manifests, "ClusterQueue")[queue["spec"]["clusterQueue"]]["spec"]
    assert selects(quota["namespaceSelector"], {"kubernetes.io/metadata.name": "wukong"})
    (group,) = quota["resourceGroups"]
    for flavor in group["flavors"]:
        assert flavor["name"] in named(manifests, "ResourceFlavor")
        assert [each["name"] for each in flavor["resources"]] == group["coveredResources"]
    # Kueue admits no job that asks for anything that no quota covers.
    asked = {name for pod in pods(manifests) for each in pod.containers for name in each["resources"]["requests"]}
    assert asked == {*group["coveredResources"]}
    roles, bindings = named(manifests, "Role"), named(manifests, "RoleBinding")
    assert bindings["ray-job-queue"]["subjects"] == bindings["ray-job-launcher"]["subjects"]
    assert {verb for rule in roles["ray-job-queue"]["rules"] for verb in rule["verbs"]} == {"get", "list"}
    kind = yaml.safe_load((FOLDER / "overlays/kind/ray-job.yaml").read_text(encoding="utf-8"))
    assert "queue.yaml" not in kind["data"], "an overlay's settings.yaml and the component's queue.yaml do not meet"


def test_an_overlay_may_give_each_ray_job_a_key_of_its_own(tmp_path: Path) -> None:
    manifests = component(tmp_path, "stage-keys")
    for manifest in manifests:
        _accepted(json.dumps(manifest, sort_keys=True), VERSIONS[0])
    pod = pod_of(manifests, "Deployment/stage-keys")
    assert restricted(pod.spec) == [] and pod.spec["serviceAccountName"] in named(manifests, "ServiceAccount")
    (container,) = pod.containers
    assert container["command"][:3] == ["python", "-m", stage_keys.__name__]
    assert {source["secretRef"]["name"] for source in container["envFrom"][1:]} == {"setup-s3"}
    rules = named(manifests, "Role")["stage-keys"]["rules"]
    assert [rule["verbs"] for rule in rules if "secrets" in rule["resources"]] == [["create"]]
    for target, port, expected in (
        ("StatefulSet/object-store", 8333, True),
        ("Deployment/mlflow", 5000, False),
        ("StatefulSet/postgres", 5432, False),
        (WEB, 80, False),
    ):
        end = pod_of(manifests, target) if isinstance(target, str) else target
        assert allowed(manifests, pod, end, port) == expected, target
    data = named(manifests, "ConfigMap")["ray-job"]["data"]
    assert launcher_settings.parse(data, "wukong")[1].own_keys
    assert not launcher_settings.parse(named(plain(), "ConfigMap")["ray-job"]["data"], "wukong")[1].own_keys
    (store,) = pod_of(manifests, "StatefulSet/object-store").containers
    assert [each for each in store["args"] if each.startswith("-s3.iam=")][-1] == "-s3.iam=true"


def test_an_overlay_may_have_what_nothing_needs_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifests = component(tmp_path, "gc")
    for manifest in manifests:
        _accepted(json.dumps(manifest, sort_keys=True), VERSIONS[0])
    pod = pod_of(manifests, "CronJob/gc")
    assert restricted(pod.spec) == [] and pod.spec["automountServiceAccountToken"] is False
    assert pod.spec["serviceAccountName"] in named(manifests, "ServiceAccount")
    (container,) = pod.containers
    assert {source["secretRef"]["name"] for source in container["envFrom"][1:]} == {"wukong-s3", "search-mlflow"}
    for target, port, expected in (
        ("StatefulSet/object-store", 8333, True),
        ("Deployment/mlflow", 5000, True),
        ("StatefulSet/postgres", 5432, False),
        (WEB, 443, False),
    ):
        end = pod_of(manifests, target) if isinstance(target, str) else target
        assert allowed(manifests, pod, end, port) is expected, target
    for name, value in named(manifests, "ConfigMap")["wukong-settings"]["data"].items():
        monkeypatch.setenv(name, value)
    asked: list[tuple[str, Policy]] = []

    class Looked:
        garbage: tuple[()] = ()
        kept = garbage

        def __init__(self, place: str, policy: Policy, _holders: object) -> None:
            asked.append((place, policy))

    monkeypatch.setattr("wukong.publish.unneeded.Collection", Looked)
    monkeypatch.setattr("wukong.commands.gc._holders", lambda: dict)
    program, *arguments = [*container["command"], *container["args"]]
    ended = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert program == "wukong" and ended.exit_code == 0, ended.output
    assert asked == [("s3://wukong", Policy(keep_runs=20, older_than=30 * DAY, grace=3 * DAY))]


# --- what is kept


def test_the_data_outlives_the_deletion_of_the_manifests(manifests: Installation) -> None:
    """Claims of stateful sets stay by their own policy; the rest the API server refuses, and `-l` leaves out."""
    for name, workload in named(manifests, "StatefulSet").items():
        kept = workload["spec"]["persistentVolumeClaimRetentionPolicy"]
        assert kept == {"whenDeleted": "Retain", "whenScaled": "Retain"}, name
    policy = named(manifests, "ValidatingAdmissionPolicy")["wukong-keep-data"]
    binding = named(manifests, "ValidatingAdmissionPolicyBinding")["wukong-keep-data"]
    assert binding["spec"] == {"policyName": policy["metadata"]["name"], "validationActions": ["Deny"]}
    constraints = policy["spec"]["matchConstraints"]
    (rule,) = constraints["resourceRules"]
    assert rule["operations"] == ["DELETE"]
    assert rule["resources"] == ["namespaces", "persistentvolumeclaims"]
    (namespace,) = named(manifests, "Namespace").values()
    assert selects(constraints["namespaceSelector"], namespace["metadata"]["labels"])
    kinds = {m["kind"] for m in manifests if m["metadata"].get("labels", {}).get("wukong/keep") == "data"}
    assert kinds == {"Namespace", "PersistentVolumeClaim", policy["kind"], binding["kind"]}


def test_components_read_the_settings_of_the_installation(manifests: Installation) -> None:
    settings = [named(manifests, "ConfigMap", namespace)["wukong-settings"] for namespace in ("wukong", "kubeflow")]
    assert settings[0]["data"] == settings[1]["data"]


def test_an_installation_says_which_overlay_it_is(request: pytest.FixtureRequest, manifests: Installation) -> None:
    name = request.node.callspec.params["manifests"].rpartition("/")[2]
    (namespace,) = named(manifests, "Namespace").values()
    assert namespace["metadata"]["labels"]["wukong/overlay"] == {"plain": "base"}.get(name, name)
