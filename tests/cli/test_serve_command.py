"""``wukong serve`` before it loads anything."""

import socket

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


@pytest.mark.parametrize("option", ["--model", "--data"])
def test_model_and_data_are_needed(option: str) -> None:
    other = "--data" if option == "--model" else "--model"
    result = CliRunner().invoke(app, ["serve", other, "x"])
    assert result.exit_code == 2
    assert option in result.output
