"""A Kubeflow Pipelines API (v2beta1) on loopback, as far as `wukong submit` asks it."""

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit


class Kfp(ThreadingHTTPServer):
    """The API's state.

    Attributes:
        script: the states that runs play, one at each look.
        states: that runs had before, which their history has.
        tasks: of every run.
        refuse: the status with which every request is refused; 0 for none.
        refuse_runs: likewise, requests about a run.
        unavailable: how many requests still to answer with 503.
        unanswered: whether the connection breaks before what begins a run is answered.
        authorizations: the header of each request.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.experiments: list[dict[str, Any]] = []
        self.pipelines: list[dict[str, Any]] = []
        self.versions: list[dict[str, Any]] = []
        self.runs: list[dict[str, Any]] = []
        self.recurring: list[dict[str, Any]] = []
        self.script = ["PENDING", "RUNNING", "SUCCEEDED"]
        self.tasks: list[dict[str, str]] = []
        self.states: list[str] = []
        self.refuse = 0
        self.refuse_runs = 0
        self.unavailable = 0
        self.unanswered = False
        self.authorizations: list[str | None] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Kfp

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        kfp, address = self.server, urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(address.query).items()}
        kfp.authorizations.append(self.headers.get("Authorization"))
        name = ""
        if "filter" in query:
            (predicate,) = json.loads(query["filter"])["predicates"]
            name = predicate.get("stringValue") or predicate.get("string_value")
        path = address.path.removeprefix("/apis/v2beta1/")
        if kfp.refuse:
            return self._answer({"error_message": "no"}, kfp.refuse)
        if kfp.unavailable:
            kfp.unavailable -= 1
            return self._answer({}, 503)
        if path == "healthz":
            return self._answer({"multi_user": False})
        if path in ("experiments", "pipelines"):
            there = [e for e in getattr(kfp, path) if (e.get("namespace") or None) == query.get("namespace")]
            found = [entry for entry in there if not name or entry["display_name"] == name]
            return self._answer({path: found} if found else {})
        if match := re.fullmatch(r"pipelines/([\w-]+)/versions", path):
            found = [v for v in kfp.versions if v["pipeline_id"] == match[1] and v["display_name"] == name]
            return self._answer({"pipeline_versions": found} if found else {})
        if match := re.fullmatch(r"runs/([\w-]+)", path):
            if kfp.refuse_runs:
                return self._answer({"error_message": "no"}, kfp.refuse_runs)
            (run,) = [run for run in kfp.runs if run["run_id"] == match[1]]
            state = kfp.script.pop(0) if len(kfp.script) > 1 else kfp.script[0]
            history = [{"update_time": "2026-11-30T09:00:00Z", "state": each} for each in [*kfp.states, state]]
            details = {"task_details": kfp.tasks}
            return self._answer(run | {"state": state, "state_history": history, "run_details": details})
        return self._answer({"error_message": f"no {path}"}, 404)

    def do_POST(self) -> None:
        kfp, address = self.server, urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(address.query).items()}
        body = self.rfile.read(int(self.headers["Content-Length"]))
        path = address.path.removeprefix("/apis/v2beta1/")
        if path == "pipelines/upload":
            made = {"pipeline_id": f"p{len(kfp.pipelines)}", "display_name": query["name"]}
            made |= {"description": query["description"], "namespace": query.get("namespace")}
            kfp.pipelines.append(made)
            return self._answer(made)
        if path == "pipelines/upload_version":
            made = {"pipeline_id": query["pipelineid"], "pipeline_version_id": f"v{len(kfp.versions)}"}
            kfp.versions.append(
                made | {"display_name": query["name"], "description": query["description"], "file": body}
            )
            return self._answer(made)
        value = json.loads(body)
        kind, key = {
            "experiments": ("experiments", "experiment_id"),
            "runs": ("runs", "run_id"),
            "recurringruns": ("recurring", "recurring_run_id"),
        }[path]
        kept = getattr(kfp, kind)
        made = value | {key: f"{kind}-{len(kept)}"}
        kept.append(made)
        if kfp.unanswered and kind != "experiments":
            self.close_connection = True
            return None
        return self._answer(made)

    def _answer(self, value: dict[str, Any], status: int = 200) -> None:
        shown = {key: entry for key, entry in value.items() if not isinstance(entry, bytes)}
        if "pipeline_versions" in shown:
            shown["pipeline_versions"] = [
                {key: entry for key, entry in v.items() if key != "file"} for v in shown["pipeline_versions"]
            ]
        body = json.dumps(shown).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def running() -> Iterator[Kfp]:
    """The API, until the block ends."""
    with Kfp() as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()
