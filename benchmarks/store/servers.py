"""Lose servers of a SeaweedFS of several: a master, three volume servers, two filers with S3 on one PostgreSQL.

    python benchmarks/store/servers.py [--replication 001] [--megabytes 400] [--address 192.0.2.7]

All are processes on this machine, so the figures say what goes on and what fails, not how fast a cluster is.
Objects of 20 MB (shards) and of 10 KB (markers) are written and read by a client that repeats nothing, first with all
servers, then after SIGKILL of a volume server, then after SIGKILL of the filer that was used, through the other one.
Then the volume server comes back with an empty disk, `volume.fix.replication` copies its volumes again, and another
volume server is killed. PostgreSQL's programs must be in PATH; as root they run as the user ``postgres``.
"""

import argparse
import io
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import urllib3
from minio import Minio
from minio.error import MinioException

from wukong.store import storage

WEED = str(Path(sys.executable).with_name("weed"))
KEYS = {"accessKey": "bench", "secretKey": "of-a-benchmark"}
SHARD, SMALL = 20 * 10**6, 10_000
THREADS = 4
_READY_SECONDS = 120

FILER = """[postgres2]
enabled = true
createTable = \"\"\"
  CREATE TABLE IF NOT EXISTS "%s" (
    dirhash BIGINT, name VARCHAR(65535), directory VARCHAR(65535), meta bytea, PRIMARY KEY (dirhash, name));
\"\"\"
hostname = "127.0.0.1"
port = {port}
username = "postgres"
password = ""
database = "postgres"
schema = ""
sslmode = "disable"
connection_max_idle = 10
connection_max_open = 20
"""


def free_port() -> int:
    """Return a port below those of outgoing connections that is free, and whose port for gRPC, 10,000 above, is too."""
    while True:
        port = random.randrange(20_000, 22_700)
        if not any(socket.socket().connect_ex(("127.0.0.1", each)) == 0 for each in (port, port + 10_000)):
            return port


class Servers:
    """The processes, each with its log in the folder."""

    def __init__(self, folder: Path, replication: str, address: str) -> None:
        self.folder, self.address = folder, address
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        self.ports = {name: free_port() for name in ("master", "database", "v0", "v1", "v2", "f0", "f1", "s0", "s1")}
        self.replication = replication
        self._commands: dict[str, list[str]] = {}

    def start(self, name: str, command: list[str] | None = None) -> None:
        """Start a server, or start it again as before."""
        command = self._commands.setdefault(name, command or [])
        with (self.folder / f"{name}.log").open("ab") as log:
            self.running[name] = subprocess.Popen(command, stdout=log, stderr=log, cwd=self.folder)

    def kill(self, name: str) -> None:
        """End a server as a crash does."""
        process = self.running.pop(name)
        process.send_signal(signal.SIGKILL)
        process.wait()

    def weed(self, name: str, *arguments: str) -> None:
        """Start a server of SeaweedFS."""
        self.start(name, [WEED, f"-config_dir={self.folder}", *arguments, f"-ip={self.address}"])

    def all(self) -> None:
        """Start all of them."""
        ports, master = self.ports, f"{self.address}:{self.ports['master']}"
        database(self)
        (self.folder / "filer.toml").write_text(FILER.format(port=ports["database"]))
        identity = {"name": "bench", "credentials": [KEYS], "actions": ["Admin", "Read", "Write", "List", "Tagging"]}
        (self.folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
        self.weed("master", "master", f"-port={ports['master']}", f"-mdir={made(self.folder / 'm')}",
                  f"-defaultReplication={self.replication}", "-volumeSizeLimitMB=128",
                  "-volumePreallocate=false", "-peers=none")  # fmt: skip
        for number in range(3):
            place = [f"-rack=r{number if self.replication == '010' else 0}", "-dataCenter=dc", f"-mserver={master}"]
            folder = made(self.folder / f"d{number}")
            self.weed(f"v{number}", "volume", f"-port={ports[f'v{number}']}", f"-dir={folder}", "-max=60", *place)
        for number in range(2):
            self.weed(f"f{number}", "filer", f"-port={ports[f'f{number}']}", f"-master={master}", "-s3",
                      f"-s3.port={ports[f's{number}']}", f"-s3.config={self.folder / 's3.json'}",
                      "-s3.port.iceberg=0", "-s3.port.lance=0",
                      f"-s3.port.grpc={free_port()}", "-s3.iam=false")  # fmt: skip


def made(folder: Path) -> Path:
    """A folder, which is made."""
    folder.mkdir()
    return folder


def database(servers: Servers) -> None:
    """Start an empty PostgreSQL, which knows no password on loopback."""
    data = servers.folder / "database"
    data.mkdir()
    as_user = []
    if os.getuid() == 0:
        shutil.chown(data, "postgres")
        servers.folder.chmod(0o755)
        as_user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]
    subprocess.run([*as_user, "initdb", "-D", str(data), "-U", "postgres", "-A", "trust"], check=True,
                   stdout=subprocess.DEVNULL, cwd="/")  # fmt: skip
    servers.start("database", [*as_user, "postgres", "-D", str(data), "-p", str(servers.ports["database"]), "-h",
                               "127.0.0.1", "-k", ""])  # fmt: skip
    wait(lambda: not socket.socket().connect_ex(("127.0.0.1", servers.ports["database"])))


def wait(ready: Callable[[], bool]) -> float:
    """Wait until something is so; return the seconds."""
    began = time.monotonic()
    while not ready():
        if time.monotonic() - began > _READY_SECONDS:
            sys.exit("a server does not get ready")
        time.sleep(0.2)
    return time.monotonic() - began


def client(port: int) -> Minio:
    """A client that repeats nothing."""
    http = urllib3.PoolManager(timeout=30, retries=False, maxsize=THREADS)
    return Minio(f"127.0.0.1:{port}", access_key="bench", secret_key="of-a-benchmark", secure=False, http_client=http)


def answers(port: int) -> bool:
    """Whether objects can be written there."""
    try:
        s3 = client(port)
        if not s3.bucket_exists("bench"):
            s3.make_bucket("bench")
        s3.put_object("bench", "ready", io.BytesIO(b"x"), 1)
    except (MinioException, urllib3.exceptions.HTTPError, OSError):
        return False
    return True


@cache
def body(name: str) -> bytes:
    """What an object holds."""
    return random.Random(name).randbytes(SHARD if name.startswith("shard") else SMALL)


def try_all(what: str, names: list[str], act: Callable[[str], bool]) -> dict[str, object]:
    """Do something with each object; print how many went well, which errors there were, and how long it took."""

    def one(name: str) -> tuple[str, float]:
        began = time.monotonic()
        try:
            said = "well" if act(name) else "other bytes"
        except (MinioException, urllib3.exceptions.HTTPError, OSError) as error:
            said = f"{type(error).__name__} {getattr(error, 'code', '')}".strip()
        return said, time.monotonic() - began

    began = time.monotonic()
    with ThreadPoolExecutor(THREADS) as threads:
        outcomes = list(threads.map(one, names))
    seconds = time.monotonic() - began
    megabytes = sum(len(body(name)) for name in names) / 1e6
    found = {
        "what": what,
        "objects": len(names),
        **Counter(said for said, _ in outcomes),
        "seconds": round(seconds, 1),
        "mb_per_second": round(megabytes / seconds, 1),
        "slowest": round(max(took for _, took in outcomes), 2),
    }
    print(json.dumps(found), flush=True)
    return found


@contextmanager
def started(replication: str, address: str) -> Iterator[Servers]:
    """All servers in a folder that is deleted afterwards."""
    with tempfile.TemporaryDirectory() as name:
        servers = Servers(Path(name), replication, address)
        try:
            servers.all()
            for number in range(2):
                wait(lambda: answers(servers.ports[f"s{number}"]))  # noqa: B023 - called here
            yield servers
        finally:
            for server in list(servers.running):
                servers.kill(server)


def shell(servers: Servers, command: str) -> str:
    """What SeaweedFS' shell prints for a command."""
    asked = f"lock\n{command}\nunlock\nexit\n"
    given = [WEED, "shell", f"-master={servers.address}:{servers.ports['master']}"]
    return subprocess.run(given, input=asked, capture_output=True, text=True, timeout=120, check=False).stdout


def main() -> None:
    """Write, read, kill, and print a line for each step."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replication", default="001", choices=["000", "001", "010"])
    parser.add_argument("--megabytes", type=int, default=400, help="of shards in a step")
    parser.add_argument("--address", default="127.0.0.1", help="of this machine; SeaweedFS copies none from loopback")
    options = parser.parse_args()
    with started(options.replication, options.address) as servers:

        def names(step: int) -> list[str]:
            shards = max(options.megabytes * 10**6 // SHARD, 1)
            return [f"shard-{step}-{n}" for n in range(shards)] + [f"small-{step}-{n}" for n in range(200)]

        def put(port: int, step: int, what: str) -> None:
            s3 = client(port)
            try_all(f"write {what}", names(step), lambda name: bool(
                s3.put_object("bench", name, io.BytesIO(body(name)), len(body(name)))))  # fmt: skip

        def get(port: int, step: int, what: str) -> None:
            s3 = client(port)
            try_all(f"read {what}", names(step), lambda name: s3.get_object("bench", name).data == body(name))

        first, second = servers.ports["s0"], servers.ports["s1"]
        put(first, 0, "with all servers")
        get(first, 0, "with all servers")
        get(second, 0, "with all servers, by the other filer")
        stored = sum(file.stat().st_size for file in servers.folder.glob("d?/*.dat"))
        print(json.dumps({"what": "on disks, of what was written", "ratio": round(
            stored / sum(len(body(name)) for name in names(0)), 2)}), flush=True)  # fmt: skip
        servers.kill("v1")
        get(first, 0, "right after a volume server was killed")
        put(first, 1, "right after a volume server was killed")
        get(second, 1, "of what was written since")
        servers.kill("f0")
        get(second, 0, "after the filer was killed too, by the other one")
        os.environ |= {"AWS_ENDPOINT_URL_S3": f"http://127.0.0.1:{second}", "AWS_REGION": "us-east-1"}
        os.environ |= {"AWS_ACCESS_KEY_ID": KEYS["accessKey"], "AWS_SECRET_ACCESS_KEY": KEYS["secretKey"]}
        try_all("write by wukong.store.storage, which repeats, right after that", names(2), lambda name: not
                storage.write_bytes(f"s3://bench/{name}", body(name)))  # fmt: skip
        shutil.rmtree(servers.folder / "d1")
        made(servers.folder / "d1")
        servers.start("v1")
        time.sleep(15)
        began = time.monotonic()
        said = shell(servers, "volume.fix.replication -apply").strip().splitlines()
        found = {
            "what": "volume.fix.replication after the killed server came back with an empty disk",
            "seconds": round(time.monotonic() - began, 1),
            "volumes of each server": [len(list(servers.folder.glob(f"d{number}/*.dat"))) for number in range(3)],
            "last words": said[-1:],
        }
        print(json.dumps(found), flush=True)
        servers.kill("v0")
        for step in range(3):
            get(second, step, f"of step {step} after another volume server was killed")


if __name__ == "__main__":
    main()
