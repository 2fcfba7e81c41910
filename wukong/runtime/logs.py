"""The format of log lines, the same in a component, a job, its workers and a run's log file."""

import logging
import re
from typing import TextIO

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def harmless(text: str) -> str:
    r"""Return a text whose control characters, which a terminal would obey, are written as ``\u001b``; so does JSON.

    Line feeds and tabs stay. Marks that turn the direction of writing, and halves of surrogates, are written so too.
    """
    return _CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return harmless(super().format(record))


FORMATTER = _Formatter("%(asctime)s | %(levelname)s | %(message)s", "%H:%M:%S")
"""Makes ``12:30:01 | INFO | message`` of a record."""

PLAIN = _Formatter("%(message)s")
"""Makes the message alone of a record."""


def start(stream: TextIO | None = None, level: int = logging.INFO, formatter: logging.Formatter = FORMATTER) -> None:
    """Let a stream get what this process logs, unless something was set up before.

    Args:
        stream: the stream; None for standard error.
        level: the lowest level of what it gets.
        formatter: what makes a line of a record.
    """
    handler = logging.StreamHandler(stream)
    handler.setFormatter(formatter)
    logging.basicConfig(level=level, handlers=[handler])
