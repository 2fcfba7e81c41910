"""Writes to an S3 store that happen only if an object is as it was seen: ``If-None-Match`` and ``If-Match``.

pyarrow's S3 has no conditional write, so these requests go through boto3. They wait for a store that is away, as all
others do (``wukong.store.patient_store``).
"""

import os
from collections.abc import Callable
from functools import lru_cache
from typing import IO, Any, TypeVar

from wukong.errors import StorageError
from wukong.runtime.language import message
from wukong.store import patience, patient_store

_CHANGED = ("412", "409", "PreconditionFailed", "ConditionalRequestConflict")
_UNKNOWN = ("501", "NotImplemented", "400", "InvalidArgument", "InvalidRequest")
_AWAY = ("429", "500", "502", "503", "504", "507", "SlowDown", "InternalError", "ServiceUnavailable", "RequestTimeout")

_Answer = TypeVar("_Answer")


class ChangedError(StorageError):
    """An object is not as it was seen: somebody else has written it."""


class UnconditionalError(StorageError):
    """The store has no conditional writes."""


def version(endpoint: str | None, region: str, path: str) -> str | None:
    """Return what identifies the present content of an object, its entity tag; None if there is no object.

    Args:
        endpoint: URL of the store; None for AWS.
        region: AWS's name of the region.
        path: bucket and key.

    Raises:
        StorageError: the store cannot be read.
    """
    bucket, key = path.split("/", 1)
    try:
        head = _answer(path, lambda: _client(endpoint, region, _who()).head_object(Bucket=bucket, Key=key))
    except FileNotFoundError:
        return None
    return str(head["ETag"])


def read(endpoint: str | None, region: str, path: str) -> tuple[bytes, str] | None:
    """Return the whole content of an object and its ``version``; None if there is no object.

    The arguments and errors are those of ``version``.
    """
    bucket, key = path.split("/", 1)

    def ask() -> tuple[bytes, str]:
        answer = _client(endpoint, region, _who()).get_object(Bucket=bucket, Key=key)
        return answer["Body"].read(), str(answer["ETag"])

    try:
        return _answer(path, ask)
    except FileNotFoundError:
        return None


def write(endpoint: str | None, region: str, path: str, data: bytes | IO[bytes], expected: str | None) -> None:
    """Write an object if it has the version that was seen.

    Args:
        endpoint: URL of the store; None for AWS.
        region: AWS's name of the region.
        path: bucket and key.
        data: the whole object, of 5 GiB at most, or a stream of it that can be read again from its start.
        expected: from ``version``; None to make a new object.

    Raises:
        ChangedError: it has another version, which may be of an earlier try of this write whose answer was lost.
        UnconditionalError: the store says that it has no such writes. One that ignores conditions says nothing.
        StorageError: the store cannot be written.
    """
    bucket, key = path.split("/", 1)
    condition = {"IfNoneMatch": "*"} if expected is None else {"IfMatch": expected}
    client = _client(endpoint, region, _who())

    def put() -> None:
        if not isinstance(data, bytes):
            data.seek(0)
        client.put_object(Bucket=bucket, Key=key, Body=data, **condition)

    def look() -> None:
        """Read what a key for a folder of the bucket may read too."""
        try:
            client.head_object(Bucket=bucket, Key=key)
        except client.exceptions.ClientError as error:
            if not _is(error, ("404",)):
                raise

    try:
        _answer(path, put, look)
    except FileNotFoundError as error:  # what was seen has been deleted
        raise ChangedError(f"s3://{path} was deleted by somebody else") from error


def _answer(path: str, request: Callable[[], _Answer], reads: Callable[[], Any] | None = None) -> _Answer:
    """Return the answer to a request; one that writes comes with one that ``reads``."""
    from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError

    def is_away(error: BaseException) -> bool:
        return isinstance(error, HTTPClientError) or (isinstance(error, ClientError) and _is(error, _AWAY))

    def is_full(error: BaseException, lasts: bool) -> bool:
        if reads is None or not isinstance(error, ClientError):
            return False
        if _is(error, ("507",)) or patient_store.NO_ROOM.search(str(error)):
            return True
        if not (lasts and _is(error, ("500", "InternalError"))):
            return False
        try:
            reads()
        except (BotoCoreError, ClientError):
            return False
        return True

    failed = message(f"cannot write s3://{path}") if reads is not None else message(f"cannot read s3://{path}")
    try:
        return patience.until_answered(request, is_away, patient_store.OUTAGE, is_full)
    except ClientError as error:
        if _is(error, ("404", "NoSuchKey", "NotFound")):
            raise FileNotFoundError(f"there is nothing at s3://{path}") from error
        if _is(error, _CHANGED):
            raise ChangedError(f"s3://{path} was written by somebody else") from error
        if _is(error, _UNKNOWN):
            raise UnconditionalError(f"s3://{path}: the store has no conditional writes ({error})") from error
        raise StorageError(f"{failed}: {error}") from error
    except BotoCoreError as error:
        raise StorageError(f"{failed}: {error}") from error


def _is(error: Any, codes: tuple[str, ...]) -> bool:
    status = str(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", ""))
    return str(error.response.get("Error", {}).get("Code", "")) in codes or status in codes


def _who() -> str | None:
    return os.environ.get("AWS_ACCESS_KEY_ID")


@lru_cache(maxsize=8)
def _client(endpoint: str | None, region: str, _access_key: str | None) -> Any:
    import boto3
    from botocore.config import Config

    settings = Config(
        connect_timeout=5,
        read_timeout=30,
        retries={"total_max_attempts": 1},  # ``patience`` repeats what fails
        s3={"addressing_style": "path" if endpoint else "auto"},
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    # A session of its own: the default one keeps the credentials of the first client of this process.
    return boto3.Session().client("s3", endpoint_url=endpoint, region_name=region, config=settings)
