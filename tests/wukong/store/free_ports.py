"""Free ports of loopback, for servers that tests start."""

import random
import socket

_PORTS = range(20_000, 32_768)
"""Below those that Linux gives to connections: one of them may take such a port before the server listens."""


def free_port() -> int:
    """Return a port on which nobody listens."""
    while True:
        port = random.SystemRandom().choice(_PORTS)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
