"""What is remembered of a stack: ``stack.json`` in its home, readable by its user alone."""

import hashlib
import json
import logging
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, ValidationError

from infra.corpus import HOST
from wukong.errors import StackError
from wukong.runtime import environment
from wukong.store import conditional_files
from wukong.store.conditional_store import ChangedError
from wukong.store.whole_file import whole_file

log = logging.getLogger(__name__)

_FILE = "stack.json"
_NOTICE_SECONDS = 2.0
_LOCK_SECONDS = 900.0  # longer than a start may take (`services`), so that it is waited for


def folder_id(home: Path) -> str:
    """A stack's identity: it follows from its home's path, so that it is known also when ``stack.json`` is lost."""
    return hashlib.sha256(os.fsencode(home.resolve())).hexdigest()[:16]


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid")

    version: int = 1
    access_key: str
    secret_key: str
    ray_token: str
    ports: dict[str, int]
    catalogue: str | None = None


@dataclass(frozen=True)
class Stack:
    """The ports and credentials of the stack in a home.

    Attributes:
        ports: by name: ``s3``, ``mlflow``, ``ray``, ``site`` and those the services use among themselves.
        catalogue: what the search site serves; None if it has never been asked for.
    """

    home: Path
    access_key: str
    secret_key: str
    ray_token: str
    ports: dict[str, int]
    catalogue: Path | None = None

    @property
    def identity(self) -> str:
        """What its processes are marked with."""
        return folder_id(self.home)

    @property
    def mlflow_token(self) -> str:
        """What programs of other users show to MLflow, for instance those in containers."""
        return hashlib.sha256(f"mlflow {self.secret_key}".encode()).hexdigest()

    def url(self, name: str) -> str:
        """``http://127.0.0.1:PORT`` of a port name."""
        return f"http://127.0.0.1:{self.ports[name]}"

    def environment(self) -> dict[str, str]:
        """What a process needs in its environment to use the stack; holds credentials.

        Hosts that this process's own ``WUKONG_CONNECT_TO`` and ``NO_PROXY`` name stay named.
        """
        return environment.merged(self.variables())

    def variables(self) -> dict[str, str]:
        """``environment`` without what this process's own says."""
        not_proxied = f"127.0.0.1,localhost,{HOST}"
        return {
            "AWS_ENDPOINT_URL_S3": self.url("s3"),
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "MLFLOW_TRACKING_URI": self.url("mlflow"),
            "MLFLOW_TRACKING_TOKEN": self.mlflow_token,
            "RAY_ADDRESS": f"127.0.0.1:{self.ports['ray']}",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self.ray_token,
            # Ray replaces 127.0.0.1 by an address other machines can reach, unless it is told that there are none.
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
            "WUKONG_CONNECT_TO": f"{HOST}=127.0.0.1:{self.ports['site']}",
            "NO_PROXY": not_proxied,
            "no_proxy": not_proxied,
            "DO_NOT_TRACK": "true",
            "GX_ANALYTICS_ENABLED": "false",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            # Else each training starts a process that asks whether the machine is about to be taken away.
            "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
            "RAY_USAGE_STATS_ENABLED": "0",
        }

    def with_changes(self, **changes: Any) -> "Stack":
        """The same stack with some attributes changed."""
        if changes.get("catalogue") is not None:
            changes["catalogue"] = changes["catalogue"].absolute()
        return replace(self, **changes)

    @classmethod
    def load_or_new(cls, home: Path) -> "Stack":
        """The stack of a home, or a new one with credentials of its own."""
        if (home / _FILE).exists():
            return load(home)
        return cls(home, secrets.token_hex(10), secrets.token_hex(20), secrets.token_hex(32), {})

    def save(self) -> None:
        """Write ``stack.json``."""
        record = _Record(
            access_key=self.access_key,
            secret_key=self.secret_key,
            ray_token=self.ray_token,
            ports=self.ports,
            catalogue=str(self.catalogue) if self.catalogue else None,
        )
        write_private(self.home / _FILE, record.model_dump_json(indent=2) + "\n")
        write_private(self.home / environment.FILE, json.dumps(self.variables(), indent=2) + "\n")


def load(home: Path) -> Stack:
    """Read the stack of a home, whether it runs or not.

    Raises:
        StackError: there is none, it is not this user's own, or its record cannot be read.
    """
    path = home.absolute() / _FILE
    environment.require_own(home.absolute())
    environment.require_own(path)
    try:
        record = _Record.model_validate_json(path.read_bytes())
    except FileNotFoundError as error:
        raise StackError(f"no stack in {home}: `wukong up` starts one") from error
    except (OSError, ValidationError) as error:
        raise StackError(
            f"{path} cannot be read: `wukong down`, delete that file, `wukong up`. "
            "Data are kept; ports and credentials will be new"
        ) from error
    catalogue = Path(record.catalogue) if record.catalogue else None
    return Stack(home.absolute(), record.access_key, record.secret_key, record.ray_token, record.ports, catalogue)


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner may read, atomically."""
    with whole_file(path, mode=0o600) as stream:
        stream.write(text.encode())


def remember(home: Path) -> None:
    """Record where a stack was started, so that it can be found from any folder."""
    target = environment.list_of_homes()
    try:
        content, version = conditional_files.read(target) or (b"", None)
        known = dict.fromkeys([home, *environment.homes_in(content)])
        conditional_files.write(target, b"".join(b"%b\n" % os.fsencode(each) for each in known), version)
    except ChangedError:
        remember(home)
    except OSError:
        return  # only a convenience: without it, the user can set WUKONG_HOME


@contextmanager
def locked(home: Path, *, create: bool = False) -> Iterator[None]:
    """Let one process at a time change a stack; another waits for it.

    The lock is released when the process ends, however it ends.

    Args:
        home: the home of the stack.
        create: make the folder if it is missing.

    Raises:
        StackError: the folder cannot be used or is not this user's own, or another process holds the lock for longer
            than a start takes.
    """
    lock = FileLock(home / ".lock")
    try:
        if create:
            environment.make(home)
        environment.require_own(home)
        try:
            lock.acquire(timeout=_NOTICE_SECONDS)
        except Timeout:
            log.warning("another `wukong up` or `wukong down` works on %s: waiting until it has ended", home)
            lock.acquire(timeout=_LOCK_SECONDS)
    except Timeout as error:
        raise StackError(
            f"another `wukong up` or `wukong down` has been working on {home} for {_LOCK_SECONDS:.0f} s: "
            "wait until it has ended, or end it, and try again"
        ) from error
    except OSError as error:
        raise StackError(
            f"cannot use {home} for the embedded stack ({error.strerror or error}): "
            "check your rights there, or set WUKONG_HOME to another folder"
        ) from error
    try:
        yield
    finally:
        lock.release()
