"""What all tests share: no property test fails because the machine is busy; one MLflow server.

Not in ``tests/``: that folder would come before the packages whose names its folders have.
"""

from collections.abc import Iterator

import pytest
from hypothesis import settings

settings.register_profile("wukong", deadline=None)
settings.load_profile("wukong")


@pytest.fixture(scope="session")
def mlflow_address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a real MLflow server without users, which starts in ten seconds: each test needs names of its own."""
    from mlflow_server import running

    with running(tmp_path_factory.mktemp("mlflow")) as server:
        yield server.address
