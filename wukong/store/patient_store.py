"""An object store that is waited for while it is away (``wukong.store.patience``).

A store is away if it cannot be reached, breaks connections, does not answer in time, or answers that it is overloaded
or has an internal error. All other errors (no permission, no such bucket, nothing at the address) end a request at
once.

A store is full if it says so, or if it has an internal error at each write while it answers reads: SeaweedFS gives no
other sign. It is waited for too, because it may be about to reclaim what was deleted.
"""

import re
from collections.abc import Callable
from typing import Any, TypeVar

from wukong.runtime.language import message
from wukong.store import patience

COPY_BYTES = 1 << 20

# pyarrow has no class for these errors; its text contains the AWS SDK's name of the error, or the HTTP status.
_AWAY = re.compile(
    r"AWS Error (NETWORK_CONNECTION|SLOW_DOWN|INTERNAL_FAILURE|SERVICE_UNAVAILABLE|THROTTLING|REQUEST_TIMEOUT)\b"
    r"|AWS Error [^:]*\(HTTP status (408|429|50[02-9]|5[1-9]\d)\)"
)
_REFUSED = re.compile(r"AWS Error INTERNAL_FAILURE\b|\(HTTP status 500\)")
# Of curl's codes: unknown protocol, malformed URL, wrong or unreadable TLS certificates. To wait does not mend them.
_NEVER_AWAY = re.compile(r"curlCode: (1|3|51|53|54|58|59|60|66|77|80|82|83|90|91),")

_Answer = TypeVar("_Answer")

OUTAGE = patience.Outage(
    message("the object store"),
    room=". "
    + message(
        "Delete outputs that are not needed, or give it more room. What was deleted takes room until the store "
        "reclaims it, which it does by itself"
    ),
)
NO_ROOM = re.compile(
    r"\b507\b|StorageFull|InsufficientStorage|QuotaExceeded|no (writable|free) volumes|no space left", re.I
)
"""What stores say when they are full: most by HTTP's status or a name, SeaweedFS's filer in words."""


def is_away(error: BaseException) -> bool:
    """Return whether an error means that the store cannot be reached or asks for a pause."""
    if isinstance(error, patience.AwayError | FileNotFoundError) or not isinstance(error, OSError):
        return False
    text = str(error)
    return bool(_AWAY.search(text)) and not _NEVER_AWAY.search(text)


def until_answered(
    request: Callable[[], _Answer], *, deletes: bool = False, reads: Callable[[], Any] | None = None
) -> _Answer:
    """Make a request; if the store is away or full, repeat it until the store answers.

    Args:
        request: the whole of what is repeated.
        deletes: whether it deletes one thing. A repetition that finds nothing then has succeeded: the store deleted
            the thing, and only its answer was lost.
        reads: a request that only reads, beside one that writes: it tells a full store from one that is away.

    Raises:
        FullError: the store was full for longer than the patience.
        AwayError: the store was away for longer than the patience.
    """
    failed = False

    def ask() -> _Answer:
        nonlocal failed
        try:
            return request()
        except FileNotFoundError:
            if deletes and failed:
                return None  # type: ignore[return-value]  # a request that deletes answers nothing
            raise
        except OSError:
            failed = True
            raise

    def is_full(error: BaseException, lasts: bool) -> bool:
        if reads is None or NO_ROOM.search(str(error)):
            return reads is not None
        if not (lasts and _REFUSED.search(str(error))):
            return False
        try:
            reads()
        except OSError:
            return False
        return True

    return patience.until_answered(ask, is_away, OUTAGE, is_full)
