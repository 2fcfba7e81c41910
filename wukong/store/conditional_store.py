"""Writes to an S3 store that happen only if an object is as it was seen: ``If-None-Match`` and ``If-Match``.

pyarrow's S3 has no conditional write, so these requests go through boto3. They wait for a store that is away, as all
others do (``wukong.store.patient_store``).

Ceph's gateway (seen with 16.2) compares ``If-Match`` with the entity tag without its quotes, which it sends with them.
Where a write with the present version is refused, it is tried without quotes, and so are later ones to that store. In a
bucket that keeps versions that gateway heeds neither condition.
"""

from collections.abc import Callable
from typing import IO, TypeVar

from wukong.errors import StorageError
from wukong.store import refusal, s3_requests
from wukong.store.address import Address
from wukong.store.patient_store import STORE, has_code
from wukong.store.s3_requests import client

_CHANGED = ("412", "409", "PreconditionFailed", "ConditionalRequestConflict")
_UNKNOWN = ("501", "NotImplemented", "400", "InvalidArgument", "InvalidRequest")
_OF_OTHERS = ("AuthorizationHeaderMalformed", "EntityTooLarge", "ExpiredToken", "InvalidBucketName")
"""What is a 400 too, and says nothing of conditions."""
_NOTHING = ("404", "NoSuchKey", "NotFound")

_Answer = TypeVar("_Answer")

_without_quotes: set[Address] = set()
"""Stores that compare entity tags without their quotes."""


class ChangedError(StorageError):
    """An object is not as it was seen: somebody else has written it."""


class UnconditionalError(StorageError):
    """The store has no conditional writes."""


def version(address: Address, path: str) -> str | None:
    """Return what identifies the present content of an object, its entity tag; None if there is no object.

    Args:
        address: the store.
        path: bucket and key.

    Raises:
        StorageError: the store cannot be read.
    """
    bucket, key = path.split("/", 1)
    return _unless_nothing(address, path, lambda: str(client(address).head_object(Bucket=bucket, Key=key)["ETag"]))


def read(address: Address, path: str) -> tuple[bytes, str] | None:
    """Return the whole content of an object and its ``version``; None if there is no object.

    The arguments and errors are those of ``version``.
    """
    bucket, key = path.split("/", 1)

    def ask() -> tuple[bytes, str]:
        answer = client(address).get_object(Bucket=bucket, Key=key)
        return answer["Body"].read(), str(answer["ETag"])

    return _unless_nothing(address, path, ask)


def write(address: Address, path: str, data: bytes | IO[bytes], expected: str | None) -> None:
    """Write an object if it has the version that was seen.

    Args:
        address: the store.
        path: bucket and key.
        data: the whole object, of 5 GiB at most, or a stream of it that can be read again from its start.
        expected: from ``version``; None to make a new object.

    Raises:
        ChangedError: it has another version, which may be of an earlier try of this write whose answer was lost.
        UnconditionalError: the store says that it has no such writes, or refuses one with the version that it has. One
            that ignores conditions says nothing.
        StorageError: the store cannot be written.
    """
    if expected is None:
        _put(address, path, data, IfNoneMatch="*")
        return
    bare = expected.strip('"')
    if address in _without_quotes:
        _put(address, path, data, IfMatch=bare)
        return
    try:
        _put(address, path, data, IfMatch=expected)
    except ChangedError:
        if version(address, path) != expected:
            raise
        try:
            _put(address, path, data, IfMatch=bare)
        except ChangedError as error:
            if version(address, path) != expected:
                raise
            raise UnconditionalError(f"s3://{path}: the store refuses If-Match with the version that it has") from error
        _without_quotes.add(address)


def _put(address: Address, path: str, data: bytes | IO[bytes], **condition: str) -> None:
    from botocore.exceptions import BotoCoreError, ClientError

    bucket, key = path.split("/", 1)
    store = client(address)

    def put() -> None:
        if not isinstance(data, bytes):
            data.seek(0)
        store.put_object(Bucket=bucket, Key=key, Body=data, **condition)

    try:  # it looks at the object, not at the bucket, which a key for a part of it may not
        STORE.until_answered(put, reads=lambda: store.head_object(Bucket=bucket, Key=key))
    except (BotoCoreError, ClientError) as error:
        if has_code(error, *_NOTHING) and not has_code(error, "NoSuchBucket"):  # what was seen has been deleted
            raise ChangedError(f"s3://{path} was deleted by somebody else") from error
        if has_code(error, *_CHANGED):
            raise ChangedError(f"s3://{path} was written by somebody else") from error
        if has_code(error, *_UNKNOWN) and not has_code(error, *_OF_OTHERS):
            raise UnconditionalError(f"s3://{path}: the store has no conditional writes ({error})") from error
        raise _failed(f"cannot write s3://{path}", path, error) from error


def _unless_nothing(address: Address, path: str, ask: Callable[[], _Answer]) -> _Answer | None:
    """Return what the store answers of an object; None if there is none."""
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        return STORE.until_answered(ask)
    except (BotoCoreError, ClientError) as error:
        if _is_nothing(address, path, error):
            return None
        raise _failed(f"cannot read s3://{path}", path, error) from error


def _is_nothing(address: Address, path: str, error: Exception) -> bool:
    """Whether the store says that there is no object, by its answer or, where the key may not be told, by a listing."""
    if has_code(error, *_NOTHING):
        return True
    if not has_code(error, "403"):
        return False
    from botocore.exceptions import ClientError

    try:
        found = s3_requests.look_up(address, path)
    except ClientError:
        return False
    return found is None or found.size is None


def _failed(what: str, path: str, error: Exception) -> StorageError:
    return StorageError(f"{what}: {error}. {refusal.remedy(f's3://{path}', error)}")
