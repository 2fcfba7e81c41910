"""How far long work has come: a log line that people can read, and an event that the command line shows as a bar."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from wukong.runtime import events
from wukong.runtime.events import Advanced

LINE_SECONDS = 60.0
"""Between two lines for people about the same work."""

_EVENT_SECONDS = 2.0  # a bar on a terminal moves as often

log = logging.getLogger("wukong.runtime.progress")


@contextmanager
def track(what: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
    """Report progress on ``total`` units of work; the block calls the function it gets with the units newly done.

    Events are at least two seconds apart and log lines a minute. When the block ends, the last of both are made.
    """
    started = time.monotonic()
    done, told, logged = 0, started, started

    def event(now: float) -> Advanced:
        return Advanced(what=what, done=done, total=total, unit=unit, rate=done / max(now - started, 1e-9))

    def advance(count: int) -> None:
        nonlocal done, told, logged
        done += count
        now = time.monotonic()
        if done < total and now - told >= _EVENT_SECONDS:
            told = now
            events.write(event(now))
        if done < total and now - logged >= LINE_SECONDS:
            logged = now
            log.info("%s", event(now).sentence())

    yield advance
    last = event(time.monotonic())
    log.info("%s", last.sentence())
    events.write(last)
