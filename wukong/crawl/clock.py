"""A clock that runs only while something is done."""

import time


class Clock:
    """Adds up the time, in seconds, spent inside its blocks."""

    def __init__(self) -> None:
        self.spent = 0.0
        self._entered = 0.0

    def __enter__(self) -> None:
        self._entered = time.monotonic()

    def __exit__(self, *_: object) -> None:
        self.spent += time.monotonic() - self._entered
