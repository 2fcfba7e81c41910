"""The real SeaweedFS, started with the manifest's own arguments, on free ports of this machine alone."""

import json
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from free_ports import free_port
from manifests import named, plain

_PORTS = (
    *("-s3.port", "-s3.port.grpc", "-master.port", "-volume.port", "-filer.port", "-master.port.grpc"),
    *("-volume.port.grpc", "-filer.port.grpc", "-metricsPort"),
)


@contextmanager
def running(folder: Path, identities: Sequence[dict[str, Any]], *further: str) -> Iterator[str]:
    """The store's URL, for the time of the block.

    Args:
        folder: where its data lie.
        identities: as its file of S3 keys has them.
        further: arguments after the manifest's.
    """
    (folder / "s3.json").write_text(json.dumps({"identities": identities}))
    ports = {name: free_port() for name in _PORTS}
    container = named(plain(), "StatefulSet")["object-store"]["spec"]["template"]["spec"]["containers"][0]
    changed = {
        **ports,
        "-dir": folder,
        "-s3.config": folder / "s3.json",
        "-s3.ip.bind": "127.0.0.1",
        "-metricsIp": "127.0.0.1",
        "-master.volumeSizeLimitMB": 64,
        "-volume.max": 0,
    }
    kept = [argument for argument in container["args"] if argument.split("=")[0] not in changed]
    arguments = [*kept, *(f"{name}={value}" for name, value in changed.items()), *further]
    with (folder / "log").open("wb") as log:
        weed = str(Path(sys.executable).parent / "weed")
        server = subprocess.Popen([weed, *arguments], stdout=log, stderr=log)
    try:
        until = time.monotonic() + 50
        while not _is_healthy(url := f"http://127.0.0.1:{ports['-s3.port']}"):
            assert server.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < until, (folder / "log").read_text()
            time.sleep(0.1)
        yield url
    finally:
        server.send_signal(signal.SIGKILL)
        server.wait()


def _is_healthy(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/healthz", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False
