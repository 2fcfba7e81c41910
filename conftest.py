"""What all tests share: no property test fails because the machine is busy; processes; variables; one MLflow server.

Not in ``tests/``: that folder would come before the packages whose names its folders have.
"""

import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from mlflow_server import MlflowServer

settings.register_profile("wukong", deadline=None)
settings.load_profile("wukong")

_SLOW_WITH_RAY = ("cli", "docs", "end_to_end", "infra")
"""Folders whose slow tests start Ray, most of them with the whole stack."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: Sequence[pytest.Item]) -> None:
    """Give a file's tests to one process. Two that start Ray at once may choose the same port, so only one does."""
    for item in items:
        start_ray = {"ray_jobs", *(_SLOW_WITH_RAY if item.get_closest_marker("slow") else ())}
        group = str(item.path) if start_ray.isdisjoint(item.path.parts) else "ray"
        item.add_marker(pytest.mark.xdist_group(group))


@pytest.fixture(autouse=True)
def own_variables() -> Iterator[None]:
    """Environment variables that a test sets, or what it calls, are gone after it."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="session")
def mlflow_of_all(tmp_path_factory: pytest.TempPathFactory) -> Iterator["MlflowServer"]:
    """A real MLflow server without users, which takes ten seconds to start."""
    from mlflow_server import running

    with running(tmp_path_factory.mktemp("mlflow")) as server:
        yield server


@pytest.fixture
def mlflow_server(mlflow_of_all: "MlflowServer") -> Iterator["MlflowServer"]:
    """That server, which a test may kill and start again. Each test needs names of its own."""
    yield mlflow_of_all
    mlflow_of_all.ensure_ready()


@pytest.fixture
def mlflow_address(mlflow_server: "MlflowServer") -> str:
    """Its address."""
    return mlflow_server.address
