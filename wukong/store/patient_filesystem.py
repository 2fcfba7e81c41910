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

from wukong.store import refusal, s3_requests
from wukong.store.address import Address
from wukong.store.patient_store import COPY_BYTES, STORE

_SPOOL_BYTES = 8 << 20  # what is written stays in memory up to this size
_CHECKSUMS = ("AWS_REQUEST_CHECKSUM_CALCULATION", "AWS_RESPONSE_CHECKSUM_VALIDATION")
"""Variables of AWS's SDK, which pyarrow has no arguments for."""
# The SDK tries each request twice in quick succession, so that a listing of many pages need not begin anew. A server
# that accepts connections and sends nothing is noticed after twice the request timeout.
_OPTIONS = {"connect_timeout": 5, "request_timeout": 30}
_ATTEMPTS = 2


def connect(address: Address) -> pafs.S3FileSystem:
    """Return pyarrow's own file system of a store, which does not wait; credentials come from the environment."""
    options: dict[str, Any] = {
        **_OPTIONS,
        "region": address.region,
        "allow_bucket_creation": True,
        "allow_delayed_open": True,  # a small object is one request instead of three
        "retry_strategy": pafs.AwsStandardS3RetryStrategy(max_attempts=_ATTEMPTS),
    }
    if address.endpoint:
        # Else the SDK sends data in pieces with a checksum at the end, which stores before 2025 do not know: Ceph's
        # gateway of Debian 12 answers MissingContentLength to every write.
        for name in _CHECKSUMS:
            os.environ.setdefault(name, "when_required")
        parts = urlsplit(address.endpoint)
        options |= {"endpoint_override": parts.netloc, "scheme": parts.scheme}
        options |= {"force_virtual_addressing": address.virtual}
    if address.certificates:  # of pyarrow 21 and newer
        options["tls_ca_file_path"] = address.certificates
    return pafs.S3FileSystem(**options)


def patient(store: pafs.FileSystem, address: Address | None = None) -> pafs.PyFileSystem:
    """Return a file system that gives what ``store`` gives, and waits while it is away.

    Args:
        store: pyarrow's file system.
        address: where it is, for a key that may not ask for an object which may not be there; None if it may.
    """
    return pafs.PyFileSystem(_Handler(store, address))


class _Handler(pafs.FileSystemHandler):  # type: ignore[misc]  # pyarrow has no types
    """Repeats what pyarrow asks of a store. It can be pickled if the store can."""

    def __init__(self, store: pafs.FileSystem, address: Address | None) -> None:
        self._store = store
        self._address = address

    def __eq__(self, other: object) -> bool:
        return self._store == other._store if isinstance(other, _Handler) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._store.type_name)

    def get_type_name(self) -> str:
        return f"patient+{self._store.type_name}"

    def normalize_path(self, path: str) -> str:
        return str(self._store.normalize_path(path))

    def get_file_info(self, paths: list[str]) -> list[pafs.FileInfo]:
        try:
            return STORE.until_answered(lambda: self._store.get_file_info(paths))
        except OSError as error:
            if self._address is None or not refusal.is_denial(error):
                raise
            return [_listed(self._address, path, error) for path in paths]

    def get_file_info_selector(self, selector: pafs.FileSelector) -> list[pafs.FileInfo]:
        return STORE.until_answered(lambda: self._store.get_file_info(selector))

    def create_dir(self, path: str, recursive: bool) -> None:
        try:
            STORE.until_answered(lambda: self._store.create_dir(path, recursive=recursive))
        except OSError as error:
            # A key that may make neither the bucket nor a folder is one for what lies below, which needs none.
            if not refusal.is_denial(error):
                raise

    def delete_dir(self, path: str) -> None:
        try:
            STORE.until_answered(lambda: self._store.delete_dir(path), deletes=True)
        except OSError as error:
            if self._address is None or not refusal.is_denial(error):
                raise
            _delete_listed(self._address, path, error)

    def delete_dir_contents(self, path: str, missing_dir_ok: bool) -> None:
        STORE.until_answered(lambda: self._store.delete_dir_contents(path, missing_dir_ok=missing_dir_ok), deletes=True)

    def delete_root_dir_contents(self) -> None:
        STORE.until_answered(lambda: self._store.delete_dir_contents("", accept_root_dir=True))

    def delete_file(self, path: str) -> None:
        try:
            STORE.until_answered(lambda: self._store.delete_file(path), deletes=True)
        except OSError as error:
            # When it has deleted the file, pyarrow writes an empty object in the place of its folder. A key that may
            # not do that has deleted all the same.
            if not refusal.is_denial(error) or self.get_file_info([path])[0].type != pafs.FileType.NotFound:
                raise

    def move(self, source: str, target: str) -> None:
        self.copy_file(source, target)  # in two steps, as an object store does it, so that each can be repeated
        self.delete_file(source)

    def copy_file(self, source: str, target: str) -> None:
        reads = partial(self._store.get_file_info, source)
        STORE.until_answered(lambda: self._store.copy_file(source, target), reads=reads)

    def open_input_stream(self, path: str) -> pa.NativeFile:
        return self.open_input_file(path)

    def open_input_file(self, path: str) -> pa.NativeFile:
        return pa.PythonFile(_Reader(STORE.until_answered(lambda: self._store.open_input_file(path)), path), mode="r")

    def open_output_stream(self, path: str, metadata: Any) -> pa.NativeFile:
        return pa.PythonFile(_Writer(partial(put, self._store, path, metadata=metadata)), mode="w")

    def open_append_stream(self, path: str, metadata: Any) -> pa.NativeFile:
        raise NotImplementedError(f"an object store appends to no file: {path}")


def _listed(address: Address, path: str, refused: OSError) -> pafs.FileInfo:
    """What a listing says of a path, where the store has refused to say it."""
    from botocore.exceptions import ClientError

    try:
        found = s3_requests.look_up(address, path)
    except ClientError:
        raise refused from None
    if found is None:
        return pafs.FileInfo(path, pafs.FileType.NotFound)
    if found.size is None:
        return pafs.FileInfo(path, pafs.FileType.Directory)
    return pafs.FileInfo(path, pafs.FileType.File, size=found.size, mtime=found.written)


def _delete_listed(address: Address, path: str, refused: OSError) -> None:
    """Delete what a listing finds below a folder, where the store has refused to say that there is none."""
    from botocore.exceptions import ClientError

    try:
        s3_requests.delete_below(address, path)
    except ClientError:
        raise refused from None


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
        data = STORE.until_answered(lambda: self._read_here(wanted))
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

    STORE.until_answered(send, reads=lambda: store.get_file_info(path))
