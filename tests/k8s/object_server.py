"""A Kubernetes API on loopback that keeps objects of any kind, as far as making a team needs it.

It stores what is applied and patched, merged over what is there, and what is made; it turns ``stringData`` into
``data``. A Job that is made has ended at once. It checks nothing: ``kube_api_server`` is a real one.
"""

import base64
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

Manifest = dict[str, Any]


class ObjectServer:
    """The server.

    Attributes:
        objects: by their paths.
        changes: requests that have changed something, as "METHOD path".
        conditions: of Jobs that are made.
    """

    def __init__(self) -> None:
        self.objects: dict[str, Manifest] = {}
        self.changes: list[str] = []
        self.conditions: list[dict[str, str]] = [{"type": "Complete", "status": "True"}]
        self.port = 0

    def put(self, manifest: Manifest) -> None:
        """Have an object."""
        metadata, version = manifest["metadata"], manifest["apiVersion"]
        kind = manifest["kind"].lower()
        plural = f"{kind[:-1]}ies" if kind.endswith("y") else f"{kind}s"
        place = f"/namespaces/{metadata['namespace']}" if "namespace" in metadata else ""
        root = f"/apis/{version}" if "/" in version else f"/api/{version}"
        self.objects[f"{root}{place}/{plural}/{metadata['name']}"] = self._stored(manifest, {})

    def secret(self, namespace: str, name: str) -> dict[str, str]:
        """A Secret's values."""
        data = self.objects[f"/api/v1/namespaces/{namespace}/secrets/{name}"]["data"]
        return {key: base64.b64decode(value).decode() for key, value in data.items()}

    def named(self, plural: str, namespace: str = "") -> dict[str, Manifest]:
        """The objects of a kind, by name."""
        ending = (f"/namespaces/{namespace}" if namespace else "") + f"/{plural}/"
        return {path.rpartition("/")[2]: each for path, each in self.objects.items() if ending in path}

    def kubeconfig(self, path: Path) -> Path:
        values = {"cluster": {"server": f"http://127.0.0.1:{self.port}"}, "user": {}}
        made = {f"{key}s": [{"name": "test", key: value}] for key, value in values.items()}
        contexts = [{"name": "test", "context": {"cluster": "test", "user": "test"}}]
        path.write_text(json.dumps({"current-context": "test", "contexts": contexts, **made}))
        return path

    def answer(self, method: str, path: str, query: Mapping[str, list[str]], content: str, body: Any) -> Any:
        """What is answered: an object, a Status, or None for an object that is not there."""
        if method == "GET":
            if "labelSelector" not in query:
                return self.objects.get(path)
            wanted = {tuple(each.split("=")) for each in query["labelSelector"][0].split(",")}
            items = [each for name, each in self.objects.items() if name.rpartition("/")[0] == path]
            return {"items": [each for each in items if wanted <= each["metadata"].get("labels", {}).items()]}
        before = json.dumps(self.objects, sort_keys=True)
        answered: Any
        if method == "DELETE":
            answered = self.objects.pop(path, None)
            if path.startswith("/api/v1/namespaces/") and path.count("/") == 4:
                inside = f"{path.removeprefix('/api/v1')}/"
                self.objects = {name: each for name, each in self.objects.items() if inside not in name}
        elif method == "POST":
            name = body["metadata"].get("name") or f"{body['metadata']['generateName']}{len(self.changes)}"
            if f"{path}/{name}" in self.objects:
                return {"kind": "Status", "code": 409, "reason": "AlreadyExists"}
            body["metadata"]["name"] = name
            if path.endswith("/jobs"):
                body["status"] = {"conditions": self.conditions}
            answered = self.objects[f"{path}/{name}"] = self._stored(body, {})
        elif "apply" in content or path in self.objects:
            answered = self.objects[path] = self._stored(body, self.objects.get(path, {}))
        else:
            answered = None
        if json.dumps(self.objects, sort_keys=True) != before:
            self.changes.append(f"{method} {path}")
        return answered

    def _stored(self, given: Manifest, existing: Manifest) -> Manifest:
        made: Manifest = _merged(existing, json.loads(json.dumps(given)))
        for key, value in made.pop("stringData", {}).items():
            made.setdefault("data", {})[key] = base64.b64encode(value.encode()).decode()
        made["metadata"].setdefault("uid", f"uid of {made['metadata']['name']}")
        made["metadata"].setdefault("creationTimestamp", "2026-01-01T00:00:00Z")
        return made


def _merged(old: Any, new: Any) -> Any:
    if isinstance(old, dict) and isinstance(new, dict):
        return old | {key: _merged(old.get(key), value) for key, value in new.items()}
    return new


@contextmanager
def running() -> Iterator[ObjectServer]:
    """A server, for the time of the block."""
    objects = ObjectServer()

    class Handler(BaseHTTPRequestHandler):
        def _handle(self) -> None:
            length = int(self.headers.get("Content-Length", 0))
            body = json.loads(self.rfile.read(length)) if length else None
            parts = urlsplit(self.path)
            content = self.headers.get("Content-Type", "")
            answered = objects.answer(self.command, parts.path, parse_qs(parts.query), content, body)
            answered = {"kind": "Status", "code": 404} if answered is None else answered
            data = json.dumps(answered).encode()
            self.send_response(answered["code"] if answered.get("kind") == "Status" else 200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_PATCH = do_DELETE = _handle  # noqa: N815 - names of the standard library

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    objects.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield objects
    finally:
        server.shutdown()
        server.server_close()
