"""pyarrow's file system of an object store, and one that waits while the store is away (``patient_store``).

``storage`` imports this module with the first ``s3://`` address: who only reads files needs no pyarrow.
"""

import os
import tempfile
from collections.abc import Callable
from functools import partial
from typing import IO, Any
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.fs as pafs

from wukong.store.patient_store import COPY_BYTES, is_denied, until_answered

_SPOOL_BYTES = 8 << 20  # what is written stays in memory up to this size
# The SDK tries each request twice in quick succession, so that a listing of many pages need not begin anew. A server
# that accepts connections and sends nothing is noticed after twice the request timeout.
_OPTIONS = {"connect_timeout": 5, "request_timeout": 30}
_ATTEMPTS = 2


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
        make_folder(self._store, path, recursive=recursive)

    def delete_dir(self, path: str) -> None:
        until_answered(lambda: self._store.delete_dir(path), deletes=True)

    def delete_dir_contents(self, path: str, missing_dir_ok: bool) -> None:
        until_answered(lambda: self._store.delete_dir_contents(path, missing_dir_ok=missing_dir_ok), deletes=True)

    def delete_root_dir_contents(self) -> None:
        until_answered(lambda: self._store.delete_dir_contents("", accept_root_dir=True))

    def delete_file(self, path: str) -> None:
        try:
            until_answered(lambda: self._store.delete_file(path), deletes=True)
        except OSError as error:
            # When it has deleted the file, pyarrow writes an empty object in the place of its folder. A key that may
            # not do that has deleted all the same.
            if not is_denied(error) or self.get_file_info([path])[0].type != pafs.FileType.NotFound:
                raise

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


def make_folder(store: pafs.FileSystem, path: str, *, recursive: bool) -> None:
    """Make a bucket that is missing, or a folder. A key that may not is one for folders below it, which need none."""
    try:
        until_answered(lambda: store.create_dir(path, recursive=recursive))
    except OSError as error:
        if not is_denied(error):
            raise


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
