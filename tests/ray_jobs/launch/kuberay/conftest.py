"""A Kubernetes API on loopback with this project's installation, and an experiment."""

from collections.abc import Iterator
from pathlib import Path

import api_server
import pytest
from api_server import ApiServer
from played_ray_job import REPOSITORY, experiment_at, installed_config_map, read_documents

from wukong.config.experiment import Experiment
from wukong.store import storage


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A thread that ends by an error, as one that follows a RayJob, fails its test."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning"))


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ApiServer]:
    with api_server.running(tmp_path, monkeypatch) as api:
        api.put(installed_config_map())
        access = read_documents(REPOSITORY / "k8s" / "base" / "access.yaml")
        # What Kubeflow's Role `pipeline-runner` allows a component in its own namespace, as far as it is used here.
        workflows = {"apiGroups": ["argoproj.io"], "resources": ["workflows"], "verbs": ["get", "list", "watch"]}
        api.rules = {"wukong": next(d["rules"] for d in access if d["kind"] == "Role"), "kubeflow": [workflows]}
        yield api


@pytest.fixture
def experiment(tmp_path: Path) -> Experiment:
    return experiment_at(storage.from_path(tmp_path))
