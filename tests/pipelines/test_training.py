import itertools
from pathlib import Path
from typing import Any

import pytest
import yaml
from kfp import compiler

from pipelines.training import training
from wukong.stages import WHOLE_RUN


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    file = tmp_path_factory.mktemp("compiled") / "training.yaml"
    compiler.Compiler().compile(training, str(file))
    return dict(next(yaml.safe_load_all(Path(file).read_text()))["root"]["dag"]["tasks"])


def after(tasks: dict[str, Any], name: str) -> set[str]:
    """All tasks that must have ended before this one begins."""
    direct = set(tasks[name].get("dependentTasks", ()))
    return direct.union(*(after(tasks, other) for other in direct))


def test_every_stage_is_a_task(tasks: dict[str, Any]) -> None:
    # A set is released by the data pipeline, or by hand.
    assert {name.removesuffix("-pairs") for name in tasks} == set(WHOLE_RUN)


def test_nothing_is_trained_before_the_gate_has_passed(tasks: dict[str, Any]) -> None:
    for name in ("pretrain", "finetune", "evaluate", "register"):
        assert "validate" in after(tasks, name)


def test_stages_follow_each_other(tasks: dict[str, Any]) -> None:
    order = ["crawl", "filter-pairs", "validate", "pretrain", "finetune", "evaluate", "register", "report"]
    for earlier, later in itertools.pairwise(order):
        assert earlier in after(tasks, later)
