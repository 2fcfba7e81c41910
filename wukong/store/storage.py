"""Read and write files at URIs: ``s3://bucket/key`` and ``file:///path``.

Both are pyarrow file systems, so the same functions read Parquet, tar and JSON files from either. Whole local files are
read and written without pyarrow, which is imported where it is needed: a model is loaded from a folder without it.

The S3 endpoint and credentials come from the environment variables that all AWS clients use (``AWS_ENDPOINT_URL_S3`` or
``AWS_ENDPOINT_URL``, ``AWS_ACCESS_KEY_ID``, ``AWS_SECRET_ACCESS_KEY``, ``AWS_REGION``), never from a config file. If
none of them is set, they come from this machine's embedded stack (``wukong.runtime.environment``).

While an object store is away, all of these functions wait for it (``wukong.store.patient_store``). A local file system
is not waited for.
"""

import errno
import json
import logging
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal, TypeVar
from urllib.parse import unquote, urlsplit

from wukong.errors import StorageError
from wukong.runtime import environment
from wukong.store import (
    address,
    conditional_files,
    conditional_store,
    damage,
    listing,
    patience,
    patient_store,
    refusal,
    s3_requests,
)
from wukong.store.address import Address
from wukong.store.conditional_store import ChangedError, UnconditionalError
from wukong.store.local_paths import local_path, refuse_pipe
from wukong.store.whole_file import whole_file

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.fs as pafs

_SCHEMES = ("s3", "file")
_COPY_BYTES = patient_store.COPY_BYTES
_DELETIONS = 8  # of one prefix, while others delete there too

_Action = Literal["read", "write", "list", "look up", "delete"]
_Answer = TypeVar("_Answer")

log = logging.getLogger(__name__)


def join(uri: str, *parts: str) -> str:
    """Append path segments to a URI: ``join("s3://b/a", "x", "y.json") == "s3://b/a/x/y.json"``."""
    return "/".join([uri.rstrip("/"), *(part.strip("/") for part in parts)])


def from_path(path: Path) -> str:
    """Return the ``file://`` URI of a local path; a relative path is made absolute."""
    return path.absolute().as_uri()


def filesystem(uri: str) -> "tuple[pafs.FileSystem, str]":
    """Return the pyarrow file system of a URI, and the path inside it. That of an object store waits while it is away.

    It reads through Python, one piece at a time. ``read_with`` is faster for a function that reads one file.

    Raises:
        StorageError: the scheme is neither ``s3`` nor ``file``, or pyarrow is not installed.
    """
    store, path = _bare(uri)
    if _is_local(store):
        return store, path
    from wukong.store import patient_filesystem

    return patient_filesystem.patient(store, address.of_environment()), path


def read_with(uri: str, read: "Callable[[pafs.FileSystem, str], _Answer]") -> _Answer:
    """Return what a function reads at a URI; the function is called again if an object store goes away meanwhile.

    Args:
        uri: what to read.
        read: gets pyarrow's own file system, which does not wait, and the path inside it.

    Raises:
        StorageError: it cannot be read.
    """
    store, path = _bare(uri)
    with _explained("read", uri):
        if _is_local(store):
            refuse_pipe(path)
        return patient_store.STORE.until_answered(lambda: read(store, path))


def _bare(uri: str) -> "tuple[pafs.FileSystem, str]":
    """Return pyarrow's own file system of a URI, which does not wait, and the path inside it."""
    local = _local_path(uri)
    try:
        import pyarrow.fs as pafs
    except ModuleNotFoundError as error:
        raise StorageError(
            f"cannot open {uri}: it is opened with pyarrow, which is not installed: run `pip install pyarrow`"
        ) from error
    if local is not None:
        return pafs.LocalFileSystem(), local
    return _s3(address.of_environment()), _key(uri)


def _is_local(store: "pafs.FileSystem") -> bool:
    return bool(store.type_name == "local")


def _local_path(uri: str) -> str | None:
    """Return the path of a file; None for an object, whose store the environment's variables name from then on."""
    parts = urlsplit(uri, allow_fragments=False)
    if parts.scheme == "file":
        return unquote(parts.path)
    if parts.scheme != "s3":
        raise StorageError(
            f"cannot open {uri!r}: the scheme must be one of {', '.join(_SCHEMES)} (for a folder: file:///…)"
        )
    configured = environment.is_named(uri)
    environment.use_for(uri)
    if not configured and environment.is_named(uri):  # a person's program: stages are told where their store is
        patience.set_default(patience.PEOPLE)
    return None


def _key(uri: str) -> str:
    """Return an object's bucket and key."""
    return uri.removeprefix("s3://")


@lru_cache(maxsize=8)
def _s3(store: Address) -> "pafs.FileSystem":
    from wukong.store import patient_filesystem

    return patient_filesystem.connect(store)


@contextmanager
def _explained(action: _Action, uri: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _cannot(action, uri, error) from error


def _cannot(action: _Action, uri: str, error: OSError) -> StorageError:
    failed = f"cannot {action} {uri}"
    if isinstance(error, FileNotFoundError):
        return StorageError(f"{failed}: there is nothing at that address")
    if isinstance(error, patience.FullError):
        return StorageError(f"{failed}: {error}")
    hint = (
        refusal.remedy(uri, error)
        if uri.startswith("s3://")
        else "Check that the folder exists, that you may write to it, and that the disk is not full."
    )
    return StorageError(f"{failed}: {error}. {hint}")


def exists(uri: str) -> bool:
    """Return whether there is a file at this URI; a prefix or folder does not count."""
    fs, path = filesystem(uri)
    with _explained("look up", uri):
        return bool(fs.get_file_info(path).is_file)


def list_files(uri: str, suffix: str = "") -> list[str]:
    """Return the sorted URIs of all files below a prefix whose name ends in ``suffix``; empty if there are none."""
    fs, path = filesystem(uri)
    with _explained("list", uri):
        infos = listing.files_below(fs, path)
    base = path.rstrip("/")
    return sorted(join(uri, info.path[len(base) :]) for info in infos if info.path.endswith(suffix))


def list_names(uri: str) -> list[str]:
    """Return the sorted names of the files and folders directly below a prefix; empty if there are none."""
    fs, path = filesystem(uri)
    with _explained("list", uri):
        infos = fs.get_file_info(listing.everything(path, recursive=False))
    return sorted(info.base_name for info in infos)


def sizes(uri: str) -> dict[str, int]:
    """Return the bytes of the file at a URI, or of every file below it, by URI; empty if there are none."""
    fs, path = filesystem(uri)
    with _explained("list", uri):
        found = fs.get_file_info(path)
        if found.is_file:
            return {uri: found.size}
        infos = listing.files_below(fs, path)
    base = path.rstrip("/")
    return {join(uri, info.path[len(base) :]): info.size for info in infos}


def read_bytes(uri: str, sha256: str = "") -> bytes:
    """Read a whole file.

    Args:
        uri: URI of the file.
        sha256: digest that the file must have; empty for any.

    Raises:
        StorageError: the file cannot be read, or was altered.
    """

    def read(store: "pafs.FileSystem", path: str) -> bytes:
        with store.open_input_file(path) as stream:
            return bytes(stream.read())

    if (local := _local_path(uri)) is None:
        data = read_with(uri, read)
    else:
        with _explained("read", uri):
            refuse_pipe(local)
            with Path(local).open("rb", buffering=0) as stream:
                data = stream.readall()
    damage.compare(uri, data, sha256)
    return data


def write_bytes(uri: str, data: bytes) -> None:
    """Write a whole file atomically: readers see either the old content or the new."""
    with open_output(uri) as stream:
        stream.write(data)


def read_json(uri: str, sha256: str = "") -> Any:
    """Read and parse a JSON file; see ``read_bytes``.

    Raises:
        StorageError: the file cannot be read, was altered, or is not JSON.
    """
    return _parsed(uri, read_bytes(uri, sha256))


def _parsed(uri: str, data: bytes) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise StorageError(f"{uri} is not valid JSON ({error}); {damage.remedy(uri)}") from error


def write_json(uri: str, value: Any) -> None:
    """Write JSON with sorted keys, so that equal values give equal bytes."""
    write_bytes(uri, json_bytes(value))


def json_bytes(value: Any) -> bytes:
    """Return the bytes that ``write_json`` writes."""
    return (json.dumps(value, ensure_ascii=False, indent=2, sort_keys=True) + "\n").encode()


def version(uri: str) -> str | None:
    """Return what identifies the present content of a file, for ``write_if``; None if there is no file."""
    if (path := _local_path(uri)) is None:
        return conditional_store.version(address.of_environment(), _key(uri))
    with _explained("read", uri):
        return conditional_files.version(Path(path))


def read_version(uri: str) -> tuple[bytes, str] | None:
    """Return the content of a file and its ``version``, which belong together; None if there is no file."""
    if (path := _local_path(uri)) is None:
        return conditional_store.read(address.of_environment(), _key(uri))
    with _explained("read", uri):
        return conditional_files.read(Path(path))


def write_if(uri: str, data: bytes | IO[bytes], expected: str | None) -> None:
    """Write a whole file atomically, if it is as it was seen.

    Args:
        uri: URI of the file.
        data: its whole content, or a stream of it that can be read again from its start.
        expected: from ``version``; None to write a file that was not there.

    Raises:
        ChangedError: it is not as it was seen.
        UnconditionalError: the object store says that it has no conditional writes. One that ignores conditions says
            nothing, and writes.
        StorageError: it cannot be written.
    """
    if (path := _local_path(uri)) is None:
        conditional_store.write(address.of_environment(), _key(uri), data, expected)
        return
    with _explained("write", uri):
        conditional_files.write(Path(path), data, expected)


def update(uri: str, change: Callable[[Any], Any]) -> Any:
    """Change a JSON file that others may change at the same time, and return its content; no change is lost.

    Args:
        uri: URI of the file.
        change: takes what it holds, None where there is no file, and returns what it is to hold. After the change of
            somebody else it is called again, perhaps with what it returned before: the answer to a write may be lost.

    Raises:
        StorageError: it cannot be read or written, or is not JSON.
    """
    while True:
        stored = read_version(uri)
        value = change(None if stored is None else _parsed(uri, stored[0]))
        data = json_bytes(value)
        try:
            write_if(uri, data, None if stored is None else stored[1])
        except ChangedError:
            continue
        except UnconditionalError as error:
            log.warning("%s: what somebody else writes to it in this moment may be lost", error)
            write_bytes(uri, data)
        except StorageError as error:
            if not refusal.lacks_bucket(error):
                raise
            make_bucket(_key(uri).split("/", 1)[0])
            continue
        return value


@contextmanager
def open_input(uri: str, sha256: str = "") -> Iterator[IO[bytes]]:
    """Open a file for reading, as a seekable stream.

    Args:
        uri: URI of the file.
        sha256: digest that the file must have, which is then read from its start to its end; empty for any.

    Raises:
        StorageError: the file cannot be read; or, at the end of the block, was altered.
    """
    fs, path = filesystem(uri)
    with _explained("read", uri):
        if _is_local(fs):
            refuse_pipe(path)
        stream = fs.open_input_file(path)
    with stream:
        try:
            if sha256:
                compared = damage.Compared(stream, uri, sha256)
                yield compared  # type: ignore[misc]
                compared.finish()
            else:
                yield stream
        except patience.AwayError as error:
            raise _cannot("read", uri, error) from error


@contextmanager
def open_output(uri: str, *, synced: bool = True) -> Iterator[IO[bytes]]:
    """Open a file for writing; it appears under its name only if the block ends without an error.

    Args:
        uri: URI of the file.
        synced: whether a file on a local disk must be complete under its name even if the machine loses its power.
    """
    if (path := _local_path(uri)) is not None:
        with _explained("write", uri), whole_file(Path(path), synced=synced) as stream:
            yield stream
        return
    # An S3 object exists when its upload is completed. After an error the upload must not be completed, so the data is
    # written to a temporary local file first.
    fs, key = _bare(uri)
    from wukong.store import patient_filesystem

    with spooled(uri) as spool:
        yield spool
        spool.flush()
        with _explained("write", uri):
            try:
                patient_filesystem.put(fs, key, spool)
            except OSError as error:
                if not refusal.lacks_bucket(error):
                    raise
                make_bucket(key.split("/", 1)[0])
                patient_filesystem.put(fs, key, spool)


def make_bucket(name: str) -> bool:
    """Make a bucket of the object store where there is none; return whether one was made.

    Raises:
        StorageError: the store refuses.
    """
    from botocore.exceptions import BotoCoreError, ClientError

    environment.use_for(f"s3://{name}")
    try:
        return s3_requests.make_bucket(address.of_environment(), name)
    except patience.AwayError as error:
        raise StorageError(f"cannot make the bucket {name}: {error}") from error
    except (BotoCoreError, ClientError) as error:
        remedy = refusal.remedy(f"s3://{name}", error)
        raise StorageError(f"cannot make the bucket {name}: {error}. {remedy}") from error


@contextmanager
def spooled(uri: str) -> Iterator[IO[bytes]]:
    """Give a temporary local file for what will be written to a URI.

    Raises:
        StorageError: there is no room for it.
    """
    with tempfile.TemporaryFile() as spool:
        try:
            yield spool
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            raise StorageError(
                f"cannot write {uri}: there is no room for its temporary copy in {tempfile.gettempdir()} ({error}). "
                "Free space there, or name another folder for temporary files by TMPDIR"
            ) from error


def delete(uri: str) -> None:
    """Delete a file, or everything below a prefix; it is not an error if there is nothing, or if others delete it."""
    fs, path = filesystem(uri)
    from pyarrow.fs import FileType

    with _explained("delete", uri):
        for _ in range(_DELETIONS):
            info = fs.get_file_info(path)
            try:
                if info.type == FileType.File:
                    fs.delete_file(path)
                elif info.type == FileType.Directory:
                    fs.delete_dir(path)
            except FileNotFoundError:
                continue  # a part of it is gone already: look for what is left
            return


def upload(local: Path, uri: str) -> None:
    """Copy one local file to a URI."""
    with local.open("rb") as source, open_output(uri) as target:
        shutil.copyfileobj(source, target, _COPY_BYTES)


def download(uri: str, folder: Path, name: str, sha256: str = "") -> Path:
    """Copy a file into a local folder, below which folders are made; the copy appears only when it is complete.

    Args:
        uri: URI of the file.
        folder: the local folder.
        name: of the copy, below the folder; it may come from a stranger.
        sha256: digest that the file must have; empty for any.

    Raises:
        DataError: the name leads out of the folder.
        StorageError: the file cannot be read, was altered, or the copy cannot be written.
    """
    local = local_path(folder, name, uri)
    with open_output(from_path(local)) as target, open_input(uri, sha256) as source:
        shutil.copyfileobj(source, target, _COPY_BYTES)
    return local


def read_table(
    uri: str, columns: Sequence[str] | None = None, sha256: str = "", present_only: bool = False
) -> "pa.Table":
    """Read one Parquet file.

    Args:
        uri: URI of the file.
        columns: those to read; None for all.
        sha256: digest that the file must have, which is then read as a whole; empty for any.
        present_only: leave out the columns that the file lacks.

    Raises:
        StorageError: the file cannot be read, is truncated or altered, or lacks a column.
    """
    import pyarrow as pa

    def read(store: "pafs.FileSystem", path: str) -> "pa.Table":
        with store.open_input_file(path) as stream:  # by its path, it would be looked up once more
            if not sha256:
                return _table(stream, columns, present_only)
            data = stream.read_buffer()
        damage.compare(uri, data, sha256)
        return _table(pa.BufferReader(data), columns, present_only)

    try:
        return read_with(uri, read)
    except (pa.ArrowException, ValueError) as error:
        raise StorageError(f"{uri} is not a readable Parquet file ({error}); {damage.remedy(uri)}") from error


def _table(source: "pa.NativeFile", columns: Sequence[str] | None, present_only: bool) -> "pa.Table":
    """Read a Parquet file, not as pyarrow's dataset of one file: that imports pandas in each process."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with pq.ParquetFile(source, pre_buffer=True) as file:
        there = file.schema_arrow.names
        if columns is not None and present_only:
            columns = [name for name in columns if name in there]
        if missing := [name for name in columns or () if name not in there]:
            raise pa.ArrowInvalid(f"it lacks the columns {', '.join(missing)}; it has {', '.join(there)}")
        table = file.read(columns)
        return table if columns is None else table.select(list(columns))


def write_table(uri: str, table: "pa.Table") -> None:
    """Write one Parquet file (zstd) atomically; equal tables give equal bytes."""
    with open_output(uri) as stream:
        stream.write(table_bytes(table))


def table_bytes(table: "pa.Table") -> "pa.Buffer":
    """Return the bytes that ``write_table`` writes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()
