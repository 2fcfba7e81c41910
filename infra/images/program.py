"""Run a program that the machine may lack."""

import subprocess
from collections.abc import Sequence

from wukong.errors import StackError


def run(command: Sequence[str], missing: str, given: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run a program to its end, and return its status with what it has printed.

    Args:
        command: its name and arguments.
        missing: what to say where it is not installed.
        given: its standard input.

    Raises:
        StackError: it is not installed.
    """
    try:
        return subprocess.run(command, input=given, capture_output=True, text=True, check=False)  # noqa: S603
    except FileNotFoundError as error:
        raise StackError(missing) from error
