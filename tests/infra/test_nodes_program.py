"""How the cluster's tests have an operator's program lose a node, and which nodes they let it lose."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parents[1] / "cluster"))

import nodes


def test_the_program_gets_a_verb_and_a_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "lose"
    program.write_text(
        f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n[ "$1" != join ] || {{ echo no cable >&2; exit 3; }}\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv(nodes.VARIABLE, str(program))
    nodes.do("cut", "node2")
    with pytest.raises(AssertionError, match="no cable"):
        nodes.do("join", "node2")
    assert (tmp_path / "asked").read_text() == "cut node2\njoin node2\n"


def test_without_a_program_the_claim_is_skipped_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(nodes.VARIABLE, raising=False)
    with pytest.raises(pytest.skip.Exception, match="WUKONG_NODES names no program that loses nodes"):
        nodes.do("kill", "node2")


def node(name: str, *, answers: bool = True) -> dict[str, Any]:
    conditions = [{"type": "Ready", "status": "True" if answers else "Unknown"}]
    return {"metadata": {"name": name}, "spec": {}, "status": {"conditions": conditions}}


def pod(of: str, phase: str = "Running", owner: str = "", **labels: str) -> dict[str, Any]:
    metadata = {"labels": labels, "ownerReferences": [{"kind": owner}] if owner else []}
    return {"metadata": metadata, "spec": {"nodeName": of}, "status": {"phase": phase}}


def test_a_node_with_a_server_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    listed = {
        "nodes": [node(name) for name in "abcde"] + [node("f", answers=False)],
        "pods": [
            pod("a", owner="StatefulSet"),
            pod("b", owner="ReplicaSet", **{"app.kubernetes.io/component": "mlflow"}),
            pod("c", owner="DaemonSet"),
            pod("c", **{"app.kubernetes.io/component": "ray"}),
            pod("c", phase="Succeeded"),
            pod("d", **{"workflows.argoproj.io/workflow": "run"}),
        ],
    }
    monkeypatch.setattr("kube.listed", lambda kind, *_, **__: json.loads(json.dumps(listed[kind])))
    assert nodes.expendable() == ["c", "d", "e"]
    with pytest.raises(pytest.skip.Exception, match="only 3 hold no server, and 4 are needed"):
        nodes.expendable(4)
