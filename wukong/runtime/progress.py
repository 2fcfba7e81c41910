"""How far long work has come: a log line that people can read, and an event that the command line shows as a bar."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from wukong.runtime import events
from wukong.runtime.events import Advanced

_EVERY_SECONDS = 2.0

log = logging.getLogger("wukong.runtime.progress")


@contextmanager
def track(what: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
    """Report progress on ``total`` units of work; the block calls the function it gets with the units newly done.

    Reports are at least two seconds apart; the last one is made when the block ends.
    """
    started = time.monotonic()
    done, reported = 0, started

    def report(now: float) -> None:
        rate = done / max(now - started, 1e-9)
        event = Advanced(what=what, done=done, total=total, unit=unit, rate=rate)
        log.info("%s", event.sentence())
        events.write(event)

    def advance(count: int) -> None:
        nonlocal done, reported
        done += count
        now = time.monotonic()
        if now - reported >= _EVERY_SECONDS:
            reported = now
            report(now)

    yield advance
    report(time.monotonic())
