"""An experiment that can be run, for the checks before its first stage."""

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from wukong.config import documents
from wukong.config.experiment import Experiment
from wukong.store import storage

HOLDOUTS = [{"name": "held-out", "source": "*", "captions": "unseen"}]


@pytest.fixture
def experiment(tmp_path: Path) -> Callable[..., Experiment]:
    """An experiment whose lists are there, and what differs from it."""
    (tmp_path / "queries.txt").write_text("猫\n狗\n")
    value = {
        "name": "x",
        "storage": storage.from_path(tmp_path / "data"),
        "crawl": {"queries": storage.from_path(tmp_path / "queries.txt"), "endpoint": "http://site.test/search"},
        "filter": {"split": {"held_out_captions": 0.1, "holdouts": HOLDOUTS}},
    }
    return lambda *overrides: documents.loads(yaml.safe_dump(value), list(overrides))
