"""Alerts: each is raised by an injected fault and by nothing else, as Prometheus' own tester computes it."""

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
RULES = ROOT / "k8s" / "components" / "alerts" / "alerts.yaml"
CASES: list[dict[str, Any]] = yaml.safe_load((Path(__file__).parent / "alerts.yaml").read_text(encoding="utf-8"))


def program(name: str) -> str:
    """Path of one of Prometheus' programs; ``.ci/run`` gets them where they can be had."""
    found = shutil.which(name, path=f"{os.environ['PATH']}{os.pathsep}{ROOT / 'build' / 'bin'}")
    if found is None:
        pytest.skip(f"{name} is not installed (Debian: prometheus): alerts and dashboard are NOT checked")
    return found


def alerts() -> dict[str, dict[str, Any]]:
    groups = yaml.safe_load(RULES.read_text(encoding="utf-8"))["spec"]["groups"]
    return {rule["alert"]: rule for group in groups for rule in group["rules"]}


def test_each_alert_has_a_fault_that_raises_it() -> None:
    assert [case["alert"] for case in CASES] == list(alerts())


def test_each_alert_says_how_severe_it_is_and_what_to_look_at() -> None:
    page = (ROOT / "docs" / "monitoring.md").read_text(encoding="utf-8")
    for name, rule in alerts().items():
        assert rule["labels"]["severity"] in {"warning", "critical"}, name
        assert rule["annotations"]["summary"], name
        assert f"`{name}`" in page, f"docs/monitoring.md does not explain {name}"


def test_each_alert_is_raised_by_its_fault_and_not_without_it(tmp_path: Path) -> None:
    promtool = program("promtool")
    rules = tmp_path / "rules.yaml"
    rules.write_text(yaml.safe_dump(yaml.safe_load(RULES.read_text(encoding="utf-8"))["spec"]), encoding="utf-8")
    tests = []
    for case in CASES:
        rule = alerts()[case["alert"]]
        labels = {**rule["labels"], **case.get("labels", {})}
        summary = rule["annotations"]["summary"]
        for name, value in labels.items():
            summary = summary.replace(f"{{{{ $labels.{name} }}}}", value)
        raised = {"exp_labels": labels, "exp_annotations": {"summary": summary}}
        for series, expected in ((case["series"], [raised]), (case["sound"], [])):
            asked = {"eval_time": case["at"], "alertname": case["alert"], "exp_alerts": expected}
            tests.append({"interval": "1m", "input_series": series, "alert_rule_test": [asked]})
    suite = tmp_path / "tests.yaml"
    suite.write_text(
        yaml.safe_dump({"rule_files": [str(rules)], "evaluation_interval": "1m", "tests": tests}), encoding="utf-8"
    )
    checked = subprocess.run([promtool, "test", "rules", str(suite)], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr
