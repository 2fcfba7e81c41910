"""The socket of a server."""

import socket

from wukong.errors import ConfigError


def listen(host: str, port: int) -> socket.socket:
    """Take a port, before anything that takes long.

    Args:
        host: address to listen on.
        port: port; 0 for any that is free.

    Raises:
        ConfigError: the address is not of this machine, or the port is taken.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # With its protocol: asyncio sends at once only on sockets that name TCP. Else the body of an answer waits until the
    # client has acknowledged its head, about 40 ms.
    found = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((host, port))
    except OSError as error:
        found.close()
        raise ConfigError(f"cannot listen on {host}, port {port} ({error.strerror}): give another --port") from error
    found.listen(2048)
    return found
