"""The format of log lines, the same in a component, a job, its workers and a run's log file."""

import logging
from typing import TextIO

_FORMAT, _TIME = "%(asctime)s | %(levelname)s | %(message)s", "%H:%M:%S"
FORMATTER = logging.Formatter(_FORMAT, _TIME)
"""Makes ``12:30:01 | INFO | message`` of a record."""


def start(stream: TextIO | None = None) -> None:
    """Let a stream get what this process logs from INFO on, unless something was set up before.

    Args:
        stream: the stream; None for standard error.
    """
    logging.basicConfig(level=logging.INFO, format=_FORMAT, datefmt=_TIME, stream=stream)
