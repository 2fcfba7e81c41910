"""``wukong serve`` before it loads anything."""

import io
import logging
import socket
from types import SimpleNamespace
from urllib.parse import urlsplit

import colours
import pytest
from typer.testing import CliRunner

from cli.main import app
from wukong.errors import ConfigError


def test_a_port_that_is_taken_is_an_error_before_anything_is_loaded() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        result = CliRunner().invoke(app, ["serve", "--model", "none", "--data", "none", "--port", port])
    assert isinstance(result.exception, ConfigError)
    assert f"cannot listen on 127.0.0.1, port {port}" in str(result.exception)
    assert "give another --port" in str(result.exception)


def test_an_index_is_of_data() -> None:
    result = CliRunner().invoke(app, ["serve", "--model", "x", "--index", "x"])
    assert isinstance(result.exception, ConfigError)
    assert "nothing is searched without --data" in str(result.exception)


def test_without_data_a_token_wise_model_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wukong.load", lambda *_, **__: colours.model("token").saved)
    result = CliRunner().invoke(app, ["serve", "--model", "x", "--port", "0"])
    assert isinstance(result.exception, ConfigError)
    assert "x has a vector for each token and each patch" in str(result.exception)


class _Closed(logging.StreamHandler[io.StringIO]):
    """A handler that says whether it was closed, as a new configuration of logging does with all of a process."""

    closed = False

    def close(self) -> None:
        self.closed = True
        super().close()


@pytest.mark.parametrize("host", ["::1", "0:0:0:0:0:0:0:1", "127.0.0.2", "LOCALHOST"])
def test_a_server_on_loopback_checks_the_host_however_it_is_called(monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    given: list[tuple[str, ...]] = []
    service = SimpleNamespace(pictures=1)
    monkeypatch.setattr("wukong.serve.start.service", lambda *_, **__: service)
    monkeypatch.setattr("wukong.serve.start.version", lambda *_: ("x", "x"))
    monkeypatch.setattr("wukong.serve.app.create_app", lambda _, hosts, metrics: given.append(hosts))
    monkeypatch.setattr("uvicorn.Server.run", lambda *_: None)
    other = _Closed(io.StringIO())  # of the process that starts the server
    result = CliRunner().invoke(app, ["serve", "--model", "x", "--data", "x", "--host", host, "--port", "0"])
    if "cannot listen" in str(result.exception):
        pytest.skip(f"this machine has no {host}")
    assert result.exception is None
    assert not other.closed
    ((*names,),) = given
    assert "*" not in names and "[::1]" in names
    address = result.output.split()[3]
    assert urlsplit(address).port and urlsplit(address).hostname in {name.strip("[]") for name in names}
