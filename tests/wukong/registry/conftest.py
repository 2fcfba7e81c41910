"""The registry's fixtures."""

from pathlib import Path

import pytest
from registered import Registered


@pytest.fixture
def register(tmp_path: Path, mlflow_address: str, monkeypatch: pytest.MonkeyPatch) -> Registered:
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_address)
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)
    # A version's sixty files take longer than all else here.
    monkeypatch.setattr("wukong.model.pyfunc.save", lambda folder, *_: folder.mkdir())
    return Registered(tmp_path)
