"""What fits on a cluster: placing pods on nodes, quotas, what a user may not see; `wukong submit --dry-run`."""

import itertools
from collections.abc import Iterator, Mapping
from decimal import Decimal
from pathlib import Path

import pytest
from api_server import ApiServer
from hypothesis import given
from hypothesis import strategies as st
from played_cluster import running

from cli import check, free_resources
from infra.cluster_api import Cluster
from ray_jobs.launch.kuberay import room
from ray_jobs.launch.kuberay.room import Node, Pod
from wukong import stages
from wukong.config import documents

_GPU = "nvidia.com/gpu"


def _amounts(**amounts: float) -> room.Resources:
    return {name.replace("gpu", _GPU): Decimal(str(amount)) for name, amount in amounts.items()}


def _node(name: str, *, labels: Mapping[str, str] | None = None, taint: str = "", **free: float) -> Node:
    taints = [{"key": taint, "value": None, "effect": "NoSchedule"}] if taint else []
    return Node(name, _amounts(pods=110, **free), labels or {}, taints)


def test_what_a_pod_asks_for() -> None:
    """Containers together, or an init container if that is more, and the overhead; limits where no request is."""
    spec = {
        "initContainers": [{"resources": {"requests": {"cpu": "3", "memory": "10Mi"}}}, {}],
        "containers": [
            {"resources": {"requests": {"cpu": "500m", "memory": "1Gi"}, "limits": {"cpu": "4", _GPU: "2"}}},
            {"resources": {"limits": {"memory": "512Mi"}}},
        ],
        "overhead": {"cpu": "250m"},
    }
    assert room.requests_of(spec) == {"cpu": Decimal("3.25"), "memory": 1536 * 2**20, _GPU: 2}


@given(
    st.lists(st.integers(1, 8), max_size=5),
    st.lists(st.integers(0, 10), min_size=1, max_size=3),
)
def test_no_pod_is_placed_that_has_no_place(asked: list[int], free: list[int]) -> None:
    """What is placed fits, by trying all ways to place it; with one node nothing that would fit is left."""
    pods = [Pod(str(number), "worker", _amounts(cpu=amount)) for number, amount in enumerate(asked)]
    left = free_resources.unplaced(pods, [_node(str(number), cpu=amount) for number, amount in enumerate(free)])
    placed = [int(pod.requests["cpu"]) for pod in pods if pod not in left]
    ways = itertools.product(range(len(free)), repeat=len(placed))
    assert any(
        all(
            sum(a for a, on in zip(placed, way, strict=True) if on == number) <= free[number]
            for number in range(len(free))
        )
        for way in ways
    )
    if len(free) == 1:
        assert all(int(pod.requests["cpu"]) + sum(placed) > free[0] for pod in left)


def test_labels_taints_and_gpus_keep_pods_away() -> None:
    pod = Pod("pretrain", "worker", _amounts(cpu=1, gpu=1), {"pool": "a"}, [{"key": _GPU, "operator": "Exists"}])
    assert _node("fits", cpu=1, gpu=1, labels={"pool": "a"}, taint=_GPU).takes(pod)
    assert not _node("no gpu", cpu=1, labels={"pool": "a"}).takes(pod)
    assert not _node("other pool", cpu=1, gpu=1, labels={"pool": "b"}).takes(pod)
    assert not _node("other taint", cpu=1, gpu=1, labels={"pool": "a"}, taint="dedicated").takes(pod)
    assert free_resources.unplaced([pod, pod], [_node("one", cpu=9, gpu=1, labels={"pool": "a"})]) == [pod]


def test_gpus_are_kept_for_those_that_need_them() -> None:
    """Small pods take what is least, so that the pod with a GPU still has its cores."""
    small, large = Pod("s", "head", _amounts(cpu=2)), Pod("s", "worker", _amounts(cpu=4, gpu=1))
    assert not free_resources.unplaced([small, small, large], [_node("gpu", cpu=4, gpu=1), _node("plain", cpu=4)])


def test_the_pods_of_a_stage_are_those_of_its_job() -> None:
    template, settings = check.resources_of("gpu")
    experiment = documents.load(Path("configs/demo.yaml"), ["pretrain.workers=4", "pretrain.gpus_per_worker=1"])
    pods = free_resources.pods_of(experiment, template, settings, "pretrain")
    workers = [pod for pod in pods if pod.role == "worker"]
    assert len(workers) == 4
    assert {pod.requests[_GPU] for pod in workers} == {1}
    assert [pod.role for pod in pods].count("head") == 1
    assert all(free_resources.pods_of(experiment, template, settings, stage) for stage in stages.JOBS)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ApiServer]:
    with running(tmp_path, monkeypatch) as server:
        yield server


@pytest.mark.usefixtures("server")
def test_what_is_free_is_what_running_pods_leave() -> None:
    (node,) = free_resources.nodes(Cluster())
    assert node.free == {"cpu": 1, "memory": 8 * 2**30, "pods": 109}


@pytest.mark.usefixtures("server")
def test_says_which_pods_do_not_fit() -> None:
    pods = [Pod("crawl", "worker", _amounts(cpu=0.5, memory=2**30))] * 3
    ((line,), unseen) = free_resources.unfit(Cluster(), "wukong", {"crawl": pods, "filter": pods[:1]})
    assert line == (
        "crawl: 1 of 3 pods (worker) fit on no node now: each asks for 0.5 cpu, 1.0 GiB memory; the node with most "
        "room, a, has 1 cpu, 8.0 GiB memory free"
    )
    assert unseen == []


def test_says_which_quota_is_short(server: ApiServer) -> None:
    status = {"hard": {"requests.cpu": "2", "pods": "9"}, "used": {"requests.cpu": "1500m", "pods": "1"}}
    metadata = {"name": "team", "namespace": "wukong"}
    server.put({"apiVersion": "v1", "kind": "ResourceQuota", "metadata": metadata, "status": status})
    (lines, _) = free_resources.unfit(Cluster(), "wukong", {"crawl": [Pod("crawl", "worker", _amounts(cpu=1))]})
    assert lines == [
        "crawl: its pods ask for 1 requests.cpu, and the quota team of the namespace wukong leaves 0.5 requests.cpu"
    ]


def test_says_what_it_may_not_see(server: ApiServer) -> None:
    server.forbid = {"/api/v1/nodes"}
    jobs = {"crawl": [Pod("crawl", "worker", _amounts(cpu=99))]}
    (lines, (unseen,)) = free_resources.unfit(Cluster(), "wukong", jobs)
    assert lines == []
    assert unseen.startswith("not looked at: nodes and their pods (Forbidden)")


def test_the_jobs_of_a_pipeline() -> None:
    from cli.submit import _COMPILED
    from cli.submit_command import _jobs_of

    named = {path.stem: _jobs_of(path) for path in _COMPILED.glob("*.yaml")}
    assert named["data"] == ["crawl", "filter", "validate"]
    assert named["evaluate"] == ["evaluate"]
    assert named["training"] == ["crawl", "filter", "validate", "pretrain", "finetune", "evaluate"]
