from types import SimpleNamespace

import pytest
import ray
import ray.train

from ray_jobs import training_worker
from wukong.config.training import Training


@pytest.mark.parametrize(
    ("settings", "cores", "neighbours", "threads"),
    [
        ({"workers": 1}, 2, 1, 2),
        ({"workers": 2}, 2, 2, 1),
        ({"workers": 4}, 2, 4, 1),
        ({"workers": 2}, 9, 2, 4),
        ({"workers": 2, "threads": 1}, 8, 2, 1),
        ({"workers": 1, "threads": 3}, 2, 1, 3),
        ({"workers": 2, "gpus_per_worker": 1}, 8, 2, 1),
        ({"workers": 2, "lock": "none", "loader_workers": 2}, 8, 2, 2),
        ({"workers": 1, "lock": "none", "loader_workers": 2}, 2, 1, 1),
    ],
)
def test_a_worker_computes_on_its_share_of_its_machine(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, object], cores: int, neighbours: int, threads: int
) -> None:
    machines = [
        {"NodeID": "own", "Resources": {"CPU": float(cores), "memory": 1e9}},
        {"NodeID": "other", "Resources": {"CPU": 64.0}},
    ]
    monkeypatch.setattr(ray, "nodes", lambda: machines)
    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(get_node_id=lambda: "own"))
    context = SimpleNamespace(get_local_world_size=lambda: neighbours)
    monkeypatch.setattr(ray.train, "get_context", lambda: context)
    assert training_worker._threads(Training.model_validate(settings)) == threads
