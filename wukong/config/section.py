"""The types that every section of an experiment is made of, and checks that several sections share."""

import re
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[int, Field(gt=0)]

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_SHA256 = re.compile(r"[0-9a-f]{64}")


def _is_sha256(value: str) -> str:
    if not _SHA256.fullmatch(value):
        raise ValueError(
            f"{value!r} is no SHA-256; write the 64 hexadecimal digits, in lower case, that `sha256sum FILE` prints"
        )
    return value


Sha256 = Annotated[str, AfterValidator(_is_sha256)]


class Strict(BaseModel):
    """A section of the experiment: immutable, no unknown keys, no number that is infinite or none."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def uri_problem(value: str) -> str:
    """Return why ``wukong.store.storage`` cannot open a value as a URI; empty if it can."""
    if not _SCHEME.match(value):
        return f"{value!r} is no URI: write file:///ABSOLUTE/PATH or s3://BUCKET/KEY"
    scheme, _, rest = value.partition("://")
    if scheme not in ("file", "s3"):
        return f"{value!r} has the scheme {scheme!r}; allowed are file:///ABSOLUTE/PATH and s3://BUCKET/KEY"
    if scheme == "file" and not rest.startswith("/"):
        return (
            f"{value!r} names a host, {rest.split('/')[0]!r}; a path on this machine has three slashes: "
            "file:///ABSOLUTE/PATH"
        )
    if not rest.strip("/") or rest.startswith("//"):
        return f"{value!r} names nothing; write file:///ABSOLUTE/PATH or s3://BUCKET/KEY"
    if scheme == "s3" and rest.startswith("/"):
        return f"{value!r} names no bucket: write s3://BUCKET/KEY"
    return ""


def flatten(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested mappings to dotted keys: ``{"a": {"b": 1}}`` becomes ``{"a.b": 1}``."""
    flat: dict[str, Any] = {}
    for key, entry in value.items():
        if isinstance(entry, Mapping) and entry:
            flat |= flatten(entry, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = entry
    return flat
