"""The search page's component: KubeRay's schema, the restricted Pod Security, and the arguments that the code takes."""

import ast
import json
import re
import shutil
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from manifests import FOLDER, build, named

from infra import s3_keys

HERE = FOLDER / "components" / "serve"
ROOT = FOLDER.parent
(SERVICE,) = yaml.safe_load_all((HERE / "search.yaml").read_text(encoding="utf-8"))
POD = SERVICE["spec"]["rayClusterConfig"]["headGroupSpec"]["template"]
(GROUP,) = SERVICE["spec"]["rayClusterConfig"]["workerGroupSpecs"]
SHARDS = GROUP["template"]


def test_kuberay_accepts_the_cluster() -> None:
    """A RayService's cluster has the schema of a RayCluster."""
    schema = json.loads((Path(__file__).parent / "schemas" / "raycluster.json").read_text(encoding="utf-8"))
    jsonschema.validate({"spec": SERVICE["spec"]["rayClusterConfig"]}, schema)


@pytest.mark.parametrize("pod", [POD, SHARDS], ids=["page", "shards"])
def test_the_pod_is_restricted(pod: dict[str, Any]) -> None:
    """What the namespace's Pod Security asks for, and a root file system that nobody can write to."""
    spec = pod["spec"]
    assert spec["automountServiceAccountToken"] is False
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    (container,) = spec["containers"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert container["resources"]["limits"]["memory"] == container["resources"]["requests"]["memory"]


def test_pods_of_shards_are_those_of_the_page_with_room_for_an_index() -> None:
    """They hold the same secrets and are under the same policies; there is none until an overlay asks for some."""
    assert (GROUP["replicas"], GROUP["minReplicas"]) == (0, 0)
    assert SHARDS["metadata"]["labels"] == POD["metadata"]["labels"]
    assert "annotations" not in SHARDS["metadata"], "the page alone has metrics of its own"
    (head,), (shards,) = POD["spec"]["containers"], SHARDS["spec"]["containers"]
    for name in ("image", "envFrom", "env", "volumeMounts", "securityContext"):
        assert shards[name] == head[name], name
    assert set(SHARDS["spec"]) == set(POD["spec"])
    assert [each["name"] for each in SHARDS["spec"]["volumes"]] == [each["name"] for each in POD["spec"]["volumes"]]


def test_a_pod_with_a_shard_is_ready_when_ray_serve_answers_in_it() -> None:
    """KubeRay's own probe of a RayService's worker runs wget, which the image lacks."""
    (container,) = SHARDS["spec"]["containers"]
    ports = {each["name"]: each["containerPort"] for each in container["ports"]}
    probe = container["readinessProbe"]["httpGet"]
    served = yaml.safe_load(SERVICE["spec"]["serveConfigV2"])["http_options"]["port"]
    assert (probe["path"], ports[probe["port"]]) == ("/-/healthz", served)


def test_its_cluster_and_image_are_those_of_the_jobs() -> None:
    template = next(
        yaml.safe_load(each["data"]["template.yaml"])
        for each in yaml.safe_load_all((FOLDER / "base" / "ray.yaml").read_text(encoding="utf-8"))
        if each["kind"] == "ConfigMap" and "template.yaml" in each["data"]
    )
    jobs = template["spec"]["rayClusterSpec"]
    assert SERVICE["spec"]["rayClusterConfig"]["rayVersion"] == jobs["rayVersion"]
    (container,) = POD["spec"]["containers"]
    assert container["image"] == jobs["headGroupSpec"]["template"]["spec"]["containers"][0]["image"]


def test_the_application_exists_and_takes_these_arguments() -> None:
    (application,) = yaml.safe_load(SERVICE["spec"]["serveConfigV2"])["applications"]
    module, name = application["import_path"].split(":")
    tree = ast.parse((ROOT / module.replace(".", "/")).with_suffix(".py").read_text(encoding="utf-8"))
    assert name in [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
    needed = next(
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "_NEEDED"
    )
    settings = next(
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "_SETTINGS"
    )
    assert set(needed) <= set(application["args"]) <= {*needed, *settings}


def test_on_a_gpu_it_is_where_the_jobs_with_gpus_are(tmp_path: Path) -> None:
    shutil.copytree(FOLDER / "components", tmp_path / "components")
    mine = tmp_path / "mine"
    mine.mkdir()
    named_here = [f"../components/{name}" for name in ("serve", "serve-gpu")]
    overlay = {"apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization", "components": named_here}
    (mine / "kustomization.yaml").write_text(yaml.safe_dump(overlay), encoding="utf-8")
    (service,) = named(build(str(mine)), "RayService").values()
    pod = service["spec"]["rayClusterConfig"]["headGroupSpec"]["template"]["spec"]
    (job,) = yaml.safe_load_all((FOLDER / "overlays" / "gpu" / "ray-job.yaml").read_text(encoding="utf-8"))
    gpu = yaml.safe_load(job["data"]["settings.yaml"])["gpu"]
    (container,) = pod["containers"]
    assert container["image"] == gpu["image"]
    assert (
        container["resources"]["limits"][gpu["resource"]] == container["resources"]["requests"][gpu["resource"]] == "1"
    )
    assert (pod["nodeSelector"], pod["tolerations"]) == (gpu["node_selector"], gpu["tolerations"])


def test_the_network_lets_people_in_and_only_the_store_and_mlflow_out() -> None:
    policies = list(yaml.safe_load_all((HERE / "network.yaml").read_text(encoding="utf-8")))
    mine = next(each["spec"] for each in policies if each["metadata"]["name"] == "search")
    labels = POD["metadata"]["labels"]
    assert mine["podSelector"]["matchLabels"].items() <= labels.items()
    ports: dict[str, Any] = {port["name"]: port["containerPort"] for port in POD["spec"]["containers"][0]["ports"]}
    (people,) = [rule for rule in mine["ingress"] if "wukong/search" in str(rule)]
    assert people["ports"] == [{"protocol": "TCP", "port": ports["serve"]}]
    reached = {
        peer["podSelector"]["matchLabels"]["app.kubernetes.io/component"]
        for rule in mine["egress"]
        for peer in rule["to"]
    }
    assert reached == {"search", "mlflow", "object-store"}


def test_its_key_and_its_user_are_its_own() -> None:
    """What these may do is tried in test_s3_keys.py and test_mlflow_users.py."""
    (container,) = POD["spec"]["containers"]
    given = {source["secretRef"]["name"] for source in container["envFrom"] if "secretRef" in source}
    assert given == {"search-s3", "search-mlflow"}
    assert "wukong-s3" not in str(POD) and "wukong-mlflow" not in str(POD)
    (application,) = yaml.safe_load(SERVICE["spec"]["serveConfigV2"])["applications"]
    index = application["args"]["index"].removeprefix("s3://")
    assert f"Write:{index}/*" in s3_keys.actions_of("search-s3")


def test_the_overlay_of_the_docs_builds(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
    (overlay,) = re.findall(r"```text\n# k8s/overlays/mine/kustomization.yaml\n(.*?)```", page, re.DOTALL)
    for folder in ("base", "components", "overlays"):
        shutil.copytree(FOLDER / folder, tmp_path / "k8s" / folder)
    mine = tmp_path / "k8s" / "overlays" / "mine"
    mine.mkdir()
    (mine / "kustomization.yaml").write_text(overlay, encoding="utf-8")
    (service,) = named(build(str(mine)), "RayService").values()
    patched, shipped = (yaml.safe_load(each["spec"]["serveConfigV2"]) for each in (service, SERVICE))
    assert patched == shipped
    (container,) = service["spec"]["rayClusterConfig"]["headGroupSpec"]["template"]["spec"]["containers"]
    assert container["resources"]["requests"] == {"cpu": "500m", "memory": "4Gi"}
