"""Measure the memory of the object store under a run's load: peaks with and without a limit for Go's heap.

    python benchmarks/store/memory.py                        some minutes a row
    python benchmarks/store/memory.py --limits 450MiB --rounds 40

It starts the real server with the arguments in ``k8s/base/object-store.yaml``, on ports of its own. A round of the load
is what a stage of a run does meanwhile: eight checkpoints of 8 MB at a time, written, read and but for one deleted;
a hundred small objects (markers, manifests, small tables); four shards of 5 MB; a listing of all that is there.
"""

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import psutil
import yaml

from wukong.errors import StorageError
from wukong.store import storage

MANIFEST = Path(__file__).parents[2] / "k8s" / "base" / "object-store.yaml"
MIB = 2**20
CHECKPOINT, SHARD, SMALL = 8 * 10**6, 5 * 10**6, 4_000  # bytes
AT_ONCE = 8
PORTS = ("master", "volume", "filer", "s3")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def arguments(folder: Path, port: int, extra: list[str]) -> list[str]:
    """Return the manifest's arguments, with another folder and with ports of their own."""
    stateful_set = next(iter(yaml.safe_load_all(MANIFEST.read_text(encoding="utf-8"))))
    container = stateful_set["spec"]["template"]["spec"]["containers"][0]
    given = container["args"]
    for variable in container["env"]:
        given = [argument.replace(f"$({variable['name']})", variable["value"]) for argument in given]
    changed = ("-dir", "-s3.port", "-s3.config", "-s3.ip.bind", "-metricsIp", "-metricsPort")
    kept = [entry for entry in given if entry.split("=")[0] not in changed]
    own = [f"-dir={folder / 'data'}", f"-s3.config={folder / 's3.json'}", f"-s3.port={port}"]
    own += [f"-{name}.port={free_port()}" for name in PORTS if name != "s3"]
    own += [f"-{name}.port.grpc={free_port()}" for name in PORTS]
    return [*kept, *own, *extra]


@contextmanager
def server(limit: str, extra: list[str]) -> Iterator[psutil.Process]:
    """Start the server on an empty folder; the environment leads to it."""
    with tempfile.TemporaryDirectory() as name:
        folder, port = Path(name), free_port()
        (folder / "data").mkdir()
        keys = {"accessKey": "bench", "secretKey": "of-a-benchmark"}
        identity = {"name": "bench", "credentials": [keys], "actions": ["Admin"]}
        (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
        environment = os.environ | ({"GOMEMLIMIT": limit} if limit != "none" else {})
        with (folder / "log.txt").open("wb") as log:
            weed = str(Path(sys.executable).with_name("weed"))
            process = subprocess.Popen(
                [weed, *arguments(folder, port, extra)], stdout=log, stderr=log, env=environment, cwd=folder
            )
        os.environ |= {
            "AWS_ENDPOINT_URL_S3": f"http://127.0.0.1:{port}",
            "AWS_ACCESS_KEY_ID": "bench",
            "AWS_SECRET_ACCESS_KEY": "of-a-benchmark",
        }
        try:
            storage.write_bytes("s3://bench/ready", b"")
            yield psutil.Process(process.pid)
        except StorageError:
            print((folder / "log.txt").read_text(errors="replace")[-2000:], file=sys.stderr)
            raise
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()


def load(round_: int) -> None:
    """Do what the stages of a run do in a while."""
    checkpoint, shard, small = (os.urandom(size) for size in (CHECKPOINT, SHARD, SMALL))
    with ThreadPoolExecutor(AT_ONCE) as threads:

        def put(name: str, data: bytes) -> None:
            storage.write_bytes(f"s3://bench/{name}", data)

        names = [f"checkpoints/{round_}-{number}" for number in range(AT_ONCE)]
        list(threads.map(lambda name: put(name, checkpoint), names))
        assert all(threads.map(lambda name: storage.read_bytes(f"s3://bench/{name}") == checkpoint, names))
        list(threads.map(lambda name: storage.delete(f"s3://bench/{name}"), names[1:]))
        list(threads.map(lambda number: put(f"parts/{round_}/{number}.json", small), range(100)))
        list(threads.map(lambda number: put(f"parts/{round_}/{number}.tar", shard), range(4)))
        assert len(storage.list_files("s3://bench")) == 1 + (1 + 100 + 4) * (round_ + 1)


def resident(process: psutil.Process) -> int:
    """Return the bytes that the process itself holds; the pages of files that it maps can be dropped at any time."""
    found = process.memory_info()
    return int(found.rss - found.shared)


def measure(limit: str, rounds: int, extra: list[str]) -> dict[str, float]:
    """Return the peak in MiB after a quarter of the load and after all of it, at rest, and the seconds it took."""
    with server(limit, extra) as process:
        seen, done = [resident(process)], threading.Event()

        def watch() -> None:
            while not done.wait(0.05):
                seen.append(resident(process))

        watcher = threading.Thread(target=watch)
        watcher.start()
        began, quarter = time.monotonic(), 0
        try:
            for number in range(rounds):
                load(number)
                if number == rounds // 4:
                    quarter = max(seen)
            seconds = time.monotonic() - began
            time.sleep(5)
        finally:
            done.set()
            watcher.join()
        cpu = sum(process.cpu_times()[:2])
        return {
            "quarter": quarter / MIB,
            "peak": max(seen) / MIB,
            "at rest": resident(process) / MIB,
            "seconds": seconds,
            "cpu": cpu,
        }


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limits", nargs="+", default=["none", "300MiB", "600MiB", "1200MiB"], help="of Go's heap")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--also", action="append", default=[], metavar="ARGUMENT", help="of weed server, e.g. -x=1")
    options = parser.parse_args()
    print("| GOMEMLIMIT | peak MiB, first quarter | peak MiB | at rest | seconds | seconds of processor |")
    print("|---|---|---|---|---|---|")
    for limit in options.limits:
        found = measure(limit, options.rounds, options.also)
        print(f"| {limit} | " + " | ".join(f"{value:,.0f}" for value in found.values()) + " |", flush=True)


if __name__ == "__main__":
    main()
