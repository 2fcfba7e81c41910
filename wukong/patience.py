"""Wait for a service that is away: what fails because of that is tried again until it answers or time is up.

``WUKONG_STORE_PATIENCE`` says for how many seconds a request is repeated after it first failed. Without it, stages and
all other programs wait ten minutes. The command line waits a few seconds, because a person waits for its answer.
"""

import logging
import os
import random
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from wukong.errors import ConfigError, StorageError

VARIABLE = "WUKONG_STORE_PATIENCE"
STAGES = 600.0
"""Seconds that a stage waits."""
PEOPLE = 5.0
"""Seconds that a command waits whose answer a person waits for."""

_FIRST_PAUSE = 0.25  # seconds
_LONGEST_PAUSE = 5.0
_LOG_EVERY = 30.0

_Answer = TypeVar("_Answer")

log = logging.getLogger(__name__)
_default = STAGES


class AwayError(StorageError, OSError):
    """A service was away for longer than the patience."""


def seconds() -> float:
    """Return for how many seconds a request is repeated after it first failed.

    Raises:
        ConfigError: ``WUKONG_STORE_PATIENCE`` is not a number of seconds.
    """
    text = os.environ.get(VARIABLE, "").strip()
    if not text:
        return _default
    try:
        found = float(text)
    except ValueError:
        found = -1.0
    if not 0 <= found < float("inf"):
        raise ConfigError(f"{VARIABLE} is {text!r}; it must be a number of seconds, 0 or more (stages: {STAGES:.0f})")
    return found


def set_default(chosen: float) -> None:
    """Choose the patience of this process, and not of those it starts; ``WUKONG_STORE_PATIENCE`` takes precedence."""
    global _default  # noqa: PLW0603 - of the process, like the environment
    _default = chosen


class Outage:
    """What this process's log says about an outage: one line at its start, one every 30 s, one at its end.

    Attributes:
        name: of the service.
        hint: what to do if it stays away, for the error's message.
    """

    def __init__(self, name: str, hint: str = "") -> None:
        self.name = name
        self.hint = hint
        self._lock = threading.Lock()
        self._began: float | None = None
        self._said = 0.0

    def goes_on(self, error: BaseException, allowed: float) -> None:
        """A request has failed, which is repeated for so many seconds."""
        with self._lock:
            now = time.monotonic()
            if self._began is None:
                self._began = now
                text = "%s is away (%s); what needs it is repeated for up to %.0f s"
                log.warning(text, self.name, error, allowed)
            elif now - self._said >= _LOG_EVERY:
                log.warning("%s has been away for %.0f s: %s", self.name, now - self._began, error)
            else:
                return
            self._said = now

    def ends(self) -> None:
        """The service has answered."""
        with self._lock:
            if self._began is not None:
                log.warning("%s is back after %.1f s", self.name, time.monotonic() - self._began)
            self._began = None


def until_answered(request: Callable[[], _Answer], is_away: Callable[[BaseException], bool], outage: Outage) -> _Answer:
    """Make a request; if the service is away, repeat it, in pauses of at most 5 s, until the service answers.

    Args:
        request: the whole of what is repeated.
        is_away: whether an error means that the service is away. Any other error is the answer, and is raised.
        outage: of the service.

    Raises:
        AwayError: the service was away for longer than the patience.
    """
    began, pause = None, _FIRST_PAUSE
    while True:
        try:
            answer = request()
        except Exception as error:
            if not is_away(error):
                if began is not None:
                    outage.ends()
                raise
            now, allowed = time.monotonic(), seconds()
            began = now if began is None else began
            left = began + allowed - now
            if left <= 0:
                waited = f"so it was for {now - began:.0f} s ({VARIABLE}={allowed:g})"
                raise AwayError(f"{outage.name} is away: {error}; {waited}{outage.hint}") from error
            outage.goes_on(error, allowed)
            time.sleep(min(left, pause * random.uniform(0.5, 1.0)))
            pause = min(2 * pause, _LONGEST_PAUSE)
        else:
            if began is not None:
                outage.ends()
            return answer
