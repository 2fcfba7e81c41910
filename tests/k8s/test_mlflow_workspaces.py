"""MLflow with workspaces, and back: what docs/teams.md says, on the server."""

import re
from pathlib import Path

import pytest
import requests
from mlflow_server import MlflowServer

PAGE = Path(__file__).parents[2] / "docs" / "teams.md"
WITH = {"MLFLOW_ENABLE_WORKSPACES": "true"}

pytestmark = pytest.mark.long


def test_a_server_goes_back_once_its_workspaces_are_moved(tmp_path: Path) -> None:
    said = " ".join(PAGE.read_text(encoding="utf-8").split())
    (refusal,) = re.findall(r"\(`(Cannot disable workspaces [^`]+)`\)", said)
    (path,) = re.findall(r"-X DELETE 'http://localhost:5000(/\S+)'", said)
    server = MlflowServer(tmp_path)
    try:
        server.start(environment=WITH)
        server.wait_ready()
        api = f"{server.address}/api"
        requests.post(f"{api}/3.0/mlflow/workspaces", json={"name": "vision"}, timeout=60).raise_for_status()
        made = {"json": {"name": "kept"}, "headers": {"X-MLFLOW-WORKSPACE": "vision"}}
        requests.post(f"{api}/2.0/mlflow/experiments/create", **made, timeout=60).raise_for_status()
        server.kill()
        server.start()
        with pytest.raises(AssertionError, match=refusal):
            server.wait_ready()
        server.kill()
        server.start(environment=WITH)
        server.wait_ready()
        requests.delete(f"{server.address}{path}", timeout=60).raise_for_status()
        server.kill()
        server.start()
        server.wait_ready()
        asked = {"params": {"experiment_name": "kept"}, "timeout": 60}
        found = requests.get(f"{api}/2.0/mlflow/experiments/get-by-name", **asked)
        assert found.json()["experiment"]["lifecycle_stage"] == "active"
    finally:
        server.kill()
