"""The pages beside the stages: what they show, and that one that cannot be shown ends nothing."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from components.functions import data_card, results
from wukong.store import storage
from wukong.store.manifest import Stage


class Metrics(SimpleNamespace):
    """An output artifact of KFP for numbers."""

    def log_metric(self, name: str, value: float) -> None:
        self.logged[name] = value


def outputs(folder: Path) -> dict[str, Any]:
    page = SimpleNamespace(path=str(folder / "page" / "page.md"))
    return {"page": page, "metrics": Metrics(logged={})}


def manifest_at(folder: Path, stage: str, **metrics: float) -> SimpleNamespace:
    """A manifest of a stage that has no other output, as KFP hands it on."""
    made = Stage(storage.from_path(folder), stage, {}).commit([], metrics=metrics)
    artifact = folder / f"{stage}.json"
    artifact.write_text(made.model_dump_json(), encoding="utf-8")
    return SimpleNamespace(path=str(artifact), uri=made.uri)


def test_the_results_are_shown(tmp_path: Path) -> None:
    evaluated = manifest_at(tmp_path, "evaluate", **{"eval/recall": 0.5, "pretrain/recall": 0.25})
    storage.write_json(f"{evaluated.uri}/evaluation.json", {"tasks": []})
    made = outputs(tmp_path)
    results.python_func(evaluate_manifest=evaluated, classes=SimpleNamespace(), **made)
    assert Path(made["page"].path).read_text(encoding="utf-8").startswith("# ")
    assert made["metrics"].logged == {"eval/recall": 0.5}


@pytest.mark.parametrize("lost", ["the artifact", "what it names"])
def test_results_that_are_gone_are_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture, lost: str) -> None:
    evaluated = manifest_at(tmp_path, "evaluate")
    if lost == "the artifact":
        Path(evaluated.path).unlink()
    made = outputs(tmp_path)
    results.python_func(evaluate_manifest=evaluated, classes=SimpleNamespace(), **made)
    assert Path(made["page"].path).read_text(encoding="utf-8").startswith("This page cannot be shown: ")
    assert [record.levelname for record in caplog.records if "cannot be shown" in record.message] == ["WARNING"]


def test_a_card_that_is_gone_is_a_warning_and_leaves_no_half_of_a_card(tmp_path: Path) -> None:
    manifests = {f"{name}_manifest": manifest_at(tmp_path, name) for name in ("crawl", "filter", "validate")}
    made, card = outputs(tmp_path), tmp_path / "card.html"
    data_card.python_func(**manifests, **made, card=SimpleNamespace(path=str(card)))
    assert "cannot be shown" in Path(made["page"].path).read_text(encoding="utf-8")
    assert not card.exists()
