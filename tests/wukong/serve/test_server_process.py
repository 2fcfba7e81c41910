"""``wukong serve`` as a process: the port that it takes, and how a signal ends it."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import colours
import pytest

from wukong.model import saved_model
from wukong.serve.listening import USUAL_PORT
from wukong.store import storage

pytestmark = pytest.mark.long
START = "from wukong.commands.main import main; main()"
ENDED = "Ended. What was encoded is kept for the next start.\n"
ENDS = {"SIGINT": 130, "SIGTERM": 0}


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    root = tmp_path_factory.mktemp("process")
    made = colours.model("global").saved
    saved_model.save(storage.from_path(root / "model"), made.model, made.tokenizer)
    colours.every_pair(root / "pictures")
    return ["--model", str(root / "model"), "--data", str(root / "pictures"), "--index", str(root / "indexes")]


@pytest.fixture
def server(options: list[str]) -> "Iterator[subprocess.Popen[str]]":
    """A server without ``--port``, while its usual port is taken by this process or by another."""
    with socket.socket() as taken:
        with suppress(OSError):
            taken.bind(("127.0.0.1", USUAL_PORT))
            taken.listen()
        with started(*options) as process:
            yield process


@contextmanager
def started(*options: str) -> "Iterator[subprocess.Popen[str]]":
    with subprocess.Popen(
        [sys.executable, "-c", START, "serve", *options],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        yield process
        process.kill()


def lines(process: "subprocess.Popen[str]") -> Iterator[str]:
    assert process.stdout is not None
    return iter(process.stdout.readline, "")


@pytest.mark.parametrize("name", ENDS)
def test_a_signal_ends_the_page_in_one_line(server: "subprocess.Popen[str]", name: str) -> None:
    said = lines(server)
    port = re.fullmatch(
        rf"Port {USUAL_PORT} is taken, so the page will be at port (\d+)\. --port asks for another\.\n", next(said)
    )
    assert port is not None
    address = f"http://127.0.0.1:{port[1]}"
    assert next(said) == f"20 pictures at {address} (Ctrl-C ends it)\n"
    with urllib.request.urlopen(f"{address}/?q=%E7%BA%A2", timeout=60) as page:
        assert "Pictures for" in page.read().decode()
    server.send_signal(getattr(signal, name))
    out, log = server.communicate(timeout=60)
    assert (server.returncode, out) == (ENDS[name], ENDED)
    assert all(line.startswith(("index: ", "20 pictures have")) for line in log.splitlines()), log


@pytest.mark.parametrize("name", ENDS)
def test_a_signal_ends_the_start_in_one_line(server: "subprocess.Popen[str]", name: str) -> None:
    assert next(lines(server)).startswith("Port ")
    server.send_signal(getattr(signal, name))
    out, log = server.communicate(timeout=60)
    assert (server.returncode, out) == (ENDS[name], ENDED)
    assert log == ""


def test_a_server_without_data_gives_vectors(options: list[str]) -> None:
    with started(*options[:2], "--port", "0") as server:
        ready = re.fullmatch(
            r"Vectors of texts and pictures at (http://127\.0\.0\.1:\d+/v1) \(Ctrl-C ends it\)\n", next(lines(server))
        )
        assert ready is not None
        with urllib.request.urlopen(f"{ready[1]}/embeddings", b'{"input": "\\u732b"}', timeout=60) as answer:
            assert len(json.load(answer)["data"][0]["embedding"]) == 8
        server.send_signal(signal.SIGTERM)
        assert server.communicate(timeout=60) == ("Ended.\n", "")
        assert server.returncode == 0
