"""The public workflow runs the README's two commands on the systems that the README names."""

from pathlib import Path
from typing import Any

import yaml

JOBS: dict[str, Any] = yaml.safe_load(Path(".github/workflows/ci.yml").read_text(encoding="utf-8"))["jobs"]
COMMANDS = {name: [step["run"] for step in job["steps"] if "run" in step] for name, job in JOBS.items()}


def test_every_job_runs_both_commands() -> None:
    for name, commands in COMMANDS.items():
        if name in ("cluster", "audit"):
            continue
        made = [command.split()[1] for command in commands if command.startswith("make ")]
        assert made == (["test-all"] if name == "long" else ["run", "down", "test"]), name


def test_a_cluster_is_made_tried_and_deleted() -> None:
    made = [word for command in COMMANDS["cluster"] for word in command.split() if word.startswith("cluster")]
    assert made == ["cluster", "cluster-test", "cluster-down"]


def test_all_pinned_versions_are_audited_each_week() -> None:
    assert "'schedule'" in JOBS["audit"]["if"]
    audited = COMMANDS["audit"][-1]
    assert "pip-audit" in audited
    assert "constraints.txt infra/images/constraints.txt" in audited


def test_systems_pythons_and_builds_of_torch() -> None:
    systems = JOBS["systems"]["strategy"]["matrix"]
    assert {"debian:12", "debian:13", "ubuntu:22.04", "ubuntu:24.04"} <= set(systems["image"])
    assert set(systems["torch"]) == {"cpu", "cuda"}
    assert {"3.11", "3.12", "3.13"} <= set(JOBS["pythons"]["strategy"]["matrix"]["python"])
    assert any("NEWEST=1" in command for command in COMMANDS["newest"])


def test_only_the_prerequisites_of_the_readme_are_installed() -> None:
    (step,) = [step["run"] for step in JOBS["systems"]["steps"] if "Prerequisites" in step.get("name", "")]
    packages = {
        word
        for word in step.replace("\\\n", " ").split()
        if word.startswith(("git", "make", "python", "${PY", "ca-", "npm", "node"))
    }
    assert packages == {"ca-certificates", "git", "make", "python3", "${PYTHON:-python3}", "${PYTHON:-python3}-venv"}
