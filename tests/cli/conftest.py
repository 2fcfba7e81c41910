"""A Kubeflow Pipelines API on loopback, and an experiment's file."""

from collections.abc import Iterator
from pathlib import Path

import played_kfp
import pytest
from played_kfp import Kfp


@pytest.fixture
def kfp(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Kfp]:
    monkeypatch.setattr("kfp.Client._LOCAL_KFP_CONTEXT", str(tmp_path / "context.json"))
    with played_kfp.running() as server:
        yield server


@pytest.fixture
def file(tmp_path: Path) -> Path:
    written = tmp_path / "experiment.yaml"
    written.write_text(
        "name: demo\ncrawl: {queries: 'file:///q.txt', endpoint: 'http://site.invalid'}\n"
        "filter: {split: {held_out_captions: 0.1, holdouts: [{name: h, source: '*', captions: unseen}]}}\n"
    )
    return written


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cli.kfp_api.time.sleep", lambda _: None)
