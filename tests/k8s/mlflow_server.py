"""The real MLflow server, which a test can kill and start again."""

import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from free_ports import free_port

_READY_SECONDS = 300.0


class MlflowServer:
    """A server on a free port of loopback; its database and artifacts lie in a folder and outlive it."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.address = f"http://127.0.0.1:{self.port}"
        self.folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, *options: str, environment: Mapping[str, str] | None = None) -> None:
        """Start it, with further options of ``mlflow server`` and variables."""
        command = [sys.executable, "-m", "mlflow", "server", "--workers=1", "--host=127.0.0.1", f"--port={self.port}"]
        command += [f"--backend-store-uri=sqlite:///{self.folder}/mlflow.db"]
        command += [f"--artifacts-destination={self.folder}/artifacts", *options]
        variables = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        variables.pop("MLFLOW_TRACKING_URI", None)
        with (self.folder / "log.txt").open("ab") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=log, env=variables | dict(environment or {}), start_new_session=True
            )

    def start_with_users(
        self,
        held: Mapping[str, str],
        admin: Mapping[str, str],
        *options: str,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Start it with users, as the container of the cluster does; SQLite stands in for PostgreSQL.

        Args:
            held: values of the Secret ``mlflow-server``.
            admin: those of ``mlflow-admin``.
            options: further ones of ``mlflow server``.
            environment: further variables.
        """
        lines = held["auth.ini"].splitlines()
        assert [line for line in lines if line.startswith("database_uri = postgresql://")]
        local = [
            f"database_uri = sqlite:///{self.folder}/auth.db" if "database_uri" in line else line for line in lines
        ]
        (self.folder / "auth.ini").write_text("\n".join(local))
        variables = {
            "MLFLOW_AUTH_CONFIG_PATH": str(self.folder / "auth.ini"),
            "MLFLOW_FLASK_SERVER_SECRET_KEY": held["MLFLOW_FLASK_SERVER_SECRET_KEY"],
            "MLFLOW_AUTH_ADMIN_USERNAME": admin["MLFLOW_TRACKING_USERNAME"],
            "MLFLOW_AUTH_ADMIN_PASSWORD": admin["MLFLOW_TRACKING_PASSWORD"],
        }
        self.start("--app-name=basic-auth", *options, environment=variables | dict(environment or {}))

    def wait_ready(self) -> None:
        until = time.monotonic() + _READY_SECONDS
        while True:
            try:
                with urllib.request.urlopen(f"{self.address}/health", timeout=2):
                    return
            except OSError:
                assert self._process is None or self._process.poll() is None, (self.folder / "log.txt").read_text()
                assert time.monotonic() < until, (self.folder / "log.txt").read_text()
                time.sleep(0.1)

    def ensure_ready(self) -> None:
        """Start it, if a test has killed it and started it no more."""
        if self._process is None:
            self.start()
            self.wait_ready()

    def kill(self) -> None:
        if self._process is not None:
            with suppress(ProcessLookupError):  # it has ended by itself
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None


@contextmanager
def running(folder: Path) -> Iterator[MlflowServer]:
    """A server that answers, for the time of the block."""
    server = MlflowServer(folder)
    server.start()
    try:
        server.wait_ready()
        yield server
    finally:
        server.kill()
