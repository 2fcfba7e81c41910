"""Ports of one process of a test run are no other's, also while its servers are down."""

import os
import subprocess
import sys
from pathlib import Path

from infra.stack import ports


def taken_by(worker: str) -> list[int]:
    code = "import free_ports; print(*(free_ports.free_port() for _ in range(100)))"
    environment = {**os.environ, "PYTEST_XDIST_WORKER": worker, "PYTHONPATH": str(Path(__file__).parent)}
    told = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    return [int(port) for port in told.stdout.split()]


def test_no_port_is_given_twice() -> None:
    given = [port for worker in ("gw0", "gw1", "gw2") for port in taken_by(worker)]
    assert len(set(given)) == 300
    assert min(given) >= ports._FIRST + ports._COUNT, "the embedded stack's ports"
    assert max(given) < 32_768, "the ports of connections"
