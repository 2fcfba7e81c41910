"""Whether MLflow is configured and answers, and what is done while it does not.

``MLFLOW_TRACKING_URI`` names the server. Without it nothing is tracked, and the log says so. A server that is away (it
cannot be reached, does not answer in time, or has an internal error) ends no stage. Each call is bounded in time; the
log says what is left out. Only ``MLFLOW.until_answered`` waits, as for an object store (``wukong.store.patience``). An
error of another kind, for instance a refused password, is raised.
"""

import logging
import os
import ssl
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import TypeVar
from urllib.parse import urlencode

from wukong.errors import ConfigError
from wukong.store import patience
from wukong.tracking import mlflow_rest
from wukong.tracking.mlflow_rest import MlflowError

log = logging.getLogger(__name__)

_PROBE_SECONDS = 5.0
_PAUSE = 2.0  # seconds between two probes
AT_START = 10.0  # seconds that a stage waits for MLflow before it runs untracked
AT_START_ON_CLUSTER = 180.0  # the same where another server may be about to start, and migrates its database first
AT_END = 60.0  # seconds that a finished stage waits for MLflow before its results are left out

_Answer = TypeVar("_Answer")


def enabled() -> bool:
    """Tell whether a tracking server is configured."""
    return bool(os.environ.get("MLFLOW_TRACKING_URI"))


def refuse_untracked() -> None:
    """Raise ConfigError if no tracking server is configured, for what is asked to be logged."""
    if not enabled():
        raise ConfigError(
            "MLFLOW_TRACKING_URI is not set: give it the address of MLflow, or start one with `wukong up`"
        )


def is_away(error: BaseException) -> bool:
    """Return whether an error means that MLflow cannot be reached, is overloaded, or fails inside."""
    # What is not imported has raised nothing.
    exceptions, requests = sys.modules.get("mlflow.exceptions"), sys.modules.get("requests.exceptions")
    if isinstance(error, MlflowError):
        status = error.status
    elif exceptions is not None and isinstance(error, exceptions.MlflowException):
        status = error.get_http_status_code()  # of an error that never reached the server: 500
    elif requests is not None and isinstance(error, requests.RequestException):
        status = 500 if error.response is None else error.response.status_code
    else:
        return False
    return status >= 500 or status in (408, 429)


def answers(within: float) -> bool:
    """Return whether MLflow answers within some seconds."""
    until = time.monotonic() + within
    while True:
        try:
            with urllib.request.urlopen(f"{mlflow_rest.address()}/health", timeout=_PROBE_SECONDS):  # noqa: S310 - http, as checked
                return True
        except urllib.error.HTTPError as error:
            if error.code < 500:
                return True  # whatever is wrong, the request proper says it better
        except ssl.SSLError:
            return True  # MLflow has settings of its own for certificates
        except OSError as error:
            if isinstance(error, urllib.error.URLError) and isinstance(error.reason, ssl.SSLError):
                return True
        left = until - time.monotonic()
        if left <= 0:
            return False
        time.sleep(min(_PAUSE, left))


def unless_away(request: Callable[[], _Answer], left_out: str, within: float = 0.0) -> _Answer | None:
    """Return the answer to a request; if MLflow is away, log what is left out and return None.

    Args:
        request: is made if MLflow answers.
        left_out: a clause for the log.
        within: seconds to wait for MLflow. Whether it answers is asked once at least, so that a request does not hang.
    """
    if not answers(within):
        log.warning("MLflow at %s does not answer: %s", mlflow_rest.address(), left_out)
        return None
    try:
        return request()
    except Exception as error:
        if not is_away(error):
            raise
        log.warning("MLflow at %s is away: %s (%s)", mlflow_rest.address(), left_out, error)
        return None


def _probe() -> None:
    if not answers(0):
        raise MlflowError(f"{mlflow_rest.address()} does not answer", 503)


MLFLOW = patience.Service(
    "MLflow",
    is_away,
    ". Is it running? On one machine, `wukong status` shows it and `wukong up` starts it.",
    probe=_probe,
)
"""Is waited for as an object store is, by requests that can be repeated."""


def public_address() -> str:
    """Where a person's browser finds the server; the address that programs use may have a meaning in a cluster only."""
    return os.environ.get("MLFLOW_PUBLIC_URL", "").rstrip("/") or mlflow_rest.address()


def page(path: str, **asked: str) -> str:
    """Address of a page of the server for people, in the workspace of this process."""
    if workspace := os.environ.get(mlflow_rest.WORKSPACE):
        asked["workspace"] = workspace
    return f"{public_address()}/#/{path}" + (f"?{urlencode(asked)}" if asked else "")
