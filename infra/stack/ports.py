"""Choose the ports of a stack: its earlier ports if they are free, otherwise free ones below the ephemeral range."""

import socket
from collections.abc import Collection, Mapping

import psutil

from infra.stack.services import SERVICES
from infra.stack.state import Stack
from wukong.errors import StackError

_FIRST, _COUNT = 20_000, 10_000
"""Below 32768: from there on Linux uses ports for outgoing connections, which could take a port while the stack is
down."""


def choose_ports(stack: Stack, running: Collection[str], requested: Mapping[str, int]) -> dict[str, int]:
    """Choose a port for every port name of every service.

    Args:
        stack: the stack with its earlier ports.
        running: names of services that run; they keep their ports.
        requested: ports that the user requests, by name.

    Raises:
        StackError: a requested port is invalid or in use, or its service runs on another port.
    """
    names = {name: service.name for service in SERVICES for name in service.ports}
    if unknown := set(requested) - set(names):
        raise StackError(f"there is no port named {', '.join(sorted(unknown))}; ask for s3, mlflow, ray or site")
    chosen: dict[str, int] = {}
    for name, port in requested.items():
        if names[name] not in running:
            _check(name, port)
        elif port != stack.ports.get(name):
            raise StackError(
                f"{names[name]} runs on port {stack.ports.get(name)}, not {port}: `wukong down` first, then ask again"
            )
        chosen[name] = port
    taken = set(chosen.values())
    for name, port in stack.ports.items():
        if name in chosen or name not in names:
            continue
        if names[name] in running or (port not in taken and is_free(port)):
            chosen[name] = port
            taken.add(port)
    start = int(stack.identity, 16) % _COUNT
    candidates = (_FIRST + (start + step) % _COUNT for step in range(_COUNT))
    for name in names:
        if name not in chosen:
            free = next((port for port in candidates if port not in taken and is_free(port)), None)
            if free is None:
                raise StackError(f"no free port from {_FIRST} to {_FIRST + _COUNT} on 127.0.0.1: end what holds them")
            chosen[name] = free
            taken.add(free)
    return chosen


def is_free(port: int) -> bool:
    """Return whether a server can listen on this port of 127.0.0.1 now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _check(name: str, port: int) -> None:
    if not 0 < port < 65536:
        raise StackError(f"{port}, asked for {name}, is not a port: give one between 1024 and 65535")
    if not is_free(port):
        raise StackError(
            f"port {port}, asked for {name}, is in use{_holder(port)} or not allowed: "
            "end that process or ask for another port"
        )


def _holder(port: int) -> str:
    """Return the process that listens on a port, as text; empty if this user may not know it."""
    try:
        for connection in psutil.net_connections("tcp"):
            listens = connection.status == psutil.CONN_LISTEN and connection.laddr and connection.laddr.port == port
            if listens and connection.pid:
                return f" by {psutil.Process(connection.pid).name()} (pid {connection.pid})"
    except psutil.Error:
        pass
    return ""
