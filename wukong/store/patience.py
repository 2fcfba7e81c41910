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
from dataclasses import dataclass, field
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


@dataclass(eq=False)
class Service:
    """A service that is waited for. The log has one line at the start of an outage, one every 30 s, one at its end.

    Attributes:
        name: name of the service.
        is_away: whether an error means that the service is away, or full. Any other error is an answer.
        hint: what to do if it stays away, for the error's message.
        room: what to do if it is full.
        may_be_full: whether such an error of a write means that a service that answers reads is full; gets the error,
            and whether the request has failed for long.
        probe: is called before each request. It fails after seconds, a request to a service that hangs after minutes.
    """

    name: str
    is_away: Callable[[BaseException], bool]
    hint: str = ""
    room: str = ""
    may_be_full: Callable[[BaseException, bool], bool] = lambda _error, _lasts: False
    probe: Callable[[], object] = lambda: None
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)
    _began: float | None = field(default=None, init=False)
    _failed: float = field(default=0.0, init=False)
    _said: float = field(default=0.0, init=False)
    _full: bool = field(default=False, init=False)

    def until_answered(
        self, request: Callable[[], _Answer], *, reads: Callable[[], object] | None = None, deletes: bool = False
    ) -> _Answer:
        """Make a request; if the service is away, repeat it, in pauses of at most 5 s, until the service answers.

        Args:
            request: the whole of what is repeated.
            reads: a request that only reads, beside one that writes: it tells a full service from one that is away.
            deletes: whether it deletes one thing. A repetition that finds nothing then has succeeded: the service
                deleted the thing, and only its answer was lost.

        Raises:
            FullError: the service was full for longer than the patience.
            AwayError: the service was away for longer than the patience.
        """
        began, pause = None, _FIRST_PAUSE
        while True:
            try:
                self.probe()
                answer = request()
            except Exception as error:
                if not self.is_away(error):
                    if began is not None:
                        self._ends()
                        if deletes and isinstance(error, FileNotFoundError):
                            return None  # type: ignore[return-value]  # a request that deletes answers nothing
                    raise
                now, allowed = time.monotonic(), seconds()
                began = now if began is None else began
                waited, left = now - began, began + allowed - now
                lasts = left <= 0 or waited >= _LASTING
                full = reads is not None and self.may_be_full(error, lasts) and self._answers(reads)
                if left <= 0 and full:
                    raise FullError(
                        f"{self.name} is full, it seems: it answers, and has taken no data for {waited:.0f} s "
                        f"({VARIABLE}={allowed:g}): {error}{self.room}"
                    ) from error
                if left <= 0:
                    raise AwayError(
                        f"{self.name} is away: {error}; so it was for {waited:.0f} s ({VARIABLE}={allowed:g})"
                        f"{self.hint}"
                    ) from error
                self._goes_on(error, allowed, full)
                time.sleep(min(left, pause * random.uniform(0.5, 1.0)))
                pause = min(2 * pause, _LONGEST_PAUSE)
            else:
                if began is not None:
                    self._ends()
                return answer

    def _answers(self, request: Callable[[], object]) -> bool:
        try:
            request()
        except Exception as error:  # noqa: BLE001 - a refusal is an answer too
            return not self.is_away(error)
        return True

    def _goes_on(self, error: BaseException, allowed: float, full: bool) -> None:
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

    def _ends(self) -> None:
        """The service has answered."""
        with self._lock:
            if self._began is not None:
                done = "takes data again" if self._full else "is back"
                log.warning("%s %s after %.1f s", self.name, done, time.monotonic() - self._began)
            self._began = None
