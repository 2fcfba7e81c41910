"""The forwarded ports of tests/cluster come back when what they lead to was replaced."""

import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "cluster"))

import kube

KUBECTL = """#!{python}
# `kubectl port-forward` as it is known: it chooses a pod when it starts, and when that is gone it listens on.
import socket, sys, threading
from pathlib import Path

local = int(sys.argv[-1].partition(":")[0])
pod = int(Path("{pod}").read_text())
server = socket.create_server(("127.0.0.1", local))

def carry(source, target):
    while data := source.recv(65536):
        target.sendall(data)
    target.shutdown(socket.SHUT_WR)

while True:
    accepted, _ = server.accept()
    try:
        other = socket.create_connection(("127.0.0.1", pod))
    except OSError:
        accepted.close()
        continue
    for pair in ((accepted, other), (other, accepted)):
        threading.Thread(target=carry, args=pair, daemon=True).start()
"""


@contextmanager
def pod_that_says(word: bytes, chosen: Path) -> Iterator[None]:
    """A server that new forwards lead to."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(word)

        def do_HEAD(self) -> None:
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        chosen.write_text(str(server.server_address[1]))
        try:
            yield
        finally:
            server.shutdown()


def ask(port: int) -> bytes | None:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}", timeout=5) as answer:
            return bytes(answer.read())
    except OSError:
        return None


def test_a_port_whose_pod_is_gone_is_opened_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen, program = tmp_path / "pod", tmp_path / "bin" / "kubectl"
    program.parent.mkdir()
    program.write_text(KUBECTL.format(python=sys.executable, pod=chosen))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent))
    monkeypatch.setattr(kube, "_STARTS_WITHIN", 2.0)
    monkeypatch.setattr(kube, "_ANSWERS_WITHIN", 2.0)
    with pod_that_says(b"first", chosen):
        forward = kube.Forward("wukong", "svc/mlflow", 5000, every=0.2).open(60)
        assert ask(forward.port) == b"first"
    try:
        with pod_that_says(b"second", chosen):
            forward.open(60)
            assert ask(forward.port) == b"second"
    finally:
        forward.close()
    assert ask(forward.port) is None
