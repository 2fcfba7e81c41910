"""MLflow's server for the embedded stack: its own application, behind a check of who asks.

MLflow without users lets everybody who reaches its port change all runs and models, and choose folders of this machine
for artifacts. On loopback these are all users of the machine, and every page in a browser on it. So a request is taken
if it shows the stack's token, or if its connection belongs to the user of this process, who needs no password in a
browser. A request that a page of another address sends is refused.
"""

import argparse
import asyncio
import hmac
import ipaddress
import os
import socket
import sys
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

TOKEN = "MLFLOW_TRACKING_TOKEN"  # noqa: S105 - the name of MLflow's variable
"""The variable that holds the token, here and in MLflow's clients."""

_CONNECTIONS = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))

_Scope = MutableMapping[str, Any]
_Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
_Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
_App = Callable[[_Scope, _Receive, _Send], Awaitable[None]]


def guarded(app: _App, port: int, token: str) -> _App:
    """Return an ASGI application that refuses what the application must not get, with status 403 and the reason.

    Args:
        app: the application.
        port: where it listens on loopback. It answers to the hosts 127.0.0.1 and localhost with this port.
        token: token of the header ``Authorization: Bearer TOKEN``.
    """
    hosts = {f"127.0.0.1:{port}", f"localhost:{port}"}

    async def answer(scope: _Scope, receive: _Receive, send: _Send) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        if reason := await asyncio.to_thread(_refusal, headers, hosts, token, scope["client"], port):
            body = f"{reason}\n".encode()
            start = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(body)).encode())]
            await send({"type": "http.response.start", "status": 403, "headers": start})
            await send({"type": "http.response.body", "body": body})
            return
        await app(scope, receive, send)

    return answer


def _refusal(
    headers: MutableMapping[str, str], hosts: set[str], token: str, client: tuple[str, int] | None, port: int
) -> str:
    """Return why a request is refused; empty if it is not."""
    host, origin = headers.get("host", ""), headers.get("origin")
    if host not in hosts:
        return f"this server does not answer to the host {host!r}"
    if origin is not None and origin not in {f"http://{known}" for known in hosts}:
        return f"this server takes no request from pages of {origin!r}"
    if hmac.compare_digest(headers.get("authorization", "").encode(), f"Bearer {token}".encode()):
        return ""
    if client is not None and not is_own(client, port):
        return "this server belongs to another user of this machine: requests need its token"
    return ""


def is_own(client: tuple[str, int], port: int) -> bool:
    """Return whether a loopback connection to a port belongs to the user of this process.

    A connection that its program has closed has no owner any more, and is nobody's. Where the kernel shows no owners
    (only Linux does), every connection counts as the user's.

    Args:
        client: address and port of the connection's other end.
        port: port of this end.
    """
    tables = [table for table in _CONNECTIONS if table.exists()]
    for table in tables:
        for line in table.read_text(encoding="ascii").splitlines()[1:]:
            fields = line.split()
            if _end(fields[1]) == client and _end(fields[2])[1] == port:
                user, inode = int(fields[7]), int(fields[9])
                return inode != 0 and user == os.getuid()
    return not tables


def _end(text: str) -> tuple[str, int]:
    """Return address and port of one end, which the kernel writes as words of 32 bits in the machine's byte order."""
    words, _, port = text.partition(":")
    packed = b"".join(int(words[start : start + 8], 16).to_bytes(4, sys.byteorder) for start in range(0, len(words), 8))
    address = ipaddress.ip_address(packed)
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return str(mapped or address), int(port, 16)


def main() -> None:
    """Serve MLflow on 127.0.0.1. The environment has the token, and what MLflow needs to use the object store."""
    import uvicorn  # before MLflow, which looks whether it runs in a server

    parser = argparse.ArgumentParser(prog="python -m infra.stack.tracking_server")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--database", required=True, help="URI of the database")
    parser.add_argument("--artifacts", required=True, help="URI below which artifacts lie")
    given = parser.parse_args()
    token = os.environ.pop(TOKEN)  # the server is no client

    import mlflow.server as settings

    os.environ[settings.BACKEND_STORE_URI_ENV_VAR] = given.database
    os.environ[settings.ARTIFACT_ROOT_ENV_VAR] = "mlflow-artifacts:/"
    os.environ[settings.ARTIFACTS_DESTINATION_ENV_VAR] = given.artifacts
    os.environ[settings.SERVE_ARTIFACTS_ENV_VAR] = "true"

    from mlflow.server.fastapi_app import app
    from mlflow.server.handlers import initialize_backend_stores

    initialize_backend_stores(given.database, given.database, "mlflow-artifacts:/")
    with socket.create_server(("127.0.0.1", given.port), backlog=2048) as listening:
        # What MLflow does when it starts, and "lifespan" would do, is to remove the containers of its assistant.
        config = uvicorn.Config(guarded(app, given.port, token), proxy_headers=False, lifespan="off")
        uvicorn.Server(config).run([listening])


if __name__ == "__main__":
    main()
