"""Ceph's S3 server with TLS on loopback, as small as it goes: one monitor, one OSD on a sparse file, one gateway."""

import json
import os
import shutil
import subprocess
import time
import uuid
from collections.abc import Sequence
from pathlib import Path

import pytest
from authority import certified
from free_ports import free_port

_PROGRAMS = ("ceph", "ceph-authtool", "ceph-mon", "ceph-osd", "monmaptool", "radosgw", "radosgw-admin")
_READY_SECONDS = 240.0
_CONFIGURATION = """\
[global]
fsid = {fsid}
mon host = [v2:127.0.0.1:{mon}/0]
mon initial members = a
public addr = 127.0.0.1
ms bind msgr1 = false
keyring = {folder}/keyring
admin socket = {run}/$name.$pid.asok
run dir = {run}
log file = {folder}/$name.log
pid file =
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 4
mon allow pool size one = true
mon max pg per osd = 1000
mon data avail crit = 1
mon data avail warn = 2
osd crush chooseleaf type = 0
osd objectstore = bluestore
bluestore block size = {size}
rgw dns name = localhost
# What is deleted is freed after two hours by default.
rgw gc obj min wait = 1
rgw gc processor period = 5
rgw lc debug interval = 2
# Pages of a listing have a thousand keys by default.
rgw max listing results = 50
[mon.a]
mon data = {folder}/mon
[osd.0]
osd data = {folder}/osd
[client.rgw.a]
rgw data = {folder}/run
"""
_KEYS = (
    ("mon.", "mon", "allow *"),
    ("client.admin", "mon", "allow *", "osd", "allow *"),
    ("osd.0", "mon", "allow profile osd", "osd", "allow *"),
    ("client.rgw.a", "mon", "allow rw", "osd", "allow rwx"),
)


def require() -> None:
    """Skip the test where Ceph is not installed."""
    if missing := [name for name in _PROGRAMS if shutil.which(name) is None]:
        pytest.skip(
            f"{', '.join(missing)} not installed (on Debian: apt-get install --no-install-recommends radosgw ceph-mon "
            "ceph-osd ceph-common)"
        )


class RadosGateway:
    """The servers, on free ports; their data lies in a folder.

    Args:
        folder: of its data, keys and logs.
        names: of its certificate, beside ``localhost`` and 127.0.0.1.
    """

    def __init__(self, folder: Path, *names: str) -> None:
        self.folder = folder
        for name in ("mon", "osd", "run"):
            (folder / name).mkdir(parents=True)
        self.certificates, certificate, key = certified(folder, "localhost", *names)
        (folder / "server.pem").write_bytes(certificate.read_bytes() + key.read_bytes())
        self._mon, self._port, self._plain, self._fsid = free_port(), 0, 0, str(uuid.uuid4())
        # The path of a socket has at most 107 characters.
        self._run = Path("/tmp") / f"ceph-{self._fsid[:8]}"
        self._run.mkdir()
        (folder / "ceph.conf").write_text(
            _CONFIGURATION.format(
                fsid=self._fsid,
                mon=self._mon,
                folder=folder,
                run=self._run,
                size=4 << 30,
            )
        )
        self._processes: list[subprocess.Popen[bytes]] = []

    def variables(self, user: str = "tester", *, tls: bool = True) -> dict[str, str]:
        """The environment of a client."""
        return {
            "AWS_ENDPOINT_URL_S3": f"https://127.0.0.1:{self._port}" if tls else f"http://127.0.0.1:{self._plain}",
            "AWS_CA_BUNDLE": str(self.certificates),
            "AWS_ACCESS_KEY_ID": user,
            "AWS_SECRET_ACCESS_KEY": f"of-{user}-only",
            "AWS_REGION": "us-east-1",
        }

    def start(self) -> None:
        """Start all, and make the users ``tester`` and ``limited``; the second may do what a policy lets it."""
        for entity, *caps in _KEYS:
            pairs = [word for kind, cap in zip(caps[::2], caps[1::2], strict=True) for word in ("--cap", kind, cap)]
            self._call(
                "ceph-authtool",
                str(self.folder / "keyring"),
                "-C" if entity == "mon." else "-g",
                *(("-g", "-n", entity, *pairs) if entity == "mon." else ("-n", entity, *pairs)),
            )
        monmap = str(self.folder / "monmap")
        address = f"[v2:127.0.0.1:{self._mon}]"
        self._call("monmaptool", "--create", "--fsid", self._fsid, "--addv", "a", address, monmap)
        self._call("ceph-mon", "--mkfs", "-i", "a", "--monmap", monmap, "--keyring", str(self.folder / "keyring"))
        self._spawn("ceph-mon", "-f", "-i", "a")
        self._until("ceph", "--connect-timeout", "5", "osd", "new", disk := str(uuid.uuid4()), "0")
        self._call("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", disk)
        self._spawn("ceph-osd", "-f", "-i", "0")
        self._port, self._plain = free_port(), free_port()
        listens = f"beast ssl_endpoint=127.0.0.1:{self._port} ssl_certificate={self.folder / 'server.pem'}"
        plain = f"endpoint=127.0.0.1:{self._plain}"
        self._spawn("radosgw", "-f", "-n", "client.rgw.a", f"--rgw-frontends={listens} {plain}")
        for user, buckets in {"tester": 100, "limited": -1}.items():  # -1: it makes none
            key = (f"--access-key={user}", f"--secret-key=of-{user}-only", f"--max-buckets={buckets}")
            self._until("radosgw-admin", "user", "create", f"--uid={user}", f"--display-name={user}", *key)
        with_ca = ("--cacert", str(self.certificates))
        self._until("curl", "--silent", "--show-error", *with_ca, f"https://127.0.0.1:{self._port}/")

    def stop(self) -> None:
        """Kill them."""
        for process in self._processes:
            process.kill()
            process.wait()
        shutil.rmtree(self._run, ignore_errors=True)

    def used(self) -> int:
        """Bytes that the objects of all buckets take."""
        told = self._call("radosgw-admin", "user", "stats", "--uid=tester", "--sync-stats")
        return int(json.loads(told)["stats"]["size"])

    def _environment(self) -> dict[str, str]:
        return os.environ | {"CEPH_CONF": str(self.folder / "ceph.conf")}

    def _call(self, *command: str) -> str:
        done = subprocess.run(
            command, env=self._environment(), capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, f"{' '.join(command)}: {done.stderr or done.stdout}"
        return done.stdout

    def _spawn(self, *command: str) -> None:
        with (self.folder / f"{command[0]}.out").open("wb") as log:
            self._processes.append(subprocess.Popen(command, env=self._environment(), stdout=log, stderr=log))

    def _until(self, *command: str) -> None:
        """Call a program until it succeeds."""
        began = time.monotonic()
        while True:
            try:
                self._call(*command)
            except (AssertionError, subprocess.TimeoutExpired) as error:
                assert all(process.poll() is None for process in self._processes), self._told()
                assert time.monotonic() - began < _READY_SECONDS, f"{error}\n{self._told()}"
                time.sleep(0.5)
            else:
                return

    def _told(self) -> str:
        logs: Sequence[Path] = sorted(self.folder.glob("*.out"))
        return "\n".join(f"{log.name}: {log.read_text(errors='replace')[-2000:]}" for log in logs)
