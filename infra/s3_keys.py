"""What an S3 key may do, in the words of object stores: SeaweedFS' actions, and IAM's policies of most others."""

from collections.abc import Mapping
from typing import Any

from wukong.stages import access
from wukong.stages.access import Access

_OTHER_ACTIONS = {  # of the keys that are not for the bucket of runs
    "mlflow-s3": ["Read:mlflow", "List:mlflow", "Write:mlflow", "Tagging:mlflow"],
    "setup-s3": ["Admin", "Read", "Write", "List", "Tagging"],
}
NAMES = (*access.S3_KEYS, *_OTHER_ACTIONS)
"""Names of the Secrets with an S3 key."""


def actions_of(name: str) -> list[str]:
    """The actions of a key as one of SeaweedFS' identities.

    An action without a pattern is for a whole bucket, and alone lets a key ask whether the bucket is there.

    Args:
        name: one of ``NAMES``.
    """
    return _OTHER_ACTIONS[name] if name in _OTHER_ACTIONS else actions_for(access.S3_KEYS[name])


def actions_for(key: Access) -> list[str]:
    """The actions of a key for the bucket of runs, as one of SeaweedFS' identities."""

    def place(pattern: str) -> str:
        return access.BUCKET if pattern == access.EVERYTHING else f"{access.BUCKET}/{pattern}"

    read = [f"{action}:{place(pattern)}" for pattern in key.reads for action in ("Read", "List")]
    return read + [f"Write:{place(pattern)}" for pattern in key.writes]


def identities(keys: Mapping[str, Mapping[str, str]], actions: Mapping[str, list[str]]) -> list[dict[str, Any]]:
    """SeaweedFS' identities of S3 keys. Keys that are the same are one identity, which may do all that these may.

    Args:
        keys: the keys, as the values of their Secrets, by the identities' names.
        actions: what each may do.
    """
    made: dict[str, dict[str, Any]] = {}
    for name, key in keys.items():
        credentials = [{"accessKey": key["AWS_ACCESS_KEY_ID"], "secretKey": key["AWS_SECRET_ACCESS_KEY"]}]
        one = {"name": name, "credentials": credentials, "actions": []}
        held = made.setdefault(key["AWS_ACCESS_KEY_ID"], one)["actions"]
        held += [action for action in actions[name] if action not in held]
    return list(made.values())


def policy_of(key: Access) -> dict[str, Any]:
    """A key's policy as IAM has it."""
    bucket = f"arn:aws:s3:::{access.BUCKET}"

    def allow(actions: list[str], resources: list[str], **more: Any) -> dict[str, Any]:
        return {"Effect": "Allow", "Action": actions, "Resource": resources, **more}

    statements = [
        allow(["s3:GetObject"], [f"{bucket}/{pattern}" for pattern in key.reads]),
        allow(["s3:ListBucket"], [bucket], Condition={"StringLike": {"s3:prefix": list(key.reads)}}),
    ]
    if key.writes:
        writes = ["s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload"]
        statements.append(allow(writes, [f"{bucket}/{pattern}" for pattern in key.writes]))
    return {"Version": "2012-10-17", "Statement": statements}
