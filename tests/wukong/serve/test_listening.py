"""The server's socket sends at once, and a port that cannot be had is named."""

import asyncio
import socket

import pytest

from wukong.errors import ConfigError
from wukong.serve.listening import listen


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_answers_are_sent_at_once(host: str) -> None:
    """As asyncio accepts connections, which uvicorn does: without TCP_NODELAY, parts of an answer are 40 ms apart."""

    async def accepted() -> bool:
        asked: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

        def connected(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            asked.set_result(bool(writer.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)))
            writer.close()

        async with await asyncio.start_server(connected, sock=listening):
            _, writer = await asyncio.open_connection(*listening.getsockname()[:2])
            writer.close()
            return await asked

    try:
        listening = listen(host, 0)
    except ConfigError:
        pytest.skip(f"this machine has no {host}")
    with listening:
        assert asyncio.run(accepted())


def test_a_port_that_is_taken_is_named() -> None:
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1, port {port} .*give another --port"):
            listen("127.0.0.1", port)
