"""An object store that is waited for while it is away (``wukong.store.patience``).

A store is away if it cannot be reached, breaks connections, does not answer in time, or answers that it is overloaded
or has an internal error. All other errors (no permission, no such bucket, nothing at the address) end a request at
once.

A store is full if it says so, or if it has an internal error at each write while it answers reads: SeaweedFS gives no
other sign. It is waited for too, because it may be about to reclaim what was deleted.
"""

import re
import sys

from wukong.store import patience

COPY_BYTES = 1 << 20

# pyarrow has no class for these errors; its text contains the AWS SDK's name of the error, or the HTTP status.
_AWAY = re.compile(
    r"AWS Error (NETWORK_CONNECTION|SLOW_DOWN|INTERNAL_FAILURE|SERVICE_UNAVAILABLE|THROTTLING|REQUEST_TIMEOUT)\b"
    r"|AWS Error [^:]*\(HTTP status (408|429|50[02-9]|5[1-9]\d)\)"
)
_REFUSED = re.compile(r"AWS Error INTERNAL_FAILURE\b|\(HTTP status 500\)")
_BUSY = ("429", "500", "502", "503", "504", "507", "SlowDown", "InternalError", "ServiceUnavailable", "RequestTimeout")
# What stores say when they are full: most by HTTP's status or a name, SeaweedFS's filer in words.
_NO_ROOM = re.compile(
    r"\(HTTP status 507\)|StorageFull|InsufficientStorage|QuotaExceeded|no (writable|free) volumes|no space left", re.I
)
# Of curl's codes: unknown protocol, malformed URL, wrong or unreadable TLS certificates. To wait does not mend them.
_NEVER_AWAY = re.compile(r"curlCode: (1|3|51|53|54|58|59|60|66|77|80|82|83|90|91),")


def has_code(error: BaseException, *codes: str) -> bool:
    """Return whether an error of boto3's is an answer of the store with one of these statuses or names."""
    answer = getattr(error, "response", None)
    if not isinstance(answer, dict):
        return False
    status = str(answer.get("ResponseMetadata", {}).get("HTTPStatusCode", ""))
    return str(answer.get("Error", {}).get("Code", "")) in codes or status in codes


def is_away(error: BaseException) -> bool:
    """Return whether an error means that the store cannot be reached or asks for a pause."""
    if isinstance(error, patience.AwayError | FileNotFoundError):
        return False
    if boto := sys.modules.get("botocore.exceptions"):  # what is not imported has raised nothing
        if isinstance(error, boto.SSLError):  # a certificate that is not trusted; to wait does not mend it
            return False
        if isinstance(error, boto.HTTPClientError | boto.ConnectionError) or has_code(error, *_BUSY):
            return True
    text = str(error) if isinstance(error, OSError) else ""
    return bool(_AWAY.search(text)) and not _NEVER_AWAY.search(text)


def _may_be_full(error: BaseException, lasts: bool) -> bool:
    if has_code(error, "507") or _NO_ROOM.search(str(error)):
        return True
    return lasts and (has_code(error, "500", "InternalError") or bool(_REFUSED.search(str(error))))


STORE = patience.Service(
    "the object store",
    is_away,
    room=". "
    + (
        "Delete outputs that are not needed, or give it more room. What was deleted takes room until the store "
        "reclaims it, which it does by itself"
    ),
    may_be_full=_may_be_full,
)
