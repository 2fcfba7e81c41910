"""Send a signed POST of JSON to the operator's address when an alias has moved; a failure never stops the move.

Who is told is the operator's to say, by variables of the environment. An experiment is logged in MLflow and shown by
KFP, so it must not hold an address with a token; and whoever may write a model's tags must not choose who is told.
"""

import hashlib
import hmac
import json
import logging
import os
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

URL = "WUKONG_WEBHOOK_URL"
"""The variable with the address, which may hold a token; nobody is told if it is empty."""

SECRET = "WUKONG_WEBHOOK_SECRET"  # noqa: S105 - a variable's name
"""The variable with the secret of the signature; without it the request is not signed."""

_ATTEMPTS = 3
_PAUSE = 1.0  # seconds before the second attempt; each further pause is twice as long
_TIMEOUT = 10.0

log = logging.getLogger(__name__)


def sign(secret: str, timestamp: str, body: bytes) -> str:
    """HMAC-SHA256, in hex, of ``TIMESTAMP.BODY``: the receiver computes it too and refuses old timestamps."""
    return hmac.new(secret.encode(), timestamp.encode() + b"." + body, hashlib.sha256).hexdigest()


def send(event: str, content: Mapping[str, Any]) -> bool:
    """Send an event where ``WUKONG_WEBHOOK_URL`` says. A failure is logged and returned, never raised.

    The request has the headers ``X-Wukong-Event``, ``X-Wukong-Delivery`` (the same for each repetition),
    ``X-Wukong-Timestamp`` (seconds since 1970) and, if ``WUKONG_WEBHOOK_SECRET`` is set, ``X-Wukong-Signature``
    (``sha256=`` and ``sign``). It is repeated when nobody answers, and after 408, 429 and 5xx. Redirects are not
    followed. The log names the host, never the address.

    Args:
        event: its name.
        content: what it says.

    Returns:
        Whether the receiver took it; False also if nobody is to be told.
    """
    url, secret = os.environ.get(URL, ""), os.environ.get(SECRET, "")
    if not url:
        return False
    if not _is_address(url):
        log.warning(
            "nobody is told of %s: %s does not hold an address that begins with http:// or https://", event, URL
        )
        return False
    host = urlsplit(url).hostname
    body = json.dumps({"event": event, **content}, ensure_ascii=False, sort_keys=True).encode()
    timestamp = str(int(time.time()))
    headers = {
        "Content-Type": "application/json",
        "X-Wukong-Event": event,
        "X-Wukong-Delivery": hashlib.sha256(body).hexdigest()[:32],
        "X-Wukong-Timestamp": timestamp,
    }
    if secret:
        headers["X-Wukong-Signature"] = f"sha256={sign(secret, timestamp, body)}"
    problem = ""
    for attempt in range(_ATTEMPTS):
        if attempt:
            time.sleep(_PAUSE * 2 ** (attempt - 1))
        problem, again = _post(url, body, headers)
        if not problem:
            return True
        if not again:
            break
    log.warning("the webhook at %s did not take %s: %s", host, event, problem)
    return False


def _is_address(url: str) -> bool:
    try:
        return url.startswith(("http://", "https://")) and bool(urlsplit(url).hostname)
    except ValueError:
        return False


def _post(url: str, body: bytes, headers: Mapping[str, str]) -> tuple[str, bool]:
    """Return what went wrong, empty if nothing did, and whether another attempt may help."""
    import requests

    try:
        response = requests.post(url, data=body, headers=dict(headers), timeout=_TIMEOUT, allow_redirects=False)
    except requests.RequestException as error:
        return type(error).__name__, True  # its text has the whole address, which may hold a token
    if response.status_code < 300:
        return "", False
    return f"HTTP {response.status_code}", response.status_code >= 500 or response.status_code in (408, 429)
