"""The real SeaweedFS server, with a bucket, that a test can kill and start again."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.fs as pafs
from free_ports import free_port

ACCESS_KEY, SECRET_KEY = "tester", "of-tests-only"
_PORTS = ("s3", "s3_grpc", "master", "master_grpc", "volume", "volume_grpc", "filer", "filer_grpc")
_READY_SECONDS = 60.0


class ObjectStore:
    """A server on free ports of loopback; its data lies in a folder and outlives it.

    Args:
        folder: of its data.
        arguments: of ``weed server``, which replace those below.
    """

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.folder = folder
        self._arguments = arguments
        self._port = {name: free_port() for name in _PORTS}
        self._process: subprocess.Popen[bytes] | None = None
        (folder / "data").mkdir(parents=True)
        keys = {"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}
        identity = {"name": "tester", "credentials": [keys], "actions": ["Admin"]}
        (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._port['s3']}"

    @property
    def master(self) -> str:
        """Address of the part that looks after the volumes."""
        return f"http://127.0.0.1:{self._port['master']}"

    def variables(self) -> dict[str, str]:
        """The environment of a client."""
        return {
            "AWS_ENDPOINT_URL_S3": self.endpoint,
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_REGION": "us-east-1",
        }

    def start(self) -> None:
        port = self._port
        with (self.folder / "log.txt").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    str(Path(sys.executable).with_name("weed")),
                    "-logtostderr=true",
                    "server",
                    f"-dir={self.folder / 'data'}",
                    "-ip=127.0.0.1",
                    "-ip.bind=127.0.0.1",
                    "-master.telemetry=false",
                    "-master.volumeSizeLimitMB=256",
                    "-master.volumePreallocate=false",
                    "-volume.max=0",
                    # By default a server writes nothing where less than 1 % of the disk is free.
                    "-volume.minFreeSpace=64MiB",
                    f"-master.port={port['master']}",
                    f"-master.port.grpc={port['master_grpc']}",
                    f"-volume.port={port['volume']}",
                    f"-volume.port.grpc={port['volume_grpc']}",
                    "-filer",
                    f"-filer.port={port['filer']}",
                    f"-filer.port.grpc={port['filer_grpc']}",
                    "-s3",
                    f"-s3.port={port['s3']}",
                    f"-s3.port.grpc={port['s3_grpc']}",
                    f"-s3.config={self.folder / 's3.json'}",
                    "-s3.iam=false",
                    "-s3.port.iceberg=0",
                    "-s3.port.lance=0",
                    *self._arguments,
                ],
                stdout=log,
                stderr=log,
                env={
                    # By the second, Ctrl-C finds it.
                    **{name: os.environ[name] for name in ("PATH", "SESSION_OF_TESTS") if name in os.environ},
                    "HOME": str(self.folder),
                    "GOMEMLIMIT": "400MiB",
                    "WEED_MASTER_VOLUME_GROWTH_COPY_1": "2",
                },
            )

    def wait_ready(self, bucket: str) -> None:
        """Wait until an object can be written and read in a bucket, which is made."""
        until = time.monotonic() + _READY_SECONDS
        store = pafs.S3FileSystem(
            access_key=ACCESS_KEY,
            secret_key=SECRET_KEY,
            region="us-east-1",
            endpoint_override=self.endpoint.removeprefix("http://"),
            scheme="http",
            allow_bucket_creation=True,
            retry_strategy=pafs.AwsStandardS3RetryStrategy(max_attempts=1),
        )
        while True:
            try:
                store.create_dir(bucket, recursive=False)
                with store.open_output_stream(f"{bucket}/ready") as stream:
                    stream.write(b"ready")
            except OSError as error:
                if time.monotonic() > until:
                    free = shutil.disk_usage(self.folder).free / 1e9
                    raise AssertionError(
                        f"the object store takes nothing, {free:.1f} GB of the disk are free:\n{self._told()}"
                    ) from error
                time.sleep(0.1)
            else:
                return

    def kill(self) -> None:
        """Kill the server, if it was started and not killed before."""
        if self._process is None:
            return
        process, self._process = self._process, None
        assert process.poll() is None, f"the object store ended by itself:\n{self._told()}"
        process.send_signal(signal.SIGKILL)
        process.wait()

    def _told(self) -> str:
        return "\n".join((self.folder / "log.txt").read_text(errors="replace").splitlines()[-20:])
