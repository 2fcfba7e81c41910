"""The embedded stack with the keys and users of a cluster: each process of a run holds those of the pod it stands for.

The object store has the identities that the setup job makes, and tells of each request whose key asked what; MLflow has
its users. ``as_pods`` gives processes and components their credentials.
"""

import codecs
import json
import os
import re
import socketserver
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from mlflow_server import MlflowServer
from wukong_command import AS_PODS, PODS

from infra import cluster, s3_keys, stack
from infra.stack.services import ObjectStore
from infra.stack.state import Stack, write_private
from wukong import stages
from wukong.stages import access

KEYS = {name: {"AWS_ACCESS_KEY_ID": name, "AWS_SECRET_ACCESS_KEY": f"secret-of-{name}"} for name in s3_keys.NAMES}
USERS = {
    secret: {"MLFLOW_TRACKING_USERNAME": user, "MLFLOW_TRACKING_PASSWORD": f"password-of-{user}"}
    for secret, user in (
        ("wukong-mlflow", "stages"),
        ("runs-mlflow", "runs"),
        ("search-mlflow", "search"),
        ("mlflow-admin", "admin"),
    )
}
"""The Secrets with an S3 key, and those with a user of MLflow."""


@dataclass(frozen=True)
class Request:
    """A request that the object store has answered.

    Attributes:
        key: name of the Secret with the S3 key that asked; ``wukong`` is the user of the stack, empty is nobody.
        operation: as AWS' access logs call it.
        place: the object; empty for a list, of which the store does not tell the prefix.
        status: HTTP's.
    """

    key: str
    operation: str
    place: str
    status: int

    @property
    def makes_folders(self) -> bool:
        """Whether it looks for the bucket or puts an object in the place of a folder, without which all goes on."""
        return self.place.endswith("/") or (not self.place and self.operation != "REST.GET.OBJECT")


@dataclass
class Keys:
    """The keys of a stack while it runs.

    Attributes:
        home: the home of the stack.
        environment: variables with which the processes of a command get the credentials of pods.
        requests: all that the object store has been asked for.
    """

    home: Path
    environment: dict[str, str]
    requests: list[Request] = field(default_factory=list)

    def refused(self) -> list[str]:
        """What the object store and MLflow have refused to anybody."""
        denied = [request for request in self.requests if request.status in (401, 403)]
        by_store = [str(request) for request in denied if not request.makes_folders]
        return by_store + re.findall('".+" 40[13] .*', (self.home / "log.txt").read_text(encoding="utf-8"))

    def used(self) -> set[str]:
        """The keys with which something was asked for."""
        return {request.key for request in self.requests}


@contextmanager
def held(home: Path) -> Iterator[Keys]:
    """Start the stores of a stack with the keys of a cluster, for the time of the block; who uses the stack ends it."""
    path = os.pathsep.join([str(AS_PODS), *filter(None, [os.environ.get("PYTHONPATH")])])
    keys = Keys(home, {"PYTHONPATH": path, PODS: str(home / "pods.json")})
    with _told(keys.requests) as port, pytest.MonkeyPatch.context() as patch:
        prepare, command = ObjectStore.prepare, ObjectStore.command

        def prepare_with_keys(service: ObjectStore, of: Stack) -> None:
            prepare(service, of)
            own = json.loads((of.home / "s3.json").read_text(encoding="utf-8"))["identities"]
            write_private(of.home / "s3.json", json.dumps({"identities": [*own, *cluster._identities([], KEYS)]}))
            log = {"fluent_host": "127.0.0.1", "fluent_port": port, "marshal_as_json": True}
            write_private(of.home / "requests.json", json.dumps(log))

        def command_with_log(service: ObjectStore, of: Stack) -> list[str]:
            return [*command(service, of), f"-s3.auditLogConfig={of.home / 'requests.json'}"]

        patch.setattr(ObjectStore, "prepare", prepare_with_keys)
        patch.setattr(ObjectStore, "command", command_with_log)
        started = stack.up(home, only=stack.STORES, remember=False)
        server = MlflowServer(home)  # a second one, with users, on the database of the stack's
        try:
            _start_with_users(server, started)
            write_private(home / "pods.json", json.dumps(_pods(server.address)))
            yield keys
        finally:
            server.kill()


def _pods(mlflow: str) -> dict[str, dict[str, str]]:
    """The variables of each kind of pod, by its name in ``as_pods``; a worker that works for no job has none."""
    everywhere = {"MLFLOW_TRACKING_URI": mlflow}
    pods: dict[str, dict[str, str]] = {"job/": {}}
    for component in (*stages.RECORDED, "configure", "record_end", "find_manifest", "data_card", "results"):
        function = (stages.of(component).function if component in stages.RECORDED else "") or component
        pods[f"component/{function}"] = everywhere | _values(access.secrets_of_component(component))
    for stage in stages.JOBS:
        names = access.secrets_of_job(stage).values()
        variables = everywhere | _values(name for name in names if name is not None)
        pods |= {f"job/{record}": variables for record in (stage, *stages.of(stage).records)}
    return pods


def _values(secrets: Iterable[str]) -> dict[str, str]:
    return {key: value for secret in secrets for key, value in {**KEYS, **USERS}[secret].items()}


def _start_with_users(server: MlflowServer, of: Stack) -> None:
    """Start MLflow as on a cluster, and give it its users as the setup job does."""
    store = {name: value for name, value in of.variables().items() if name.startswith("AWS_")} | KEYS["mlflow-s3"]
    server.start_with_users(
        cluster._mlflow_server("unused"),
        USERS["mlflow-admin"],
        "--artifacts-destination=s3://mlflow",
        environment=store | {"MLFLOW_S3_ENDPOINT_URL": of.url("s3")},
    )
    server.wait_ready()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"MLFLOW_TRACKING_URI": server.address, **USERS["mlflow-admin"]}.items():
            patch.setenv(name, value)
        cluster.make_mlflow_users(
            {user: {"USERNAME": user, "PASSWORD": f"password-of-{user}"} for user in cluster.MLFLOW_USERS}
        )


@contextmanager
def _told(requests: list[Request]) -> Iterator[int]:
    """Take what the object store sends to a server of logs; yields the port of that server."""

    class Reader(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            decoder, of_bytes, text = json.JSONDecoder(), codecs.getincrementaldecoder("utf-8")(), ""
            while piece := self.request.recv(65536):
                text += of_bytes.decode(piece)
                with suppress(json.JSONDecodeError):  # until the rest has come
                    while text:
                        (_, _, told, _), end = decoder.raw_decode(text)
                        requests.append(Request(told["requester"], told["operation"], told["key"], told["status"]))
                        text = text[end:].lstrip()

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Reader) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.1,), daemon=True).start()
        yield server.server_address[1]
        server.shutdown()
