"""Where the object store is and how it is spoken to, as the environment says: the same for both clients of S3.

``AWS_ENDPOINT_URL_S3`` or ``AWS_ENDPOINT_URL``, ``AWS_REGION`` and ``AWS_CA_BUNDLE`` are variables of all AWS clients;
pyarrow's knows the last one not, so it is told. ``WUKONG_S3_ADDRESSING`` says where a bucket's name stands in an
address.
"""

import os
from pathlib import Path
from typing import NamedTuple

from wukong.errors import ConfigError, StorageError

ADDRESSING = "WUKONG_S3_ADDRESSING"
"""Of an endpoint. ``path``: ``https://ENDPOINT/BUCKET/KEY``, the default. ``virtual``: ``https://BUCKET.ENDPOINT/KEY``."""
CERTIFICATES = "AWS_CA_BUNDLE"
"""A file with the certificates of those who may vouch for the store, in place of the public ones."""

_STYLES = ("path", "virtual")


class Address(NamedTuple):
    """An object store, as two equal of them can share a client.

    Attributes:
        endpoint: its URL; None for AWS.
        region: AWS's name of the region.
        virtual: whether a bucket is a part of the endpoint's name.
        certificates: file of the certificates that it is checked by; None for the public ones.
        access_key: who speaks, as far as variables say; its secret comes from there too.
    """

    endpoint: str | None
    region: str
    virtual: bool
    certificates: str | None
    access_key: str | None


def of_environment() -> Address:
    """Return the store that the environment's variables name.

    Raises:
        ConfigError: ``WUKONG_S3_ADDRESSING`` is none of its values.
        StorageError: the file that ``AWS_CA_BUNDLE`` names is not there.
    """
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or None
    style = os.environ.get(ADDRESSING) or "path"
    if style not in _STYLES:
        raise ConfigError(f"{ADDRESSING} is {style!r}; it must be one of {', '.join(_STYLES)}")
    certificates = os.environ.get(CERTIFICATES) or None  # botocore takes an empty text for "check nothing"
    if certificates and not Path(certificates).is_file():
        raise StorageError(
            f"{CERTIFICATES} names {certificates}, and there is no such file. On a cluster it comes from the ConfigMap "
            "wukong-store-ca (docs/cluster.md, Bring your own S3)"
        )
    return Address(
        endpoint,
        os.environ.get("AWS_REGION") or "us-east-1",
        endpoint is not None and style == "virtual",
        certificates,
        os.environ.get("AWS_ACCESS_KEY_ID"),
    )
