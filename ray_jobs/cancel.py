"""What a job elsewhere needs when the run that waits for it is cancelled here."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def cancelled_with_us(stop: Callable[[], None]) -> Iterator[None]:
    """Call ``stop`` when SIGTERM, which a cancelled run sends to its component, or an interrupt ends the block."""

    def end(number: int, _frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    previous = signal.signal(signal.SIGTERM, end)
    try:
        yield
    except (SystemExit, KeyboardInterrupt):
        stop()
        raise
    finally:
        signal.signal(signal.SIGTERM, previous)
