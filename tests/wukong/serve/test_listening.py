"""The server sends at once, names a port that it cannot have, and on loopback answers to its own names alone."""

import asyncio
import socket

import pytest

from wukong.errors import ConfigError
from wukong.serve import listening as module
from wukong.serve.app import Guard
from wukong.serve.listening import address, hosts, listen


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


class Bound:
    """A socket that is bound to an address; tests bind to loopback alone."""

    def __init__(self, host: str) -> None:
        self.host = host

    def getsockname(self) -> tuple[str, int]:
        return self.host, 8500


def served(names: tuple[str, ...], host: str) -> bool:
    guard = Guard(app=None, metrics=None, hosts=names)
    return guard._served({"headers": [(b"host", host.encode("latin-1"))] if host else []})


def test_another_port_is_taken_where_none_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    host = "127.0.0.3"  # where no other process of this machine takes ports meanwhile
    with listen(host, 0) as taken:
        usual = taken.getsockname()[1]
        monkeypatch.setattr(module, "USUAL_PORT", usual)
        with listen(host, None) as other:
            assert other.getsockname()[1] not in (0, usual)
        with pytest.raises(ConfigError, match=r"cannot listen on 192\.0\.2\.1"):
            listen("192.0.2.1", None)  # an address of no machine
    with listen(host, None) as free:
        assert free.getsockname()[1] == usual


LOOPBACK = ["127.0.0.1", "127.0.0.2", "localhost", "LOCALHOST", "::1", "0:0:0:0:0:0:0:1", "::ffff:127.0.0.1"]
OWN = ["127.0.0.1:8500", "127.0.0.1", "localhost:8500", "LocalHost:8500", "localhost.:8500", "[::1]:8500", "[::1]"]
FOREIGN = [
    *("", "evil.test", "evil.test:8500", "localhost.evil.test:8500", "127.0.0.1.evil.test", "evil.test:127.0.0.1"),
    *(
        "[::1].evil.test",
        "[::1",
        "::1",
        "::1:8500",
        "127.0.0.1:8500:1",
        "127.0.0.1:",
        "127.0.0.1:x",
        "localhost..:8500",
    ),
    *("[::1]:8500@evil.test", "evil.test#127.0.0.1", "[::2]:8500", " 127.0.0.1", "user@127.0.0.1:8500"),
]


@pytest.mark.parametrize("host", LOOPBACK)
def test_a_server_on_loopback_answers_to_its_own_names_alone(host: str) -> None:
    """Else a page elsewhere, whose name resolves to loopback, reads what is served here."""
    try:
        listening = listen(host, 0)
    except (ConfigError, OSError):
        pytest.skip(f"this machine has no {host}")
    with listening:
        names = hosts(listening, host)
        shown = address(listening)
    assert [name for name in OWN if not served(names, name)] == []
    assert [name for name in FOREIGN if served(names, name)] == []
    assert served(names, f"{shown}:8500"), "the link that it prints"
    assert served(names, f"[{host}]:8500" if ":" in host else f"{host}:8500"), "what the user calls it"


@pytest.mark.parametrize(
    ("bound", "shown"),
    [("0.0.0.0", "127.0.0.1"), ("::", "[::1]"), ("192.0.2.7", "192.0.2.7"), ("2001:db8::7", "[2001:db8::7]")],
)
def test_a_server_for_others_answers_to_every_name(bound: str, shown: str) -> None:
    assert hosts(Bound(bound), bound) == ("*",)
    assert address(Bound(bound)) == shown
    assert served(("*",), "search.example.org")
