"""Wait for a service that is away, or full: what fails because of that is tried again until it succeeds or time is up.

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
_LASTING = 10.0
"""Seconds after which a failure is no passing one, such as of a service that starts."""
_FORGOTTEN = 120.0
"""Seconds without a failed request after which the next one begins an outage. A request may take a minute to fail."""

_Answer = TypeVar("_Answer")

log = logging.getLogger(__name__)
_default = STAGES


class AwayError(StorageError, OSError):
    """A service was away for longer than the patience."""


class FullError(AwayError):
    """A service answered and took no data for longer than the patience."""


def seconds() -> float:
    """Return for how many seconds a request is repeated after it first failed.

    Raises:
        ConfigError: ``WUKONG_STORE_PATIENCE`` is not a number of seconds.
    """
    text = os.environ.get(VARIABLE, "").strip()
    if not text:
        return _default
    try:
        chosen = float(text)
    except ValueError:
        chosen = -1.0
    if not 0 <= chosen < float("inf"):
        raise ConfigError(f"{VARIABLE} is {text!r}; it must be a number of seconds, 0 or more (stages: {STAGES:.0f})")
    return chosen


def set_default(chosen: float) -> None:
    """Choose the patience of this process, and not of those it starts; ``WUKONG_STORE_PATIENCE`` takes precedence."""
    global _default  # noqa: PLW0603 - of the process, like the environment
    _default = chosen


class Outage:
    """What this process's log says about an outage: one line at its start, one every 30 s, one at its end.

    Attributes:
        name: name of the service.
        hint: what to do if it stays away, for the error's message.
        room: what to do if it is full.
    """

    def __init__(self, name: str, hint: str = "", room: str = "") -> None:
        self.name = name
        self.hint = hint
        self.room = room
        self._lock = threading.Lock()
        self._began: float | None = None
        self._failed = 0.0
        self._said = 0.0
        self._full = False

    def goes_on(self, error: BaseException, allowed: float, full: bool = False) -> None:
        """A request has failed, which is repeated for so many seconds; ``full`` if the service has no room for it."""
        with self._lock:
            now = time.monotonic()
            begins = self._began is None or now - self._failed > _FORGOTTEN
            if self._began is None or begins:
                self._began, self._full = now, False
            self._failed = now
            if not begins and self._full >= full and now - self._said < _LOG_EVERY:
                return
            self._full, self._said, lasted = self._full or full, now, now - self._began
            if self._full:
                text = "%s is full, it seems: it answers, and has taken no data for %.0f s (%s); what is written is "
                text += "repeated for up to %.0f s%s"
                log.warning(text, self.name, lasted, error, allowed, self.room)
            elif begins:
                text = "%s is away (%s); what needs it is repeated for up to %.0f s"
                log.warning(text, self.name, error, allowed)
            else:
                log.warning("%s has been away for %.0f s: %s", self.name, lasted, error)

    def ends(self) -> None:
        """The service has answered."""
        with self._lock:
            if self._began is not None:
                done = "takes data again" if self._full else "is back"
                log.warning("%s %s after %.1f s", self.name, done, time.monotonic() - self._began)
            self._began = None


def until_answered(
    request: Callable[[], _Answer],
    is_away: Callable[[BaseException], bool],
    outage: Outage,
    is_full: Callable[[BaseException, bool], bool] = lambda _error, _lasts: False,
) -> _Answer:
    """Make a request; if the service is away, repeat it, in pauses of at most 5 s, until the service answers.

    Args:
        request: the whole of what is repeated.
        is_away: whether an error means that the service is away, or full. Any other error is the answer, and is raised.
        outage: outage of the service.
        is_full: whether such an error of a write means that the service is full; gets the error, and whether the
            request has failed for long.

    Raises:
        FullError: the service was full for longer than the patience.
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
            full = is_full(error, left <= 0 or now - began >= _LASTING)
            if left <= 0:
                waited = now - began
                if full:
                    raise FullError(
                        f"{outage.name} is full, it seems: it answers, and has taken no data for {waited:.0f} s "
                        f"({VARIABLE}={allowed:g}): {error}{outage.room}"
                    ) from error
                raise AwayError(
                    f"{outage.name} is away: {error}; so it was for {waited:.0f} s ({VARIABLE}={allowed:g})"
                    f"{outage.hint}"
                ) from error
            outage.goes_on(error, allowed, full)
            time.sleep(min(left, pause * random.uniform(0.5, 1.0)))
            pause = min(2 * pause, _LONGEST_PAUSE)
        else:
            if began is not None:
                outage.ends()
            return answer
