"""Free ports of loopback, for servers that tests start."""

import itertools
import os
import random
import re
import socket

_FIRST, _END = 30_000, 32_768
"""Above those that the embedded stack takes, below those that Linux gives to connections."""
_PROCESSES = 8
"""Processes of one test run that have ports of their own: while a test has killed its server and starts it again, a
server of another process must not take the port."""


def _own_ports() -> range:
    digits = re.sub(r"\D", "", os.environ.get("PYTEST_XDIST_WORKER", ""))
    own = int(digits or 0) % _PROCESSES
    size = (_END - _FIRST) // _PROCESSES
    return range(_FIRST + own * size, _FIRST + (own + 1) * size)


def _in_turn() -> "itertools.cycle[int]":
    ports = _own_ports()
    start = random.SystemRandom().randrange(len(ports))
    return itertools.cycle([*ports[start:], *ports[:start]])


_next = _in_turn()


def free_port() -> int:
    """Return a port on which nobody listens; the last one to be returned again is the one returned first."""
    while True:
        port = next(_next)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
