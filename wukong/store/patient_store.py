"""An object store that is waited for while it is away (``wukong.store.patience``).

A store is away if it cannot be reached, breaks connections, does not answer in time, or answers that it is overloaded
or has an internal error. All other errors (no permission, no such bucket, nothing at the address) end a request at
once.

A store is full if it says so, or if it has an internal error at each write while it answers reads: SeaweedFS gives no
other sign. It is waited for too, because it may be about to reclaim what was deleted.
"""

import os
import re
import tempfile
from collections.abc import Callable
from functools import partial
from typing import IO, Any, TypeVar
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.fs as pafs

from wukong.runtime.language import message
from wukong.store import patience

COPY_BYTES = 1 << 20

_SPOOL_BYTES = 8 << 20  # what is written stays in memory up to this size
# The SDK tries each request twice in quick succession, so that a listing of many pages need not begin anew. A server
# that accepts connections and sends nothing is noticed after twice the request timeout.
_OPTIONS = {"connect_timeout": 5, "request_timeout": 30}
_ATTEMPTS = 2
# pyarrow has no class for these errors; its text contains the AWS SDK's name of the error, or the HTTP status.
_AWAY = re.compile(
    r"AWS Error (NETWORK_CONNECTION|SLOW_DOWN|INTERNAL_FAILURE|SERVICE_UNAVAILABLE|THROTTLING|REQUEST_TIMEOUT)\b"
    r"|AWS Error [^:]*\(HTTP status (408|429|50[02-9]|5[1-9]\d)\)"
)
_REFUSED = re.compile(r"AWS Error INTERNAL_FAILURE\b|\(HTTP status 500\)")
# Of curl's codes: unknown protocol, malformed URL, wrong or unreadable TLS certificates. To wait does not mend them.
_NEVER_AWAY = re.compile(r"curlCode: (1|3|51|53|54|58|59|60|66|77|80|82|83|90|91),")

_Answer = TypeVar("_Answer")

OUTAGE = patience.Outage(
    message("the object store"),
    room=". "
    + message(
        "Delete outputs that are not needed, or give it more room. What was deleted takes room until the store "
        "reclaims it, which it does by itself"
    ),
)
NO_ROOM = re.compile(
    r"\b507\b|StorageFull|InsufficientStorage|QuotaExceeded|no (writable|free) volumes|no space left", re.I
)
"""What stores say when they are full: MinIO and others by HTTP's status or a name, SeaweedFS's filer in words."""


def is_away(error: BaseException) -> bool:
    """Return whether an error means that the store cannot be reached or asks for a pause."""
    if isinstance(error, patience.AwayError | FileNotFoundError) or not isinstance(error, OSError):
        return False
    text = str(error)
    return bool(_AWAY.search(text)) and not _NEVER_AWAY.search(text)


def until_answered(
    request: Callable[[], _Answer], *, deletes: bool = False, reads: Callable[[], Any] | None = None
) -> _Answer:
    """Make a request; if the store is away or full, repeat it until the store answers.

    Args:
        request: the whole of what is repeated.
        deletes: whether it deletes one thing. A repetition that finds nothing then has succeeded: the store deleted
            the thing, and only its answer was lost.
        reads: a request that only reads, beside one that writes: it tells a full store from one that is away.

    Raises:
        FullError: the store was full for longer than the patience.
        AwayError: the store was away for longer than the patience.
    """
    failed = False

    def ask() -> _Answer:
        nonlocal failed
        try:
            return request()
        except FileNotFoundError:
            if deletes and failed:
                return None  # type: ignore[return-value]  # a request that deletes answers nothing
            raise
        except OSError:
            failed = True
            raise

    def is_full(error: BaseException, lasts: bool) -> bool:
        if reads is None or NO_ROOM.search(str(error)):
            return reads is not None
        if not (lasts and _REFUSED.search(str(error))):
            return False
        try:
            reads()
        except OSError:
            return False
        return True

    return patience.until_answered(ask, is_away, OUTAGE, is_full)


def connect(endpoint: str | None, region: str) -> pafs.S3FileSystem:
    """Return pyarrow's own file system of a store, which does not wait; credentials come from the environment.

    Args:
        endpoint: URL of the store; None for AWS.
        region: AWS's name of the region.
    """
    options: dict[str, Any] = {
        **_OPTIONS,
        "region": region,
        "allow_bucket_creation": True,
        "allow_delayed_open": True,  # a small object is one request instead of three
        "retry_strategy": pafs.AwsStandardS3RetryStrategy(max_attempts=_ATTEMPTS),
    }
    if endpoint:
        parts = urlsplit(endpoint)
        options |= {"endpoint_override": parts.netloc, "scheme": parts.scheme}
    return pafs.S3FileSystem(**options)


def patient(store: pafs.FileSystem) -> pafs.PyFileSystem:
    """Return a file system that gives what ``store`` gives, and waits while it is away."""
    return pafs.PyFileSystem(_Handler(store))


class _Handler(pafs.FileSystemHandler):  # type: ignore[misc]  # pyarrow has no types
    """Repeats what pyarrow asks of a store. It can be pickled if the store can."""

    def __init__(self, store: pafs.FileSystem) -> None:
        self._store = store

    def __eq__(self, other: object) -> bool:
        return self._store == other._store if isinstance(other, _Handler) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._store.type_name)

    def get_type_name(self) -> str:
        return f"patient+{self._store.type_name}"

    def normalize_path(self, path: str) -> str:
        return str(self._store.normalize_path(path))

    def get_file_info(self, paths: list[str]) -> list[pafs.FileInfo]:
        return until_answered(lambda: self._store.get_file_info(paths))

    def get_file_info_selector(self, selector: pafs.FileSelector) -> list[pafs.FileInfo]:
        return until_answered(lambda: self._store.get_file_info(selector))

    def create_dir(self, path: str, recursive: bool) -> None:
        until_answered(lambda: self._store.create_dir(path, recursive=recursive))

    def delete_dir(self, path: str) -> None:
        until_answered(lambda: self._store.delete_dir(path), deletes=True)

    def delete_dir_contents(self, path: str, missing_dir_ok: bool) -> None:
        until_answered(lambda: self._store.delete_dir_contents(path, missing_dir_ok=missing_dir_ok), deletes=True)

    def delete_root_dir_contents(self) -> None:
        until_answered(lambda: self._store.delete_dir_contents("", accept_root_dir=True))

    def delete_file(self, path: str) -> None:
        until_answered(lambda: self._store.delete_file(path), deletes=True)

    def move(self, source: str, target: str) -> None:
        self.copy_file(source, target)  # in two steps, as an object store does it, so that each can be repeated
        self.delete_file(source)

    def copy_file(self, source: str, target: str) -> None:
        until_answered(lambda: self._store.copy_file(source, target), reads=lambda: self._store.get_file_info(source))

    def open_input_stream(self, path: str) -> pa.NativeFile:
        return self.open_input_file(path)

    def open_input_file(self, path: str) -> pa.NativeFile:
        return pa.PythonFile(_Reader(until_answered(lambda: self._store.open_input_file(path)), path), mode="r")

    def open_output_stream(self, path: str, metadata: Any) -> pa.NativeFile:
        return pa.PythonFile(_Writer(partial(put, self._store, path, metadata=metadata)), mode="w")

    def open_append_stream(self, path: str, metadata: Any) -> pa.NativeFile:
        raise NotImplementedError(f"an object store appends to no file: {path}")


class _Reader:
    """An object that is open for reading. Each read is a request of its own, and is repeated where it failed."""

    def __init__(self, source: pa.NativeFile, path: str) -> None:
        self._source = source
        self._path = path
        self._size = int(source.size())
        self._at = 0

    @property
    def closed(self) -> bool:
        return bool(self._source.closed)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        return self._at

    def read_buffer(self, size: int | None = None) -> pa.Buffer:
        left = max(self._size - self._at, 0)
        wanted = left if size is None or size < 0 else min(size, left)
        data = until_answered(lambda: self._read_here(wanted))
        self._at += wanted
        return data

    def read(self, size: int | None = None) -> pa.Buffer:
        return self.read_buffer(size)  # pyarrow copies it, so it need not be copied here

    def close(self) -> None:
        self._source.close()

    def _read_here(self, size: int) -> pa.Buffer:
        self._source.seek(self._at)
        data = self._source.read_buffer(size)
        if data.size != size:
            raise OSError(
                f"AWS Error NETWORK_CONNECTION: {data.size} bytes came instead of {size} of {self._path} at {self._at}"
            )
        return data


class _Writer:
    """An object that is open for writing. It is sent when it is closed, so that all of it can be sent again."""

    def __init__(self, send: Callable[[IO[bytes]], None]) -> None:
        self._send = send
        self._spool = tempfile.SpooledTemporaryFile(max_size=_SPOOL_BYTES)  # noqa: SIM115 - closed by close
        self.closed = False

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._spool.tell()

    def flush(self) -> None:
        """Do nothing: an object appears as a whole."""

    def write(self, data: bytes) -> int:
        return self._spool.write(data)

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            with self._spool as spool:
                self._send(spool)


def put(store: pafs.FileSystem, path: str, content: IO[bytes], metadata: Any = None) -> None:
    """Write an object, all of it again after each failure.

    Args:
        store: pyarrow's file system.
        path: bucket and key.
        content: a stream that can be read again from its start.
        metadata: pyarrow's metadata of the object, or None.

    Raises:
        FullError: the store was full for longer than the patience.
        AwayError: the store was away for longer than the patience.
    """

    def send() -> None:
        content.seek(0)
        with store.open_output_stream(path, metadata=metadata) as target:
            while piece := content.read(COPY_BYTES):
                target.write(piece)

    until_answered(send, reads=lambda: store.get_file_info(path))
