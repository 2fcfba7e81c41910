"""What an API server answers to those who look for room: nodes, pods, quotas, the ConfigMap of the stages."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import yaml

from cli.check import K8S


class PlayedCluster(ThreadingHTTPServer):
    """An API server with one node of four cores, three of them in use, and the ConfigMap of ``k8s/base``.

    Attributes:
        lists: what it lists, by path.
        forbidden: paths that it refuses.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        allocatable = {"cpu": "4", "memory": "8Gi", "pods": "110"}
        self.lists: dict[str, list[Any]] = {
            "/api/v1/nodes": [
                {"metadata": {"name": "a"}, "spec": {}, "status": {"allocatable": allocatable}},
                {
                    "metadata": {"name": "cordoned"},
                    "spec": {"unschedulable": True},
                    "status": {"allocatable": allocatable},
                },
            ],
            "/api/v1/pods": [_running("a", "3"), _running("a", "9", phase="Succeeded"), _running(None, "9")],
            "/api/v1/namespaces/wukong/resourcequotas": [],
        }
        self.forbidden: set[str] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def answer(self, path: str) -> Any:
        if path == "/api/v1/namespaces/wukong/configmaps/ray-job":
            manifests = yaml.safe_load_all((K8S / "base" / "ray.yaml").read_text(encoding="utf-8"))
            return next(each for each in manifests if each["metadata"]["name"] == "ray-job")
        return {"items": self.lists[path]}

    def kubeconfig(self, file: Path) -> Path:
        """Write the configuration of a user of this cluster."""
        named = {
            "clusters": [{"name": "c", "cluster": {"server": self.url}}],
            "users": [{"name": "u", "user": {}}],
            "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        }
        file.write_text(yaml.safe_dump({"current-context": "x", **named}), encoding="utf-8")
        return file


def _running(node: str | None, cpu: str, phase: str = "Running") -> dict[str, Any]:
    container = {"name": "c", "resources": {"requests": {"cpu": cpu}}}
    return {"spec": {"nodeName": node, "containers": [container]}, "status": {"phase": phase}}


class _Handler(BaseHTTPRequestHandler):
    server: PlayedCluster

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        forbidden = path in self.server.forbidden
        answer = {"kind": "Status", "code": 403} if forbidden else self.server.answer(path)
        body = json.dumps(answer).encode()
        self.send_response(403 if forbidden else 200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def running() -> Iterator[PlayedCluster]:
    """The server, until the block ends."""
    with PlayedCluster() as server:
        Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()
