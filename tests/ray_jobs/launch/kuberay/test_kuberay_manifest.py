"""The RayJob that is made of a stage."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import crd
import pytest
import yaml
from api_server import ApiServer
from hypothesis import given
from hypothesis import strategies as st
from played_ray_job import FAST, experiment_at, installed_config_map

from ray_jobs.launch.kuberay import RayJobError, run_job
from ray_jobs.launch.kuberay.manifest import job_name, make_ray_job
from ray_jobs.launch.kuberay.room import Node
from wukong import stages
from wukong.config.experiment import Experiment
from wukong.stages.ray_job import Settings
from wukong.store import storage


def test_a_name_that_a_shell_would_change_is_refused(server: ApiServer, experiment: Experiment) -> None:
    with pytest.raises(RayJobError, match="cannot be part"):
        run_job("filter", experiment, "r", ["filter", "--experiment", "s3://b/$(x)"], {}, "wukong", FAST)
    assert not server.jobs


def made(root: str, gpu: dict[str, Any], nodes: Sequence[Node] = (), **training: int) -> dict[str, Any]:
    """The RayJob of pre-training, with settings of the section ``gpu`` beside those of the base."""
    data = installed_config_map()["data"]
    template, settings = yaml.safe_load(data["template.yaml"]), yaml.safe_load(data["settings.yaml"])
    settings["gpu"] |= gpu
    experiment = experiment_at(root, pretrain={"batch_size": 840, **training})
    given = (template, Settings.model_validate(settings), experiment, "r", "pretrain", ["python"], {})
    body = make_ray_job(*given, nodes=nodes)
    assert crd.errors(body) == []
    return body


def groups(body: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = body["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    return found


def test_training_gets_the_experiments_workers_and_gpus(tmp_path: Path) -> None:
    root = storage.from_path(tmp_path)
    body = made(root, {"node_selector": {"pool": "gpu"}, "runtime_class": "nvidia"}, workers=4, gpus_per_worker=1)
    (group,) = groups(body)
    assert (group["replicas"], group["minReplicas"], group["maxReplicas"]) == (4, 4, 4)
    pod = group["template"]["spec"]
    assert pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert pod["containers"][0]["image"].endswith("-cuda")
    assert pod["nodeSelector"] == {"pool": "gpu"}
    assert pod["runtimeClassName"] == "nvidia"
    assert {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"} in pod["tolerations"]
    on_cpus = made(
        root, {"gpus_per_pod": 8, "topology_key": "nvidia.com/gpu.clique", "resources": {"rdma/a": "1"}}, workers=4
    )
    (group,) = groups(on_cpus)
    assert group["replicas"] == 4
    for word in ("nvidia.com/gpu", "num-gpus", "rdma/a", "-cuda"):
        assert word not in str(on_cpus), word


@pytest.mark.parametrize(
    ("workers", "together", "pods"),
    [
        (8, 1, [(8, 1)]),
        (8, 4, [(2, 4)]),
        (7, 4, [(1, 4), (1, 3)]),
        (5, 2, [(2, 2), (1, 1)]),
        (3, 8, [(1, 3)]),
        (1, 8, [(1, 1)]),
    ],
)
def test_gpus_of_a_training_share_pods(
    tmp_path: Path, workers: int, together: int, pods: list[tuple[int, int]]
) -> None:
    """A pod has the cores, the memory and the shared memory of as many workers as it has GPUs."""
    body = made(storage.from_path(tmp_path), {"gpus_per_pod": together}, workers=workers, gpus_per_worker=1)
    assert [group["replicas"] for group in groups(body)] == [count for count, _ in pods]
    assert len({group["groupName"] for group in groups(body)}) == len(pods)
    for group, (_, gpus) in zip(groups(body), pods, strict=True):
        pod = group["template"]["spec"]
        expected = {"cpu": str(4 * gpus), "memory": f"{16 * gpus}Gi", "nvidia.com/gpu": str(gpus)}
        assert pod["containers"][0]["resources"] == {"requests": expected, "limits": expected}
        (shared,) = (volume for volume in pod["volumes"] if volume["name"] == "shared-memory")
        assert shared["emptyDir"] == {"medium": "Memory", "sizeLimit": f"{5 * gpus}Gi"}
        assert group["rayStartParams"]["num-gpus"] == str(gpus)


def node(name: str, gpus: int, cores: int = 256, **labels: str) -> Node:
    allocatable = {"cpu": str(cores), "memory": "2Ti", "nvidia.com/gpu": str(gpus)}
    sent = {"metadata": {"name": name, "labels": labels}, "spec": {}, "status": {"allocatable": allocatable}}
    return Node.when_empty(sent)


@pytest.mark.parametrize(
    ("nodes", "pods"),
    [
        ([node("a", 8, pool="gpu"), node("b", 4, pool="gpu")], [(1, 8), (1, 2)]),
        ([node("a", 8, cores=9, pool="gpu")], [(5, 2)]),  # four cores a worker
        ([node("a", 8)], [(10, 1)]),  # it lacks the label
        ([], [(10, 1)]),  # they cannot be listed
    ],
)
def test_a_pod_has_as_many_gpus_as_a_node_has_room_for(
    tmp_path: Path, nodes: list[Node], pods: list[tuple[int, int]], caplog: pytest.LogCaptureFixture
) -> None:
    gpu = {"gpus_per_pod": "node", "node_selector": {"pool": "gpu"}, "resources": {"rdma/a": "1"}}
    body = made(storage.from_path(tmp_path), gpu, nodes, workers=10, gpus_per_worker=1)
    found = [(each["replicas"], int(each["rayStartParams"]["num-gpus"])) for each in groups(body)]
    assert found == pods
    assert ("are in a pod each" in caplog.text) == (pods == [(10, 1)])


@pytest.mark.parametrize("required", [False, True])
def test_gpus_of_a_training_are_near_each_other_and_have_their_network(tmp_path: Path, required: bool) -> None:
    """As NVIDIA's network operator and Multus document it; nothing of it is against the restricted standard."""
    gpu = {
        "resource": "nvidia.com/gpu.shared",
        "gpus_per_pod": 2,
        "topology_key": "nvidia.com/gpu.clique",
        "topology_required": required,
        "resources": {"rdma/rdma_shared_device_a": "1"},
        "annotations": {"k8s.v1.cni.cncf.io/networks": "rdma"},
        "environment": {"NCCL_IB_HCA": "mlx5"},
    }
    body = made(storage.from_path(tmp_path), gpu, workers=3, gpus_per_worker=1)
    assert len(groups(body)) == 2
    for group in groups(body):
        template = group["template"]
        pod, labels = template["spec"], template["metadata"]["labels"]
        for bound in ("requests", "limits"):
            assert pod["containers"][0]["resources"][bound]["rdma/rdma_shared_device_a"] == "1"
            assert "nvidia.com/gpu.shared" in pod["containers"][0]["resources"][bound]
        assert template["metadata"]["annotations"]["k8s.v1.cni.cncf.io/networks"] == "rdma"
        assert "prometheus.io/port" in template["metadata"]["annotations"], "the template's stay"
        assert {"name": "NCCL_IB_HCA", "value": "mlx5"} in pod["containers"][0]["env"]
        near = pod["affinity"]["podAffinity"]
        if required:
            (term,) = near["requiredDuringSchedulingIgnoredDuringExecution"]
        else:
            (weighted,) = near["preferredDuringSchedulingIgnoredDuringExecution"]
            term = weighted["podAffinityTerm"]
        assert term["topologyKey"] == "nvidia.com/gpu.clique"
        assert term["labelSelector"]["matchLabels"].items() <= labels.items()
        assert term["labelSelector"]["matchLabels"] == {"wukong/run": "r", "wukong/stage": "pretrain"}
        assert pod["containers"][0]["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    spec = body["spec"]
    for other in (spec["rayClusterSpec"]["headGroupSpec"]["template"], spec["submitterPodTemplate"]):
        for word in ("nvidia.com/gpu", "rdma", "NCCL"):
            assert word not in str(other), "the head and the submitter hold no GPU"


def test_stages_that_run_a_model_get_the_gpus_that_the_cluster_gives_them(tmp_path: Path) -> None:
    data = installed_config_map()["data"]
    template = yaml.safe_load(data["template.yaml"])
    overlay = Path(__file__).parents[4] / "k8s/overlays/gpu/ray-job.yaml"
    parsed = Settings.model_validate(yaml.safe_load(yaml.safe_load(overlay.read_text())["data"]["settings.yaml"]))
    root = storage.from_path(tmp_path)
    plain, similar = experiment_at(root), experiment_at(root, filter={"similarity_model": "s3://models/one"})
    gpus = {}
    for stage, experiment in (("evaluate", plain), ("filter", plain), ("filter", similar), ("crawl", similar)):
        body = make_ray_job(template, parsed, experiment, "r", stage, ["python"], {})
        assert crd.errors(body) == []
        pod = body["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["template"]["spec"]
        limits = pod["containers"][0]["resources"]["limits"]
        gpus[stage, experiment is similar] = limits.get("nvidia.com/gpu")
        assert pod["containers"][0]["image"].endswith("-cuda") == ("nvidia.com/gpu" in limits)
    assert gpus == {("evaluate", False): "1", ("filter", False): None, ("filter", True): "1", ("crawl", True): None}
    of_base = Settings.model_validate(yaml.safe_load(data["settings.yaml"]))
    body = make_ray_job(template, of_base, plain, "r", "evaluate", ["python"], {})
    assert "nvidia.com/gpu" not in str(body["spec"]["rayClusterSpec"]["workerGroupSpecs"]), "the base has no GPUs"


@pytest.mark.parametrize("seconds", [None, 0, 600])
def test_every_pod_says_how_long_it_stays_with_a_node_that_does_not_answer(
    experiment: Experiment, seconds: int | None
) -> None:
    """By Kubernetes' own rule: the shortest time of all tolerations that match a taint; 300 s where none does."""
    data = installed_config_map()["data"]
    settings = yaml.safe_load(data["settings.yaml"]) | ({} if seconds is None else {"lost_node_seconds": seconds})
    parsed = Settings.model_validate(settings)
    body = make_ray_job(yaml.safe_load(data["template.yaml"]), parsed, experiment, "r", "pretrain", ["python"], {})
    assert crd.errors(body) == []
    spec = body["spec"]
    cluster = spec["rayClusterSpec"]
    pods = [spec["submitterPodTemplate"], cluster["headGroupSpec"]["template"]]
    pods += [group["template"] for group in cluster["workerGroupSpecs"]]
    for pod in pods:
        for taint in ("node.kubernetes.io/unreachable", "node.kubernetes.io/not-ready"):
            times = [
                each["tolerationSeconds"]
                for each in pod["spec"].get("tolerations", [])
                if each["key"] == taint and each["operator"] == "Exists" and each["effect"] == "NoExecute"
            ]
            assert min(times, default=300) == (60 if seconds is None else seconds)


EXPERIMENT = experiment_at("s3://bucket")
names = st.from_regex(r"[a-zA-Z0-9]([a-zA-Z0-9._-]{0,61}[a-zA-Z0-9])?", fullmatch=True)


@given(name=names, stage=st.sampled_from(stages.RECORDED), attempt=st.integers(1, 99))
def test_names_are_dns_labels_of_at_most_47_characters(name: str, stage: str, attempt: int) -> None:
    made = job_name(EXPERIMENT, name, stage, attempt)
    assert len(made) <= 47
    assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", made)
    assert made == job_name(EXPERIMENT, name, stage, attempt)


@given(first=names, second=names)
def test_runs_never_share_a_name(first: str, second: str) -> None:
    made = {job_name(EXPERIMENT, name, "filter", 1) for name in (first, second)}
    assert len(made) == len({first, second})
