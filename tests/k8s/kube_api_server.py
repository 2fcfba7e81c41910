"""A real API server of Kubernetes on loopback, with etcd and nothing else: no controller and no node.

Both programs are taken from the folder ``WUKONG_APISERVER_BIN`` or from PATH (``setup-envtest``, a tool of
controller-runtime, brings both).
"""

import json
import os
import shutil
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from free_ports import free_port
from manifests import Manifest

TOKEN = "of-a-server-that-lives-for-this-test"
NOBODYS_TOKEN = "of-a-user-without-rights"
READY_SECONDS = 90.0


def programs(*names: str) -> list[str]:
    """Programs by their names; the test is skipped where they cannot be had."""
    folder = os.environ.get("WUKONG_APISERVER_BIN")
    found = [shutil.which(name, path=folder or None) for name in names]
    if missing := [name for name, path in zip(names, found, strict=True) if path is None]:
        lacking, needed = " and ".join(missing), " and ".join(names)
        pytest.skip(f"{lacking} not in {folder or 'PATH'}: set WUKONG_APISERVER_BIN to a folder with {needed}")
    return [path for path in found if path]


@dataclass
class Server:
    """An API server: its port, the folder of its files, and the resources that it knows by kind."""

    port: int
    folder: Path
    _resources: dict[tuple[str, str], tuple[str, bool]] = field(default_factory=dict)

    def ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """One request; the answer as JSON.

        Raises:
            urllib.error.HTTPError: the server refuses.
        """
        request = urllib.request.Request(f"https://127.0.0.1:{self.port}{path}", method=method)
        request.add_header("Authorization", f"Bearer {TOKEN}")
        if body is not None:
            request.data = json.dumps(body).encode()
            request.add_header("Content-Type", "application/json")
        # The certificate is made by the server as it starts, on loopback.
        with urllib.request.urlopen(request, timeout=20, context=ssl._create_unverified_context()) as answer:
            return json.loads(answer.read() or "{}")

    def create(self, manifest: Manifest, *, dry_run: bool = True) -> str:
        """Make an object, or let the server judge it as if; the server's refusal, empty if it accepts."""
        version, kind = manifest["apiVersion"], manifest["kind"]
        group = f"/api/{version}" if "/" not in version else f"/apis/{version}"
        if (version, kind) not in self._resources:
            for entry in self.ask("GET", group)["resources"]:
                if "/" not in entry["name"]:
                    self._resources[version, entry["kind"]] = (entry["name"], entry["namespaced"])
        plural, namespaced = self._resources[version, kind]
        place = f"/namespaces/{manifest['metadata'].get('namespace', 'default')}" if namespaced else ""
        options = "fieldValidation=Strict" + ("&dryRun=All" if dry_run else "")
        try:
            self.ask("POST", f"{group}{place}/{plural}?{options}", manifest)
        except urllib.error.HTTPError as error:
            name = manifest["metadata"].get("name", "")
            return f"{kind} {name}: {json.loads(error.read()).get('message', error)}"
        return ""

    def kubeconfig(self, path: Path, token: str = TOKEN) -> Path:
        """Write a kubeconfig of who has a token; return its path."""
        named = {"clusters": "cluster", "users": "user", "contexts": "context"}
        values = {
            "cluster": {"server": f"https://127.0.0.1:{self.port}", "insecure-skip-tls-verify": True},
            "user": {"token": token},
            "context": {"cluster": "test", "user": "test"},
        }
        made = {name: [{"name": "test", key: values[key]}] for name, key in named.items()}
        path.write_text(json.dumps({"apiVersion": "v1", "kind": "Config", "current-context": "test", **made}))
        return path


@contextmanager
def running(folder: Path) -> Iterator[Server]:
    """A server, for the time of the block."""
    etcd, apiserver = programs("etcd", "kube-apiserver")
    with ExitStack() as stack:
        client, peer, port = (free_port() for _ in range(3))
        stack.enter_context(
            process(
                [
                    etcd,
                    f"--data-dir={folder / 'etcd'}",
                    f"--listen-client-urls=http://127.0.0.1:{client}",
                    f"--advertise-client-urls=http://127.0.0.1:{client}",
                    f"--listen-peer-urls=http://127.0.0.1:{peer}",
                    f"--initial-advertise-peer-urls=http://127.0.0.1:{peer}",
                    f"--initial-cluster=default=http://127.0.0.1:{peer}",
                    "--unsafe-no-fsync",
                ],
                folder / "etcd.log",
            )
        )
        (folder / "tokens.csv").write_text(
            f"{TOKEN},admin,admin,system:masters\n{NOBODYS_TOKEN},nobody,nobody\n", encoding="ascii"
        )
        key = _service_account_key(folder / "service-accounts.key")
        started = stack.enter_context(
            process(
                [
                    apiserver,
                    f"--etcd-servers=http://127.0.0.1:{client}",
                    f"--secure-port={port}",
                    "--bind-address=127.0.0.1",
                    "--advertise-address=127.0.0.1",
                    f"--cert-dir={folder / 'certificates'}",
                    f"--token-auth-file={folder / 'tokens.csv'}",
                    "--authorization-mode=RBAC",
                    f"--service-account-key-file={key}",
                    f"--service-account-signing-key-file={key}",
                    "--service-account-issuer=https://kubernetes.default.svc",
                    "--service-cluster-ip-range=10.0.0.0/24",
                ],
                folder / "api-server.log",
            )
        )
        server = Server(port, folder)
        _wait(server, started, folder / "api-server.log")
        yield server


@contextmanager
def process(
    command: list[str], log: Path, environment: Mapping[str, str] | None = None
) -> Iterator["subprocess.Popen[bytes]"]:
    """A program, for the time of the block, whose output goes into a file."""
    with (
        log.open("wb") as output,
        subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment) as started,
    ):
        try:
            yield started
        finally:
            started.kill()


def _service_account_key(path: Path) -> Path:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
        )
    )
    return path


def _wait(server: Server, program: "subprocess.Popen[bytes]", log: Path) -> None:
    until = time.monotonic() + READY_SECONDS
    while True:
        try:
            server.ask("GET", "/api/v1/namespaces/default")
        except OSError:
            ended = program.poll() is not None
            assert not ended and time.monotonic() < until, log.read_text(encoding="utf-8", errors="replace")[-3000:]
            time.sleep(0.3)
        else:
            return
