"""A cluster for those who look for room: a node of four cores, three of them in use, and one that is cordoned."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import api_server
import pytest
from api_server import ApiServer
from manifests import plain


@contextmanager
def running(folder: Path, patch: pytest.MonkeyPatch) -> Iterator[ApiServer]:
    """The API server of ``api_server.running``, with the installation's ConfigMaps, until the block ends."""
    with api_server.running(folder, patch) as server:
        for each in plain():
            server.put(each)
        allocatable = {"cpu": "4", "memory": "8Gi", "pods": "110"}
        for name, unschedulable in (("a", False), ("cordoned", True)):
            _put(server, "Node", name, {"unschedulable": unschedulable}, {"allocatable": allocatable})
        for number, (node, cpu, phase) in enumerate((("a", 3, "Running"), ("a", 9, "Succeeded"), (None, 9, "Running"))):
            container = {"name": "c", "resources": {"requests": {"cpu": str(cpu)}}}
            spec = {"nodeName": node, "containers": [container]}
            _put(server, "Pod", f"pod-{number}", spec, {"phase": phase}, namespace="default")
        yield server


def _put(server: ApiServer, kind: str, name: str, spec: dict[str, Any], status: dict[str, Any], **place: str) -> None:
    metadata = {"name": name, **place}
    server.put({"apiVersion": "v1", "kind": kind, "metadata": metadata, "spec": spec, "status": status})
