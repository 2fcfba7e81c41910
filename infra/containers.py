"""A Ray head in a container, next to the embedded stack; `wukong run --runner docker` runs the stages' jobs on it.

It runs like a pod in a cluster: with the same image, user and command, without capabilities, and with a read-only file
system.
"""

import http.client
import os
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from wukong.errors import StackError

RAY_IMAGE = os.environ.get("WUKONG_RAY_IMAGE", "localhost/wukong/ray:0.2.0")
"""The image of the Ray head; the variable ``WUKONG_RAY_IMAGE`` names another one."""

LABEL = "wukong.pipeline"
"""The label of a local run's containers; its value is a folder in the stack's home. ``pipelines.local`` uses it too."""

_READY_SECONDS = 120.0
_PORTS = (
    "port",
    "dashboard-port",
    "dashboard-agent-listen-port",
    "dashboard-agent-grpc-port",
    "ray-client-server-port",
)
_ENDED = ("exited", "dead", "removing")


def check_images(*images: str) -> None:
    """Check that images are on this machine; otherwise Docker would look for them in a registry.

    Raises:
        StackError: no Docker engine answers, or an image is missing; the message says how to build it.
    """
    import docker.errors

    client = _client()
    for image in images:
        try:
            client.images.get(image)
        except docker.errors.ImageNotFound as error:
            raise StackError(f"there is no image {image} on this machine: `make images` builds it") from error


@contextmanager
def ray_head(environment: Mapping[str, str], folder: Path, shared: Path | None = None) -> Iterator[str]:
    """Run a Ray head with all cores of this machine during the block.

    Args:
        environment: environment variables for the jobs, with the stack's credentials and Ray's token.
        folder: folder of the run; the container is labelled with it, so that ``down`` finds it if the run was killed.
        shared: a folder of this machine that the jobs see at the same path, for instance that of the run's events.

    Yields:
        The address of its dashboard and job API.

    Raises:
        StackError: the container ends or does not answer in time; the message contains the end of its log.
    """
    from docker.types import Mount

    ports = dict(zip(_PORTS, _free_ports(len(_PORTS)), strict=True))
    memory = psutil.virtual_memory().total
    command = [
        "ray",
        "start",
        "--head",
        "--block",
        "--node-ip-address=127.0.0.1",
        "--dashboard-host=127.0.0.1",
        *(f"--{option}={port}" for option, port in ports.items()),
        "--min-worker-port=0",
        "--max-worker-port=0",
        f"--num-cpus={os.cpu_count() or 1}",
        f"--object-store-memory={min(2**30, memory // 10)}",
        "--disable-usage-stats",
    ]
    # With RAY_ADDRESS, `ray start` would look for another cluster. Its metrics servers would listen on all addresses.
    variables = {key: value for key, value in environment.items() if key != "RAY_ADDRESS"}
    variables |= {"HOME": "/tmp", "RAY_enable_metrics_collection": "0"}  # noqa: S108 - the container's own
    mounts = [Mount(target="/tmp", source=None, type="volume")]  # noqa: S108
    if shared is not None:
        mounts.append(Mount(target=str(shared), source=str(shared), type="bind"))
    container = _client().containers.run(
        RAY_IMAGE,
        command,
        detach=True,
        init=True,
        labels={LABEL: str(folder / "ray")},
        environment=variables,
        network_mode="host",
        read_only=True,
        mounts=mounts,
        shm_size=min(2**31, memory // 4),
        cap_drop=["ALL"],
        security_opt=["no-new-privileges"],
    )
    with ExitStack() as ends:
        ends.callback(container.remove, force=True, v=True)
        _wait(container, ports["dashboard-port"], environment.get("RAY_AUTH_TOKEN", ""))
        yield f"http://127.0.0.1:{ports['dashboard-port']}"


def down(home: Path) -> int:
    """Remove the containers that killed runs with this home left behind.

    Returns:
        The number of containers removed; 0 if no Docker engine answers.
    """
    import docker.errors

    try:
        client = _client()
    except StackError:
        return 0
    removed = 0
    for container in client.containers.list(all=True, filters={"label": LABEL}):
        if Path(container.labels[LABEL]).is_relative_to(home.absolute()):
            with suppress(docker.errors.APIError):  # Docker may be removing it already
                container.remove(force=True, v=True)
            removed += 1
    return removed


def _wait(container: Any, port: int, token: str) -> None:
    deadline = time.monotonic() + _READY_SECONDS
    while not _answers(port, token):
        container.reload()
        if container.status in _ENDED or time.monotonic() > deadline:
            error = StackError(f"the Ray head in {RAY_IMAGE} is {container.status} and does not answer:")
            error.add_note(container.logs(tail=20).decode(errors="replace"))
            raise error
        time.sleep(0.2)


def _answers(port: int, token: str) -> bool:
    """Return whether the job API accepts jobs; it does after the head's own agent has registered."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/api/jobs/", headers={"Authorization": f"Bearer {token}"})
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _free_ports(count: int) -> list[int]:
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]


def _client() -> Any:
    import docker
    import docker.errors

    try:
        client = docker.from_env()
        client.ping()
    except docker.errors.DockerException as error:
        raise StackError(f"no Docker engine answers ({error}): start one, or run without --runner docker") from error
    return client
