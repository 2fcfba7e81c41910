"""How far long work has come, as log lines that read well in a pod's log and that the command line turns into a bar."""

import logging
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_EVERY_SECONDS = 2.0
_LINE = re.compile(r"(?P<what>.+): (?P<done>[\d,]+) of (?P<total>[\d,]+) (?P<unit>\S+) \((?P<rate>[\d,.]+)/s")

log = logging.getLogger("wukong.progress")


@contextmanager
def track(what: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
    """Report progress on ``total`` units of work; the block is given a function to call with each number newly done.

    Lines are at least two seconds apart, and the last one is written when the block ends.
    """
    started = time.monotonic()
    done, reported = 0, started

    def report(now: float) -> None:
        rate = done / max(now - started, 1e-9)
        left = f", {(total - done) / rate:,.0f} s left" if 0 < done < total else ""
        log.info("%s: %s of %s %s (%s/s%s)", what, f"{done:,}", f"{total:,}", unit, f"{rate:,.1f}", left)

    def advance(count: int) -> None:
        nonlocal done, reported
        done += count
        now = time.monotonic()
        if now - reported >= _EVERY_SECONDS:
            reported = now
            report(now)

    yield advance
    report(time.monotonic())


def parse(line: str) -> tuple[str, int, int, str] | None:
    """Read a progress line back as (what, done, total, unit); anything else is None."""
    match = _LINE.search(line)
    if match is None:
        return None
    numbers = (int(match[name].replace(",", "")) for name in ("done", "total"))
    done, total = numbers
    return match["what"].rsplit(" | ", 1)[-1], done, total, match["unit"]
