"""A stopwatch that runs only inside its blocks."""

import time


class Clock:
    """Measures the total time, in seconds, spent inside its ``with`` blocks."""

    def __init__(self) -> None:
        self.spent = 0.0
        self._entered = 0.0

    def __enter__(self) -> None:
        self._entered = time.monotonic()

    def __exit__(self, *_: object) -> None:
        self.spent += time.monotonic() - self._entered
