"""Requests to an S3 store that pyarrow's client does not make, by boto3's. They wait for a store that is away."""

from datetime import datetime
from functools import lru_cache, partial
from typing import Any, NamedTuple

from wukong.store.address import Address
from wukong.store.patient_store import STORE, has_code

_MISPLACED = ("IllegalLocationConstraintException", "InvalidLocationConstraint", "AuthorizationHeaderMalformed")
_HOME = "us-east-1"
"""AWS's first region, whose name no request for a bucket may give."""


class Found(NamedTuple):
    """What a listing says of an address: bytes and time of an object; None of a folder."""

    size: int | None
    written: datetime | None


@lru_cache(maxsize=8)
def client(address: Address) -> Any:
    """Return boto3's client of a store, which does not wait."""
    import boto3
    from botocore.config import Config

    settings = Config(
        connect_timeout=5,
        read_timeout=30,
        retries={"total_max_attempts": 1},  # ``patience`` repeats what fails
        s3={"addressing_style": "virtual" if address.virtual else "path" if address.endpoint else "auto"},
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    # A session of its own: the default one keeps the credentials of the first client of this process.
    return boto3.Session().client(
        "s3",
        endpoint_url=address.endpoint,
        region_name=address.region,
        verify=address.certificates or True,
        config=settings,
    )


def make_bucket(address: Address, name: str) -> bool:
    """Make a bucket, unless there is one of that name that the key may list; return whether one was made.

    AWS asks for the region, unless it is the first one. Other stores have regions of other names, or none, and refuse
    one that they do not know: they are asked without it.

    Raises:
        ClientError: the store refuses, above all because the bucket is another's.
    """
    from botocore.exceptions import ClientError

    store = client(address)
    try:
        STORE.until_answered(lambda: store.head_bucket(Bucket=name))
    except ClientError:
        pass  # whether it is another's, the store says when it is to be made
    else:
        return False
    place = {"CreateBucketConfiguration": {"LocationConstraint": address.region}}
    asked: list[dict[str, Any]] = [{}] if address.region == _HOME else [{}, place] if address.endpoint else [place]
    for options in asked:
        try:
            STORE.until_answered(partial(store.create_bucket, Bucket=name, **options))
        except ClientError as error:
            if has_code(error, "BucketAlreadyOwnedByYou"):
                return False
            if options is asked[-1] or not has_code(error, *_MISPLACED):
                raise
        else:
            break
    return True


def look_up(address: Address, path: str) -> Found | None:
    """Return what a listing says of one address; None if there is nothing.

    A key that may list a part of a bucket only may not ask for an object by its name where there is none: the store
    refuses, lest it tell what there is.

    Args:
        address: the store.
        path: bucket and key.

    Raises:
        ClientError: the store refuses to list.
    """
    bucket, _, key = path.partition("/")

    def first(prefix: str) -> list[dict[str, Any]]:
        answer = STORE.until_answered(lambda: client(address).list_objects_v2(Bucket=bucket, Prefix=prefix, MaxKeys=1))
        return list(answer.get("Contents", []))

    for entry in first(key):
        if entry["Key"] == key:
            return Found(entry["Size"], entry["LastModified"])
    return Found(None, None) if first(f"{key}/") else None


def delete_below(address: Address, path: str) -> None:
    """Delete all objects below a folder, as ``look_up`` finds them, one by one.

    Ceph's gateway 16.2 lets only a key that may delete in the whole bucket delete several at once.

    Args:
        address: the store.
        path: bucket and key of the folder.

    Raises:
        ClientError: the store refuses.
    """
    bucket, _, key = path.partition("/")
    store = client(address)
    while True:
        listed = STORE.until_answered(partial(store.list_objects_v2, Bucket=bucket, Prefix=f"{key}/"))
        if not (entries := listed.get("Contents", [])):
            return
        for entry in entries:
            STORE.until_answered(partial(store.delete_object, Bucket=bucket, Key=entry["Key"]))


def keeps_versions(address: Address, bucket: str) -> bool:
    """Return whether a bucket keeps what is overwritten or deleted; False if the store does not say.

    Raises:
        AwayError: the store was away for longer than the patience.
    """
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        answer = STORE.until_answered(lambda: client(address).get_bucket_versioning(Bucket=bucket))
    except (BotoCoreError, ClientError):
        return False
    return str(answer.get("Status", "")) == "Enabled"


def expires_versions(address: Address, bucket: str) -> bool:
    """Return whether a rule of a bucket deletes what it has kept of other versions; False if the store does not say.

    Raises:
        AwayError: the store was away for longer than the patience.
    """
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        answer = STORE.until_answered(lambda: client(address).get_bucket_lifecycle_configuration(Bucket=bucket))
    except (BotoCoreError, ClientError):
        return False
    return any(
        rule.get("Status") == "Enabled" and "NoncurrentVersionExpiration" in rule for rule in answer.get("Rules", [])
    )
